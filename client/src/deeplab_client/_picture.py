"""Pictures as Pillow opens them, the way they are shown."""

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

# Where Pillow looks for an orientation when EXIF has none; no viewer does.
_NOT_EXIF = ("xmp", "XML:com.adobe.xmp", "Raw profile type exif")
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0  # TIFF 6.0, page 37

_warnings_lock = threading.Lock()


def opened(encoded: bytes) -> Image.Image:
    """Return an encoded image as an RGB picture, upright, the first frame of several.

    Raises:
        ClientLimitError: A limit of this process was met.
        InvalidImageError: It cannot be decoded.
    """
    try:
        return _despite_warnings(lambda: _opened(encoded))
    except UnidentifiedImageError as error:  # its message names our buffer by its address
        raise InvalidImageError("the image cannot be decoded: it is broken or truncated") from error
    except Image.DecompressionBombError as error:
        remedy = "if you trust the picture, raise PIL.Image.MAX_IMAGE_PIXELS or set it to None"
        raise InvalidImageError(f"the image has more pixels than Pillow may decode: {error}; {remedy}") from error
    except Exception as error:  # Pillow's decoders raise what they like
        raise _refusal(error, "the image cannot be decoded") from error


def declared_size(encoded: bytes) -> tuple[int, int] | None:
    """Return the height and width in the header of an encoded image; None where it does not tell them at once."""
    # Loading them takes tens of milliseconds, and most pictures do without.
    from PIL import BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, PpmImagePlugin, TiffImagePlugin  # noqa: PLC0415 - see above

    # Formats whose readers take no more than the header; WebP's and AVIF's make room for the whole picture.
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
        # Not by Image.open, which warns of large pictures or refuses them.
        width, height = reader(BytesIO(encoded)).size
    except Exception:  # noqa: BLE001 - Pillow's readers raise what they like, and the server may take the image
        return None
    return height, width


def flattened(image: Image.Image) -> Image.Image:
    """Return a PIL image in mode L or RGB, upright, without alpha; not always a copy.

    Raises:
        ClientLimitError: A limit of this process was met.
        InvalidImageError: It is empty, closed, or has no conversion.
    """
    if 0 in image.size:
        raise InvalidImageError(f"the PIL image is empty: {image.width} x {image.height} pixels")
    try:
        return _despite_warnings(lambda: _as_shown(image))
    except Exception as error:  # a lazily read file, whose decoder raises what it likes, or a mode without a way to RGB
        # Of an image without a file Pillow raises what it fails with: AssertionError, AttributeError.
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
    """Do what Pillow may warn about, where warnings are errors too."""
    try:
        return work()
    except Warning:
        # Only now: the filters belong to all threads of the process.
        with _warnings_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()


def _opened(encoded: bytes) -> Image.Image:
    """Open what the server takes, and nothing else: Pillow knows more formats, and runs programs for some."""
    name = format_of(encoded)
    if name is None:
        raise InvalidImageError(
            "the image cannot be decoded: it is not in JPEG, PNG, WebP, BMP, PPM, GIF, TIFF, AVIF or HEIC format"
        )
    data, orientation = without_metadata(encoded)
    if name != "HEIF":
        picture: Image.Image = Image.open(BytesIO(data), formats=[name])
    else:  # the picture alone: some metadata end the process in pi-heif 1.4.0
        alone = still(encoded)
        picture = _avif(alone.data) if alone.codec == "AVIF" else _heic(alone.data)
    for key in _NOT_EXIF:
        picture.info.pop(key, None)
    shown = _turned(_as_shown(picture), orientation)
    # No copy where none is needed, because a large picture would take twice its memory.
    return shown if shown.mode == "RGB" and not getattr(shown, "is_animated", False) else shown.convert("RGB")


def _avif(data: bytes) -> Image.Image:
    Image.init()
    if "AVIF" not in Image.OPEN:
        raise InvalidImageError("decoding an AVIF picture needs Pillow 11.3 or newer: pip install --upgrade pillow")
    return Image.open(BytesIO(data), formats=["AVIF"])


def _heic(data: bytes) -> Image.Image:
    try:
        from pi_heif import HeifImageFile  # noqa: PLC0415 - of an extra
    except ModuleNotFoundError as error:
        if error.name != "pi_heif":
            raise
        raise InvalidImageError(str(missing_extra("decoding a HEIC picture", "pi-heif", "heic"))) from error
    return HeifImageFile(BytesIO(data))


def _as_shown(image: Image.Image) -> Image.Image:
    """Return an image in mode L or RGB, upright, without alpha; the frame that it stands at."""
    image.load()
    upright = _turned(image, _orientation(image))
    if upright.mode in {"L", "RGB"}:
        return upright
    if upright.mode == "I" or upright.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255: a 16-bit picture would come out white.
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
    """Return an image's EXIF orientation, and that alone; None where its EXIF block is garbled, as viewers take it."""
    try:
        exif = image.getexif()
        if any(name in image.info for name in _NOT_EXIF):
            exif = Image.Exif()
            exif.load(image.info.get("exif", b""))
        return exif.get(ORIENTATION_TAG)
    except Warning:
        raise
    except Exception:  # noqa: BLE001 - Pillow's EXIF parser raises what it likes
        return None


def _turned(image: Image.Image, orientation: object) -> Image.Image:
    method = TRANSPOSE_BY_ORIENTATION.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(Image.Transpose[method])
