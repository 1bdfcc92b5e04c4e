"""What callers hand in as an image, and what travels."""

from __future__ import annotations

import inspect
import io
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from deeplab_client._arrays import ACCEPTED, pixels
from deeplab_client._errors import InvalidImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image
    from typing_extensions import TypeIs

    from deeplab_client._arrays import SupportsArray, SupportsDLPack


class SupportsRead(Protocol):
    """A file object that was opened in binary mode."""

    def read(self) -> bytes:
        """Return what is left of it."""
        ...


Encoded: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | SupportsRead"
"""An image in a format that the server decodes, or where it lies."""

ImageLike: TypeAlias = "Encoded | Image.Image | SupportsArray | SupportsDLPack"
"""What `segment` takes."""

_NOT_FILES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_LONGEST_NAME = 200  # characters of a path that a message repeats
# Bytes: protobuf ends a message before 2 GiB, and the lengths in Triton's tensors have 32 bits. The rest of the request
# is far smaller than what is left here.
_LONGEST_IMAGE = (1 << 31) - (1 << 20)


@dataclass(frozen=True, slots=True)
class Upload:
    """What travels.

    Attributes:
        data: An encoded image.
        size: Its height and width as shown, where it came as pixels; None where it came encoded.
    """

    data: bytes
    size: tuple[int, int] | None = None


def encode(image: ImageLike) -> Upload:
    """Return what travels: encoded images as they are, pixels losslessly as PPM or PGM.

    Raises:
        InvalidImageError: The image is of another kind, empty, or cannot be read.
    """
    encoded = _encoded(image)
    if encoded is not None:
        return Upload(encoded)
    if _is_pillow(image):
        from deeplab_client import _picture  # noqa: PLC0415 Pillow is loaded only where it is used

        return _netpbm(np.asarray(_picture.flattened(image)))
    return _netpbm(pixels(image))


def decode(image: ImageLike) -> Image.Image:
    """Return an image as an RGB picture of its own, the way it is shown.

    Raises:
        InvalidImageError: The image is of another kind, empty, or cannot be read.
    """
    from PIL import Image  # noqa: PLC0415 Pillow is loaded only where it is used

    from deeplab_client import _picture  # noqa: PLC0415 Pillow is loaded only where it is used

    encoded = _encoded(image)
    if encoded is not None:
        return _picture.opened(encoded)
    if _is_pillow(image):
        flat = _picture.flattened(image)
        return flat.copy() if flat.mode == "RGB" else flat.convert("RGB")
    return Image.fromarray(pixels(image)).convert("RGB")


def _is_pillow(image: object) -> TypeIs[Image.Image]:
    pillow = sys.modules.get("PIL.Image")  # nobody has one of its images before it is loaded
    return pillow is not None and isinstance(image, pillow.Image)


def _encoded(image: ImageLike) -> bytes | None:
    """Return the bytes of an encoded image, unexamined; None for an image that comes as pixels."""
    if isinstance(image, (str, os.PathLike)):
        path = _path(image)
        data, name = _read_path(path), _named(path)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        if isinstance(image, memoryview):
            _check_view(image)
        name = f"the {type(image).__name__} object"
        _check_size(len(image), name)
        data = bytes(image)
    elif _can_be_read(image):
        return _read_file(image)
    else:
        return None
    if not data:
        raise InvalidImageError(f"{name} is empty: it has no bytes")
    return data


def _path(image: str | os.PathLike[Any]) -> str | bytes:
    try:
        path = os.fspath(image)
    except Exception as error:  # a method of the caller's
        kind = f"{type(image).__module__}.{type(image).__qualname__}"
        raise InvalidImageError(f"the {kind} object gives no path: {_reason(error)}") from error
    if not path:
        raise InvalidImageError("an empty path names no image")
    return path


def _named(path: str | bytes) -> str:
    # What is passed for a path may be a whole picture in base64.
    return repr(path) if len(path) <= _LONGEST_NAME else f"{path[:_LONGEST_NAME]!r}... ({len(path)} characters)"


def _read_path(path: str | bytes) -> bytes:
    try:
        file = Path(os.fsdecode(path))
        about = file.stat()
        kind = _NOT_FILES.get(stat.S_IFMT(about.st_mode))
        _check_size(about.st_size, _named(path))
        data = file.read_bytes() if kind is None else None
    except InvalidImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise InvalidImageError(f"cannot read the image {_named(path)}: {_reason(error)}") from error
    if data is None:
        # Reading could wait for ever for a writer, or never come to an end.
        remedy = "" if kind == "a directory" else "; open it and pass the file object, if it has an end"
        raise InvalidImageError(f"cannot read the image {_named(path)}: it is {kind}, not a file{remedy}")
    return data


def _check_view(view: memoryview) -> None:
    try:
        fits = view.ndim == 1 and view.itemsize == 1
    except ValueError as error:
        raise InvalidImageError(f"the memoryview cannot be read: {error}") from error
    if not fits:
        raise InvalidImageError(f"found a memoryview of {view.format!r} elements, shape {view.shape}: {ACCEPTED}")


def _can_be_read(image: object) -> TypeIs[SupportsRead]:
    try:
        return callable(getattr(image, "read", None))
    except Exception as error:  # a property of the caller's
        kind = f"{type(image).__module__}.{type(image).__qualname__}"
        raise InvalidImageError(f"the {kind} object has no `read` to call: {_reason(error)}") from error


def _read_file(file: Any) -> bytes:  # noqa: ANN401 anything with a read()
    """Read a file object from where it stands to its end."""
    try:
        name = getattr(file, "name", None)
    except Exception:  # noqa: BLE001 a property of the caller's; the picture may be fine
        name = None
    called = f"the file object {name!r}" if isinstance(name, str) else f"the {type(file).__qualname__} object"
    if isinstance(file, io.TextIOBase):
        raise InvalidImageError(f"{called} is a text file: open it in binary mode, open(path, 'rb')")
    if inspect.iscoroutinefunction(file.read):
        raise InvalidImageError(f"{called} is read asynchronously: pass the bytes that `await file.read()` gives")
    try:
        data = file.read()
    except Exception as error:  # closed, opened for writing, or a method of the caller's
        raise InvalidImageError(f"cannot read {called}: {_reason(error)}") from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InvalidImageError(f"{called} gives {type(data).__name__}, not bytes: open it in binary mode")
    if not data:
        raise InvalidImageError(f"{called} is empty, or was read to its end before: rewind it with seek(0)")
    _check_size(len(data), called)
    return bytes(data)


def _check_size(size: int, name: str) -> None:
    if size > _LONGEST_IMAGE:
        raise InvalidImageError(
            f"{name} has {size} bytes, and a request holds {_LONGEST_IMAGE} at most: make it smaller"
        )


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _netpbm(array: NDArray[np.uint8]) -> Upload:
    # https://netpbm.sourceforge.net/doc/ppm.html: a line of text, then the pixels as they lie in memory.
    magic = "P5" if array.ndim == 2 else "P6"  # noqa: PLR2004 height, width
    height, width = array.shape[:2]
    _check_size(array.size, f"the picture of {width} x {height} pixels")
    header = f"{magic} {width} {height} 255\n".encode()
    return Upload(b"".join((header, np.ascontiguousarray(array).data)), (height, width))
