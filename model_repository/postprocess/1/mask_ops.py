"""Class masks from logits: the arg max of each pixel, tile by tile.

A tile in which only one class can win is filled with it. The masks equal those of the full computation.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from logit_tiles import checked_size, tiles


@dataclass(frozen=True, slots=True)
class Masks:
    """The results of one request.

    Attributes:
        masks: (N, H, W) uint8 class ids.
        class_pixels: (N, C) int64, the number of pixels of each class; a row's sum is H * W.
    """

    masks: npt.NDArray[np.uint8]
    class_pixels: npt.NDArray[np.int64]


def postprocess(
    logits: npt.NDArray[np.float32], sizes: npt.NDArray[np.int32], *, class_count: int, max_pixels: int
) -> Masks:
    """Turn the LOGITS (N, C, h, w) and SIZE (N, 2) of one request into its masks.

    Raises:
        InvalidLogitsError: as `logit_tiles.checked_size`.
    """
    height, width = checked_size(logits.shape, sizes, class_count=class_count, max_pixels=max_pixels)
    masks = np.empty((len(logits), height, width), np.uint8)
    class_pixels = np.empty((len(logits), class_count), np.int64)
    # Logits that are not finite give a meaningless mask, but must not fill the server's log with warnings.
    with np.errstate(all="ignore"):
        for index, planes in enumerate(logits):
            class_pixels[index] = segment(planes, masks[index])
    return Masks(masks, class_pixels)


def segment(logits: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Resize logits bilinearly to the mask's size, write the arg max over the classes into it, count the classes.

    Of equal values the lower class id wins. Memory in addition to the mask: that of `logit_tiles.tiles`.

    Args:
        logits: (C, h, w) float32 at any resolution, C from 1 to 256.
        mask: (H, W) uint8, overwritten with class ids.

    Returns:
        (C,) int64, the number of pixels of each class.
    """
    class_pixels = np.zeros(len(logits), np.int64)
    for tile in tiles(logits, *mask.shape):
        part = mask[tile.part]
        class_ids = tile.class_ids.tolist()
        if len(class_ids) == 1:
            part.fill(class_ids[0])
            class_pixels[class_ids[0]] += part.size
            continue
        _argmax(tile.values(), class_ids, part)
        for class_id in class_ids:
            class_pixels[class_id] += np.count_nonzero(part == class_id)
    return class_pixels


def _argmax(values: npt.NDArray[np.float32], class_ids: list[int], mask: npt.NDArray[np.uint8]) -> None:
    """Write the class of the largest of (C, rows, columns) values into the (rows, columns) mask.

    Plane by plane with operations that numpy vectorizes, because its own argmax over the first axis is not vectorized.
    Class ids ascend, so the largest id of the planes that exceeded all planes before them is the id of the last one.
    """
    best = values[0]
    greater = np.empty(mask.shape, np.bool_)
    candidate = np.empty(mask.shape, np.uint8)
    mask.fill(class_ids[0])
    for class_id, plane in zip(class_ids[1:], values[1:], strict=True):
        np.greater(plane, best, out=greater)
        np.maximum(plane, best, out=best)
        np.multiply(greater.view(np.uint8), np.uint8(class_id), out=candidate)
        np.maximum(mask, candidate, out=mask)
