"""Class names and colors of Pascal VOC, in the order of the models' class ids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASS_NAMES = (
    "__background__",
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
"""The 21 categories of torchvision's `COCO_WITH_VOC_LABELS_V1` weights; id 0 is the background."""


def _palette() -> NDArray[np.uint8]:
    # The color map of the PASCAL VOC development kit (VOClabelcolormap.m): the bits of the id, three at a time from the
    # lowest, become the bits of red, green and blue from the highest.
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for level in range(8):
        for channel in range(3):
            bit = (ids >> (3 * level + channel)) & 1
            palette[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    palette.setflags(write=False)
    return palette


PALETTE = _palette()
"""RGB of each class id, (256, 3) uint8, read-only."""
