"""torchvision's own models, as the reference of what is served."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101

if TYPE_CHECKING:
    from torchvision.models.segmentation import DeepLabV3

VARIANTS = ("resnet50", "resnet101")


@functools.cache
def eager(variant: str) -> DeepLabV3:
    """torchvision's model with the weights that `--weights none` means: its own initialization from seed 5."""
    make = {"resnet50": deeplabv3_resnet50, "resnet101": deeplabv3_resnet101}[variant]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return make(weights=None, weights_backbone=None, aux_loss=True).eval()
