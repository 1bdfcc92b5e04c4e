"""How a Triton model is made of a variant: plan, trace, check, and the files around it."""
