"""The names of variants, of their models, and of weights that are not a file; without torch, for command lines."""

VARIANTS = ("resnet50", "resnet101")

CORE_PREFIX = "core_"
"""What the name of an ensemble's core model begins with; the variant follows."""

PRETRAINED = "COCO_WITH_VOC_LABELS_V1"
"""The weights that torchvision publishes."""

UNTRAINED = "none"
"""Random weights from a fixed seed."""


def core_name(variant: str) -> str:
    """Return the name of a variant's core model, which its ensemble asks."""
    return f"{CORE_PREFIX}{variant}"


def direct_name(variant: str) -> str:
    """Return the name of a variant's model for direct callers, which is that of the function in torchvision."""
    return f"deeplabv3_{variant}"


def ensemble_name(variant: str) -> str:
    """Return the name of the ensemble around it."""
    return f"segment_{variant}"
