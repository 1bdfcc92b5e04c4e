"""The names of variants, models and weights. Without torch, so that command lines start fast."""

VARIANTS = ("resnet50", "resnet101")

CORE_PREFIX = "core_"
"""The prefix of the names of core models; the variant follows."""

PRETRAINED = "COCO_WITH_VOC_LABELS_V1"
"""The weights that torchvision publishes."""

UNTRAINED = "none"
"""Random weights from a fixed seed."""


def core_name(variant: str) -> str:
    """Return the name of a variant's core model."""
    return f"{CORE_PREFIX}{variant}"


def direct_name(variant: str) -> str:
    """Return the name of a variant's model for direct callers, which is the name of torchvision's function."""
    return f"deeplabv3_{variant}"


def ensemble_name(variant: str) -> str:
    """Return the name of a variant's ensemble."""
    return f"segment_{variant}"
