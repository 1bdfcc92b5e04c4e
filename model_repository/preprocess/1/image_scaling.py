"""Decode large JPEGs at 1/2, 1/4 or 1/8 of their size.

libjpeg then skips the frequencies that the resize would remove, and writes a fraction of the pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import image_bytes
from PIL import JpegImagePlugin

if TYPE_CHECKING:
    from collections.abc import Callable

    from PIL import Image

# The sides of a fraction are at least this many times those of the resized picture.
_OVERSAMPLING = 2
# T.81, table B.1: baseline, extended and progressive, with Huffman or arithmetic coding. libjpeg always decodes
# lossless frames at full size, for which Pillow would allocate too little memory.
_SCALABLE_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC9, 0xCA})
FIRST_SWAPPED = 5
"""The first EXIF orientation that swaps height and width, as all after it do."""


@dataclass(frozen=True, slots=True)
class Fraction:
    """An image decoded at a fraction of its size.

    Attributes:
        size: height and width of the whole image as shown, in pixels.
        covered: height and width of the part of the decoded image that is inside of the whole image. A fraction of an
            odd side is not an integer, so the last row or column may be partly outside.
        orientation: the EXIF orientation that turns the decoded image into the image as shown.
    """

    size: tuple[int, int]
    covered: tuple[float, float]
    orientation: int


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image.

    Attributes:
        image: RGB; the whole image as shown, or a fraction of it as stored.
        fraction: None for the whole image.
    """

    image: Image.Image
    fraction: Fraction | None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the whole image as shown, in pixels."""
        return (self.image.height, self.image.width) if self.fraction is None else self.fraction.size


def swapped(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Convert (height, width) as shown to as stored, or the reverse."""
    height, width = size
    return (width, height) if orientation >= FIRST_SWAPPED else size


def scale_down(
    image: Image.Image, data: bytes, orientation: int, resized: Callable[[int, int], tuple[int, int]]
) -> Fraction | None:
    """Set a JPEG to be decoded at the smallest fraction whose sides are at least twice the sides after the resize.

    This holds for each channel.

    Args:
        image: opened and not loaded, of any format.
        data: its file without metadata.
        orientation: EXIF's.
        resized: takes a height and width as shown, returns the height and width after the resize.

    Returns:
        The fraction; None if the image is to be decoded at full size.
    """
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or image_bytes.jpeg_frame(data) not in _SCALABLE_FRAMES:
        return None
    size = swapped((image.height, image.width), orientation)
    height, width = swapped(resized(*size), orientation)
    fewer_rows, fewer_columns = _chroma_loss(image)
    height, width = _OVERSAMPLING * height * fewer_rows, _OVERSAMPLING * width * fewer_columns
    if not height or image.height < 2 * height or image.width < 2 * width:
        return None
    drafted = image.draft(None, (width, height))  # the largest of 2, 4 and 8 that leaves these sides
    if drafted is None:
        return None
    _, (_, _, covered_width, covered_height) = drafted
    return Fraction(size, (covered_height, covered_width), orientation)


def _chroma_loss(image: JpegImagePlugin.JpegImageFile) -> tuple[int, int]:
    """Return by which factors a channel has fewer rows and columns than the image, at a fraction; (0, 0) if broken.

    libjpeg scales channels with fewer stored samples less, but equally in both directions: nothing is lost with 4:4:4
    and 4:2:0, half of the columns with 4:2:2.
    """
    sampling = [(vertical, horizontal) for _, horizontal, vertical, _ in image.layer]
    if not all(map(all, sampling)):
        return 0, 0
    rows, columns = (max(factors) for factors in zip(*sampling, strict=True))
    fewer = [(math.ceil(rows / vertical), math.ceil(columns / horizontal)) for vertical, horizontal in sampling]
    return max(high // min(high, wide) for high, wide in fewer), max(wide // min(high, wide) for high, wide in fewer)
