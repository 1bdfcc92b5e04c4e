"""Masks made visible."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from deeplab_client import _banner, _legend, voc
from deeplab_client._errors import InvalidImageError
from deeplab_client._image import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deeplab_client._image import ImageLike
    from deeplab_client._legend import Entry

# zlib's level: masks are long runs, which level 1 packs in a third of the time of level 6 and few bytes more.
_COMPRESS_LEVEL = 1
_LONGEST_PREVIEW = 1024  # pixels of a side


def colorize(mask: NDArray[np.uint8], *, untrained: bool) -> Image.Image:
    """Return the mask's classes in the VOC colours."""
    picture = _with_palette(mask).convert("RGB")
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
    for class_id, count in enumerate(Image.fromarray(mask).histogram()):
        if class_id and count:
            blended = picture.point(_blend(voc.PALETTE[class_id], alpha))
            picture.paste(blended, mask=Image.fromarray(mask == class_id))
    if entries:
        picture = _legend.beside(picture, entries)
    return _banner.above(picture) if untrained else picture


def png(mask: NDArray[np.uint8], *, untrained: bool) -> bytes:
    """Return a palette PNG whose pixel values are the class ids."""
    about = PngInfo()
    if untrained:
        about.add_text("Warning", _banner.TEXT)
    return _saved(_with_palette(mask), about)


def preview(mask: NDArray[np.uint8], *, untrained: bool) -> bytes:
    """Return the colour mask as a PNG no larger than a notebook shows."""
    step = max(1, -(-max(mask.shape) // _LONGEST_PREVIEW))
    return _saved(colorize(np.ascontiguousarray(mask[::step, ::step]), untrained=untrained), PngInfo())


def _blend(color: NDArray[np.uint8], alpha: float) -> list[int]:
    """Return what becomes of each of 256 values of red, green and blue, by the arithmetic of torchvision.

    `draw_segmentation_masks` computes in single precision and cuts the fraction off.
    """
    values = np.arange(256, dtype=np.float32) * np.float32(1 - alpha)
    blended = values + color.astype(np.float32)[:, np.newaxis] * np.float32(alpha)
    return blended.astype(np.uint8).ravel().tolist()


def _with_palette(mask: NDArray[np.uint8]) -> Image.Image:
    picture = Image.fromarray(mask)
    picture.putpalette(voc.PALETTE.tobytes())
    return picture


def _saved(picture: Image.Image, about: PngInfo) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG", compress_level=_COMPRESS_LEVEL, pnginfo=about)
    return file.getvalue()
