"""Measure the accuracy of a server and of the PyTorch module side by side: `python -m deeplabv3.evaluation --help`."""
