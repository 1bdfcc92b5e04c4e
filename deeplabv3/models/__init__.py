"""The functions of mlverse's torchvision: variants, weights and checkpoints."""
