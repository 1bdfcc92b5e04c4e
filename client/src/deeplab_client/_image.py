"""What callers hand in as an image, and what travels."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image, ImageOps

from deeplab_client._errors import InvalidImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

ImageLike: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]"

_ACCEPTED = (
    "a path, the bytes of an encoded image, a PIL image, or a uint8 array of shape (H, W), (H, W, 1), (H, W, 3) "
    "or (H, W, 4)"
)


def encode(image: ImageLike) -> bytes:
    """Return the bytes that travel: encoded images as they are, pixels losslessly as PPM or PGM.

    Raises:
        InvalidImageError: The image is of another kind, empty, or cannot be read.
    """
    encoded = _encoded(image)
    return _netpbm(_pixels(image)) if encoded is None else encoded


def decode(image: ImageLike) -> Image.Image:
    """Return an image as an RGB picture of its own, the way it is shown.

    Raises:
        InvalidImageError: The image is of another kind, empty, or cannot be read.
    """
    encoded = _encoded(image)
    if encoded is None:
        return Image.fromarray(_pixels(image)).convert("RGB")
    try:
        opened: Image.Image = Image.open(BytesIO(encoded))
        return _as_shown(opened).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InvalidImageError(f"the image cannot be decoded: {error}") from error


def _encoded(image: ImageLike) -> bytes | None:
    """Return the bytes of an encoded image, unexamined; None for an image that comes as pixels."""
    if isinstance(image, (str, os.PathLike)):
        data, name = _read(image), repr(os.fspath(image))
    elif isinstance(image, memoryview) and (image.ndim != 1 or image.itemsize != 1):
        message = f"found a memoryview of {image.format!r} elements, shape {image.shape}: accepted is {_ACCEPTED}"
        raise InvalidImageError(message)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        data, name = bytes(image), f"the {type(image).__name__} object"
    else:
        return None
    if not data:
        raise InvalidImageError(f"{name} is empty: accepted is {_ACCEPTED}")
    return data


def _read(path: str | os.PathLike[Any]) -> bytes:
    try:
        return Path(os.fsdecode(path)).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null character
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidImageError(f"cannot read the image {os.fspath(path)!r}: {reason}") from error


def _pixels(image: ImageLike) -> NDArray[np.uint8]:
    """Return (H, W) or (H, W, 3) pixels; a view where the image is an array."""
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise InvalidImageError(f"the PIL image is empty: {image.width} x {image.height} pixels")
        try:
            return np.asarray(_as_shown(image))
        except (OSError, SyntaxError, ValueError) as error:  # a lazily read file, or a mode without a way to RGB
            message = f"the PIL image of mode {image.mode!r} cannot be converted to RGB: {error}"
            raise InvalidImageError(message) from error
    if not isinstance(image, np.ndarray):
        kind = type(image)
        raise InvalidImageError(f"found {kind.__module__}.{kind.__qualname__}: accepted is {_ACCEPTED}")
    array: NDArray[Any] = image
    found = f"found a {array.dtype} array of shape {array.shape}"
    if array.dtype != np.uint8:
        raise InvalidImageError(f"{found}: scale it to 0..255 and cast it; accepted is {_ACCEPTED}")
    if array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in {1, 3, 4}):  # noqa: PLR2004 H, W, C
        raise InvalidImageError(f"{found}: accepted is {_ACCEPTED}")
    if array.size == 0:
        raise InvalidImageError(f"{found}, which is empty: accepted is {_ACCEPTED}")
    if array.ndim == 2:  # noqa: PLR2004 height, width
        return array
    return array[:, :, 0] if array.shape[2] == 1 else array[:, :, :3]


def _as_shown(image: Image.Image) -> Image.Image:
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


def _netpbm(pixels: NDArray[np.uint8]) -> bytes:
    # https://netpbm.sourceforge.net/doc/ppm.html: a line of text, then the pixels as they lie in memory.
    magic = "P5" if pixels.ndim == 2 else "P6"  # noqa: PLR2004 height, width
    header = f"{magic} {pixels.shape[1]} {pixels.shape[0]} 255\n".encode()
    return b"".join((header, np.ascontiguousarray(pixels).data))
