"""The samples of Pillow's images as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from PIL import Image

# Pillow's own conversion holds three copies of the samples for a time: up to this size it is the fastest, and larger
# images are copied piece by piece.
_WHOLE = 4_000_000  # pixels
_PIECE = 1 << 18


def samples_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return a copy of the samples of an RGB image, (height, width, 3) uint8; it may be read-only."""
    if image.width * image.height <= _WHOLE:
        return np.asarray(image)
    copy = np.empty((image.height, image.width, 3), np.uint8)
    for rows, piece in pieces(image):
        copy[rows] = piece
    return copy


def pieces(image: Image.Image) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
    """Yield the slices of rows from top to bottom, each with its samples."""
    height = max(1, _PIECE // image.width)
    for top in range(0, image.height, height):
        rows = slice(top, min(top + height, image.height))
        yield rows, np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
