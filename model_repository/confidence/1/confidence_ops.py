"""How sure the model is of each pixel of a mask: the softmax probability of the winning class, as uint8."""

import math

import numpy as np
import numpy.typing as npt
from logit_tiles import checked_size, tiles

# Classes are left out where all of them together hold less than this share of the probability: half of 1/255, so that
# rounded to uint8 the result is at most one off.
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
    # Logits that are no numbers must not fill the server's log.
    with np.errstate(all="ignore"):
        for planes, picture in zip(logits, found, strict=True):
            measure(planes, picture)
    return found


def measure(logits: npt.NDArray[np.float32], picture: npt.NDArray[np.uint8]) -> None:
    """Write the softmax probability of the most probable class at each pixel, over logits resized bilinearly.

    It differs by at most 1/255 from that of all classes: a class is left out of a tile where its share is below
    _NEGLIGIBLE / C at every pixel. A tile where one class is left has 255 everywhere.

    Pixels that are blended with a logit that is not a finite number have 0, and the others of their tile may have it.

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
        part[:] = np.fmax(share, 0)  # 0 where it is no number
