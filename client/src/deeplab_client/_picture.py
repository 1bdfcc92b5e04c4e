"""Pictures as Pillow opens them, the way they are shown."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from deeplab_client._errors import InvalidImageError

# EXIF tag 0x0112 (Exif 2.32, table 4): how the stored rows and columns become the picture as shown; 1 is "as stored".
_ORIENTATION_TAG = 0x0112
_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def opened(encoded: bytes) -> Image.Image:
    """Return an encoded image as an RGB picture, upright.

    Raises:
        InvalidImageError: It cannot be decoded.
    """
    try:
        picture: Image.Image = Image.open(BytesIO(encoded))
        return as_shown(picture).convert("RGB")
    except MemoryError:
        raise
    except UnidentifiedImageError as error:  # its message names our buffer by its address
        raise InvalidImageError("the image cannot be decoded: it is in no format that Pillow knows") from error
    except Exception as error:  # Pillow's decoders raise what they like
        raise InvalidImageError(f"the image cannot be decoded: {error}") from error


def flattened(image: Image.Image) -> Image.Image:
    """Return a PIL image in mode L or RGB, upright, without alpha; not always a copy.

    Raises:
        InvalidImageError: It is empty, or has no conversion.
    """
    if 0 in image.size:
        raise InvalidImageError(f"the PIL image is empty: {image.width} x {image.height} pixels")
    try:
        return as_shown(image)
    except MemoryError:
        raise
    except Exception as error:  # a lazily read file, whose decoder raises what it likes, or a mode without a way to RGB
        message = f"the PIL image of mode {image.mode!r} cannot be converted to RGB: {error}"
        raise InvalidImageError(message) from error


def as_shown(image: Image.Image) -> Image.Image:
    """Return an image in mode L or RGB, upright, without alpha; the first frame where it is a fresh file."""
    image.load()
    upright = _upright(image)
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


def _upright(image: Image.Image) -> Image.Image:
    """Turn an image by nothing but its EXIF orientation, as the server does: the rest of the block may be garbled."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001 Pillow's EXIF parser raises what it likes; the pixels are then shown as stored
        return image
    method = _TRANSPOSE_BY_ORIENTATION.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(method)
