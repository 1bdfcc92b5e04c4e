"""Masks made visible."""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

from deeplab_client import _banner, _legend, voc
from deeplab_client._errors import InvalidImageError
from deeplab_client._image import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from deeplab_client._image import ImageLike
    from deeplab_client._legend import Entry


def colorize(mask: NDArray[np.uint8], *, untrained: bool) -> Image.Image:
    """Return the mask's classes in the VOC colours."""
    picture = _colors(mask)
    return _banner.above(picture) if untrained else picture


def overlay(
    mask: NDArray[np.uint8], image: ImageLike, *, alpha: float, entries: Sequence[Entry], untrained: bool
) -> Image.Image:
    """Return the image with the mask's classes blended over all but the background."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1; found {alpha!r}")
    picture = decode(image)
    height, width = mask.shape
    if picture.size != (width, height):
        raise InvalidImageError(
            f"the image has {picture.width} x {picture.height} pixels, the mask {width} x {height}: "
            "draw over the image that was segmented"
        )
    foreground = Image.fromarray(mask != 0)
    picture.paste(Image.blend(picture, _colors(mask), alpha), mask=foreground)
    if entries:
        picture = _legend.beside(picture, entries)
    return _banner.above(picture) if untrained else picture


def _colors(mask: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(mask).convert("P")
    picture.putpalette(voc.PALETTE.tobytes())
    return picture.convert("RGB")
