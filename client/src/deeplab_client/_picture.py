"""Pictures as Pillow opens them, the way they are shown."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

from deeplab_client._errors import InvalidImageError


def opened(encoded: bytes) -> Image.Image:
    """Return an encoded image as an RGB picture, upright.

    Raises:
        InvalidImageError: It cannot be decoded.
    """
    try:
        picture: Image.Image = Image.open(BytesIO(encoded))
        return as_shown(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidImageError(f"the image cannot be decoded: {error}") from error


def flattened(image: Image.Image) -> Image.Image:
    """Return a PIL image in mode L or RGB, upright, without alpha; not always a copy.

    Raises:
        InvalidImageError: It is empty, or has no conversion.
    """
    if 0 in image.size:
        raise InvalidImageError(f"the PIL image is empty: {image.width} x {image.height} pixels")
    try:
        shown = as_shown(image)
        shown.load()
    except (OSError, SyntaxError, ValueError) as error:  # a lazily read file, or a mode without a way to RGB
        message = f"the PIL image of mode {image.mode!r} cannot be converted to RGB: {error}"
        raise InvalidImageError(message) from error
    return shown


def as_shown(image: Image.Image) -> Image.Image:
    """Return an image in mode L or RGB, upright, without alpha; the first frame where it is a fresh file."""
    # Pixels whose EXIF block is garbled are shown as they are stored, as the server does it.
    try:
        image.getexif()
    except Exception:  # noqa: BLE001 Pillow's EXIF parser raises what it likes
        upright = image
    else:
        upright = ImageOps.exif_transpose(image)
    if upright.mode in {"L", "RGB"}:
        return upright
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255: a 16-bit picture would come out white.
        wide = np.clip(np.asarray(upright), 0, 65535).astype(np.uint16)
        return Image.fromarray((wide >> 8).astype(np.uint8))
    if upright.mode == "F":
        raise ValueError("float pixels have no known range")
    if upright.mode in {"1", "LA"}:
        return upright.convert("L")
    if upright.mode == "La":
        return upright.convert("LA").convert("L")
    if upright.mode == "RGBa" or "transparency" in upright.info:
        # Premultiplied alpha converts to RGBA only; a palette with alpha warns unless it goes through RGBA.
        return upright.convert("RGBA").convert("RGB")
    return upright.convert("RGB")
