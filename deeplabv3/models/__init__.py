"""The functions of mlverse's torchvision: variants, weights, and the checkpoints that they read."""
