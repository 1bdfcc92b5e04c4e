"""Palette PNGs in the colors of the Pascal VOC segmentation masks."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

# zlib level: masks have long runs, so level 1 takes a third of the time of level 6 and few bytes more.
_COMPRESS_LEVEL = 1


def voc_palette() -> npt.NDArray[np.uint8]:
    """Return the VOC color map, (256, 3) uint8.

    The bits of a class id, lowest first, go to red, green and blue in turn, and fill each channel from the highest bit
    down. Source: VOClabelcolormap.m of the Pascal VOC development kit.
    """
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.int64)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((ids >> channel) & 1) << (7 - bit)
        ids = ids >> 3
    return palette.astype(np.uint8)


_PALETTE = voc_palette().tobytes()


def encode(mask: npt.NDArray[np.uint8]) -> bytes:
    """Encode an (H, W) uint8 mask as a PNG whose pixel values are the class ids."""
    image = Image.fromarray(mask)
    image.putpalette(_PALETTE)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=_COMPRESS_LEVEL)
    return buffer.getvalue()
