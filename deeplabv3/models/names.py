"""The names of the variants, and of weights that are no file. Importing it imports no torch, as command lines need."""

VARIANTS = ("resnet50", "resnet101")

PRETRAINED = "COCO_WITH_VOC_LABELS_V1"
"""The weights that torchvision publishes."""

UNTRAINED = "none"
"""Random weights from a fixed seed."""
