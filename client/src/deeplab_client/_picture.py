"""Decoding with Pillow: upright, without alpha, only in the formats that the server accepts."""

from __future__ import annotations

import threading
import warnings
from io import BytesIO
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from deeplab_client._errors import InvalidImageError, SegmentationError, missing_extra, reason_of
from deeplab_client._image_boxes import still
from deeplab_client._image_bytes import ORIENTATION_TAG, TRANSPOSE_BY_ORIENTATION, format_of, without_metadata
from deeplab_client._limits import limit_met

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

# Pillow also looks for an orientation here if EXIF has none; viewers do not.
_NOT_EXIF = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF 6.0, page 37

_warnings_lock = threading.Lock()


def opened(encoded: bytes) -> Image.Image:
    """Return the first frame of an encoded image as an RGB picture, upright.

    Raises:
        ClientLimitError: A limit of this process was met.
        InvalidImageError: It cannot be decoded.
    """
    try:
        return _despite_warnings(lambda: _opened(encoded))
    except UnidentifiedImageError as error:  # its message only names the address of our buffer
        raise InvalidImageError("the image cannot be decoded: it is broken or truncated") from error
    except Image.DecompressionBombError as error:
        remedy = "if you trust the picture, raise PIL.Image.MAX_IMAGE_PIXELS or set it to None"
        raise InvalidImageError(f"the image has more pixels than Pillow may decode: {error}; {remedy}") from error
    except Exception as error:  # Pillow's decoders raise any exception
        raise _refusal(error, "the image cannot be decoded") from error


def declared_size(encoded: bytes) -> tuple[int, int] | None:
    """Return the height and width from the header of an encoded image; None if they are not at its start."""
    # Loading these modules takes tens of milliseconds, and most images do not need them.
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, TiffImagePlugin  # noqa: PLC0415 - see above

    # Formats whose readers only read the header; those of WebP and AVIF allocate the whole picture.
    readers = {
        "BMP": BmpImagePlugin.BmpImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "PPM": PpmImagePlugin.PpmImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
    }
    reader = readers.get(format_of(encoded) or "")
    if reader is None:
        return None
    try:
        # Not with Image.open, which warns of large pictures or refuses them.
        width, height = reader(BytesIO(encoded)).size
    except Exception:  # noqa: BLE001 - Pillow's readers raise any exception, and the server may accept the image
        return None
    return height, width


def flattened(image: Image.Image) -> Image.Image:
    """Return a PIL image in mode L or RGB, upright, without alpha; not always a copy.

    Raises:
        ClientLimitError: A limit of this process was met.
        InvalidImageError: It is empty, closed, or cannot be converted.
    """
    if 0 in image.size:
        raise InvalidImageError(f"the PIL image is empty: {image.width} x {image.height} pixels")
    try:
        return _despite_warnings(lambda: _as_shown(image))
    except Exception as error:  # any exception of a decoder, if the file is read lazily, or an unsupported mode
        # For an image without a file, Pillow raises AssertionError or AttributeError.
        is_unread = bool(getattr(image, "tile", None)) and getattr(image, "fp", None) is None
        if is_unread or "closed" in str(error):
            message = "the PIL image was closed before it was read: call its load() first, or close it later"
            raise InvalidImageError(message) from error
        raise _refusal(error, f"the PIL image of mode {image.mode!r} cannot be converted to RGB") from error


def _refusal(error: Exception, what: str) -> SegmentationError:
    if isinstance(error, SegmentationError):
        return error
    return limit_met(error) or InvalidImageError(f"{what}: {reason_of(error)}")


def _despite_warnings(work: Callable[[], _T]) -> _T:
    """Run work about which Pillow may warn, also if warnings are errors."""
    try:
        return work()
    except Warning:
        # Only now, because the filters affect all threads of the process.
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()


def _opened(encoded: bytes) -> Image.Image:
    """Open only formats that the server accepts: Pillow knows more, and runs programs for some."""
    name = format_of(encoded)
    if name is None:
        raise InvalidImageError(
            "the image cannot be decoded: it is not in JPEG, PNG, WebP, BMP, PPM, GIF, TIFF, AVIF or HEIC format"
        )
    data, orientation = without_metadata(encoded)
    if name != "HEIF":
        picture: Image.Image = Image.open(BytesIO(data), formats=[name])
    else:  # only the picture, because some metadata crashes the process in pi-heif 1.4.0
        alone = still(encoded)
        picture = _avif(alone.data) if alone.codec == "AVIF" else _heic(alone.data)
    for key in _NOT_EXIF:
        picture.info.pop(key, None)
    shown = _turned(_as_shown(picture), orientation)
    # No needless copy, because a large picture would take twice its memory.
    return shown if shown.mode == "RGB" and not getattr(shown, "is_animated", False) else shown.convert("RGB")


def _avif(data: bytes) -> Image.Image:
    Image.init()
    if "AVIF" not in Image.OPEN:
        raise InvalidImageError("decoding an AVIF picture needs Pillow 11.3 or newer: pip install --upgrade pillow")
    return Image.open(BytesIO(data), formats=["AVIF"])


def _heic(data: bytes) -> Image.Image:
    try:
        from pi_heif import HeifImageFile  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if error.name != "pi_heif":
            raise
        raise InvalidImageError(str(missing_extra("decoding a HEIC picture", "pi-heif", "heic"))) from error
    return HeifImageFile(BytesIO(data))


def _as_shown(image: Image.Image) -> Image.Image:
    """Return the current frame of an image in mode L or RGB, upright, without alpha."""
    image.load()
    upright = _turned(image, _orientation(image))
    if upright.mode in {"L", "RGB"}:
        return upright
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        # Pillow's conversion clips at 255, which would turn a 16-bit picture white.
        wide = np.clip(np.asarray(upright), 0, 65535).astype(np.uint16)
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            wide = ~wide
        return Image.fromarray((wide >> 8).astype(np.uint8))
    if upright.mode == "F":
        raise ValueError("float pixels have no defined range, so convert them to uint8")
    if upright.mode in {"1", "LA"}:
        return upright.convert("L")
    if upright.mode == "La":
        return upright.convert("LA").convert("L")
    if upright.mode == "RGBa" or "transparency" in upright.info:
        # Premultiplied alpha converts to RGBA only; a palette with alpha warns unless it goes through RGBA.
        return upright.convert("RGBA").convert("RGB")
    return upright.convert("RGB")


def _orientation(image: Image.Image) -> object:
    """Return only the EXIF orientation of an image; None if its EXIF block is not valid, as viewers do."""
    try:
        exif = image.getexif()
        if any(name in image.info for name in _NOT_EXIF):
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
        return exif.get(ORIENTATION_TAG)
    except Warning:
        raise
    except Exception:  # noqa: BLE001 - Pillow's EXIF parser raises any exception
        return None


def _turned(image: Image.Image, orientation: object) -> Image.Image:
    method = TRANSPOSE_BY_ORIENTATION.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(Image.Transpose[method])
