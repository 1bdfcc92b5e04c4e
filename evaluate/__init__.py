"""Measure the accuracy of a running server and of the PyTorch module, side by side: `python -m evaluate --help`."""
