"""An image and its annotation as torchvision's reference evaluation (references/segmentation) hands them to a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights
from torchvision.transforms import InterpolationMode, functional

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

# The preset travels with the weights; both variants have the same one: the shorter side becomes 520.
_WEIGHTS = DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
_preset = _WEIGHTS.transforms()


class Prepared(NamedTuple):
    """A batch of one and what it is compared with.

    Attributes:
        pixels: (1, 3, H, W) float32, normalised.
        target: class ids, (H, W) uint8.
    """

    pixels: torch.Tensor
    target: npt.NDArray[np.uint8]


def prepare(image: Image.Image, target: npt.NDArray[np.uint8]) -> Prepared:
    """Resize the image as the weights' preset does, and the annotation to the same size by the nearest pixel."""
    resized = functional.resize(
        Image.fromarray(target),  # pyright: ignore[reportArgumentType]  takes PIL images, and is annotated with tensors
        list(_preset.resize_size),
        interpolation=InterpolationMode.NEAREST,
    )
    return Prepared(_preset(image)[None], np.array(resized))
