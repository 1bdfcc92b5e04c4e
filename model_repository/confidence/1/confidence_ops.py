"""The confidence of each pixel of a mask: the softmax probability of the winning class, as uint8."""

import math

import numpy as np
import numpy.typing as npt
from logit_tiles import checked_size, tiles

# Classes are left out if all of them together have less than this share of the probability: half of 1/255, so that the
# result, rounded to uint8, differs by at most one.
_NEGLIGIBLE = 1 / (2 * 255)


def confidence(
    logits: npt.NDArray[np.float32], sizes: npt.NDArray[np.int32], *, class_count: int, max_pixels: int
) -> npt.NDArray[np.uint8]:
    """Turn the LOGITS (N, C, h, w) and SIZE (N, 2) of one request into its CONFIDENCE (N, H, W), 255 for 1.0.

    Raises:
        InvalidLogitsError: as `logit_tiles.checked_size`.
    """
    height, width = checked_size(logits.shape, sizes, class_count=class_count, max_pixels=max_pixels)
    found = np.empty((len(logits), height, width), np.uint8)
    # Logits that are not finite must not fill the server's log with warnings.
    with np.errstate(all="ignore"):
        for planes, picture in zip(logits, found, strict=True):
            measure(planes, picture)
    return found


def measure(logits: npt.NDArray[np.float32], picture: npt.NDArray[np.uint8]) -> None:
    """Write the softmax probability of the most probable class at each pixel, over logits resized bilinearly.

    It differs by at most 1/255 from the probability over all classes: a class is left out of a tile if its share is
    below _NEGLIGIBLE / C at every pixel. A tile with one remaining class has 255 everywhere.

    Pixels that are interpolated from a logit that is not finite are 0, and the other pixels of their tile may be 0.

    Args:
        logits: (C, h, w) float32 at any resolution, C from 1 to 256.
        picture: (H, W) uint8, overwritten: 255 is a probability of 1.
    """
    behind = math.log(len(logits) / _NEGLIGIBLE)
    for tile in tiles(logits, *picture.shape, behind=behind):
        part = picture[tile.part]
        if len(tile.class_ids) == 1 and np.isfinite(tile.sources()).all():
            part.fill(255)
            continue
        values = tile.values()
        values -= values.max(axis=0)
        np.exp(values, out=values)
        share = 255 / values.sum(axis=0)
        share += np.float32(0.5)
        part[:] = np.fmax(share, 0)  # 0 if it is not a number
