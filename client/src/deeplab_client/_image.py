"""Images as callers pass them, and the bytes that are sent."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import stat
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from deeplab_client._arrays import Upload, check_size, netpbm, pixels, refused
from deeplab_client._errors import InvalidImageError, SegmentationError, reason_of
from deeplab_client._limits import limit_met

if TYPE_CHECKING:
    from collections.abc import Generator

    from numpy.typing import NDArray
    from PIL import Image
    from typing_extensions import TypeIs

    from deeplab_client._arrays import SupportsArray, SupportsDLPack


class SupportsRead(Protocol):
    """A file object that was opened in binary mode."""

    def read(self) -> bytes:
        """Return the rest of the file."""
        ...


Encoded: TypeAlias = "str | os.PathLike[str] | bytes | bytearray | memoryview | SupportsRead"
"""The bytes of an encoded image, or a path or file object that has them."""

ImageLike: TypeAlias = "Encoded | Image.Image | SupportsArray | SupportsDLPack"
"""An image that `segment` accepts.

A path, the bytes of an encoded image, a binary file object, a PIL image, or an array or tensor in CPU memory of shape
(H, W), (H, W, 1), (H, W, 3) in RGB order or (H, W, 4), uint8 or float from 0 to 1.
"""

_NOT_FILES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}
_LONGEST_NAME = 200  # characters of a path in a message
# Texts that are passed as a path by mistake: a URL, of whose two slashes pathlib keeps one, and base64.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/")
_DATA_URL = re.compile(r"data:[^,]{0,100};base64,", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/_=\s-]{64,}")


def encode(image: ImageLike) -> Upload:
    """Return the file to send: encoded images unchanged, pixels losslessly as PPM or PGM.

    Raises:
        ClientLimitError: A limit of this process was met: open files or memory.
        InvalidImageError: The image has an unsupported type, is empty, or cannot be read.
    """
    if _is_pillow(image):
        from deeplab_client import _picture  # noqa: PLC0415 - Pillow is loaded only where it is used

        with _exclusive(image):
            return netpbm(np.asarray(_picture.flattened(image)))
    encoded = _encoded(image)
    return netpbm(pixels(image)) if encoded is None else Upload(encoded)


def decode(image: ImageLike) -> Image.Image:
    """Return an image as a new RGB picture, upright.

    Raises:
        ClientLimitError: A limit of this process was met: open files or memory.
        InvalidImageError: The image has an unsupported type, is empty, or cannot be read.
    """
    from PIL import Image  # noqa: PLC0415 - Pillow is loaded only where it is used

    picture = upright(image)
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture).convert("RGB")
    return picture.convert("RGB") if picture is image or picture.mode != "RGB" else picture


def upright(image: ImageLike) -> Image.Image | NDArray[np.uint8]:
    """Return the pixels of an image, upright: a picture in mode L or RGB, or an array (H, W) or (H, W, 3).

    They may share the caller's memory, but are never a frame of an animation that could advance.

    Raises:
        ClientLimitError: A limit of this process was met: open files or memory.
        InvalidImageError: The image has an unsupported type, is empty, or cannot be read.
    """
    from deeplab_client import _picture  # noqa: PLC0415 - Pillow is loaded only where it is used

    if _is_pillow(image):
        with _exclusive(image):
            flat = _picture.flattened(image)
            return flat.copy() if flat is image and getattr(image, "is_animated", False) else flat
    encoded = _encoded(image)
    return pixels(image) if encoded is None else _picture.opened(encoded)


def may_move(image: ImageLike) -> bool:
    """Return whether an image may be one of several frames in one object, as from `PIL.ImageSequence`."""
    return _is_pillow(image) and type(image).seek is not sys.modules["PIL.Image"].Image.seek


def held(image: ImageLike) -> ImageLike:
    """Return an image that does not change when its iterable advances.

    A frame that cannot be read is returned unchanged, and `encode` refuses it later.
    """
    if _is_pillow(image) and may_move(image):
        with contextlib.suppress(Exception):
            with _exclusive(image):
                moves = getattr(image, "is_animated", False)
            return encode(image).data if moves else image
    return image


class _ReadLocks:
    """Locks for objects that change while they are read."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Drop all locks, as a forked process must, because their holders are not in it."""
        self._guard = threading.Lock()
        # By the id of the object, which stays unique while the object is in use: its lock, and the number of users.
        self._locks: dict[int, tuple[threading.Lock, int]] = {}

    @contextlib.contextmanager
    def exclusive(self, thing: object) -> Generator[None]:
        """Wait until no other call reads an object."""
        with self._guard:
            lock, readers = self._locks.get(id(thing), (threading.Lock(), 0))
            self._locks[id(thing)] = lock, readers + 1
        try:
            with lock:
                yield
        finally:
            with self._guard:
                _, readers = self._locks.pop(id(thing), (lock, 1))
                if readers > 1:
                    self._locks[id(thing)] = lock, readers - 1


_locks = _ReadLocks()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_locks.forget)


@contextlib.contextmanager
def _exclusive(image: Image.Image) -> Generator[None]:
    """Wait until no other call reads a PIL image or the file that it is loaded from."""
    file = getattr(image, "fp", None)
    with _locks.exclusive(image), contextlib.nullcontext() if file is None else _locks.exclusive(file):
        yield


def _is_pillow(image: object) -> TypeIs[Image.Image]:
    # There are no PIL images before the module is loaded. Another thread may be loading it.
    kind = getattr(sys.modules.get("PIL.Image"), "Image", None)
    return kind is not None and isinstance(image, kind)


def _encoded(image: ImageLike) -> bytes | None:
    """Return the bytes of an encoded image, unchecked; None for an image that comes as pixels."""
    if isinstance(image, (str, os.PathLike)):
        path = _path(image)
        data, name = _read_path(path), _named(path)
    elif isinstance(image, (bytes, bytearray, memoryview)):
        if isinstance(image, memoryview):
            _check_view(image)
        name = f"the {type(image).__name__} object"
        check_size(len(image), name)
        data = bytes(image)
    elif _can_be_read(image):
        with _locks.exclusive(image):
            return _read_file(image)
    else:
        return None
    if not data:
        raise InvalidImageError(f"{name} is empty")
    return data


def _path(image: str | os.PathLike[Any]) -> str | bytes:
    try:
        path = os.fspath(image)
    except Exception as error:  # a method of the caller's
        kind = f"{type(image).__module__}.{type(image).__qualname__}"
        raise InvalidImageError(f"cannot get the path of the {kind} object: {reason_of(error)}") from error
    if not path:
        raise InvalidImageError("the path of the image is empty")
    return path


def _named(path: str | bytes) -> str:
    # The path may be a whole image in base64.
    return repr(path) if len(path) <= _LONGEST_NAME else f"{path[:_LONGEST_NAME]!r}... ({len(path)} characters)"


def _read_path(path: str | bytes) -> bytes:
    try:
        file = Path(os.fsdecode(path))
        about = file.stat()
        kind = _NOT_FILES.get(stat.S_IFMT(about.st_mode))
        check_size(about.st_size, _named(path))
        data = file.read_bytes() if kind is None else None
    except InvalidImageError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a null character
        message = f"cannot read the image {_named(path)}: {reason_of(error)}{_remedy(path, error)}"
        raise limit_met(error) or InvalidImageError(message) from error
    if data is None:
        # Reading could wait for a writer, or never end.
        remedy = "" if kind == "a directory" else "; open it and pass the file object, if its data ends"
        raise InvalidImageError(f"cannot read the image {_named(path)}: it is {kind}, not a file{remedy}")
    return data


def _remedy(path: str | bytes, error: Exception) -> str:
    """Return the remedy for a text that is not a path; empty if it may be one."""
    text = os.fsdecode(path[: 2 * _LONGEST_NAME])
    if url := _URL.match(text):
        is_local = url[1].lower() == "file"
        return "; it is a URL: " + ("pass the path of the file" if is_local else "download it and pass the bytes")
    if _DATA_URL.match(text):
        return "; it is a data URL: pass the text after the comma through base64.b64decode"
    if _BASE64.fullmatch(text):
        return "; if it is an image in base64, decode it with base64.b64decode"
    if isinstance(error, ValueError):
        return "; pass the bytes of an image as bytes, not as str"
    if isinstance(error, FileNotFoundError) and not os.path.isabs(text):  # noqa: PTH117 - text of any kind
        return f"; the current folder is {_current_folder()}"
    return ""


def _current_folder() -> str:
    try:
        return repr(os.getcwd())  # noqa: PTH109 - the same
    except OSError:
        return "gone"


def _check_view(view: memoryview) -> None:
    try:
        fits = view.ndim == 1 and view.itemsize == 1
    except ValueError as error:
        raise InvalidImageError(f"the memoryview cannot be read: {reason_of(error)}") from error
    if not fits:
        raise refused(f"a memoryview of format {view.format!r} and shape {view.shape}")


def _can_be_read(image: object) -> TypeIs[SupportsRead]:
    try:
        return callable(getattr(image, "read", None))
    except Exception as error:  # a property of the caller's
        kind = f"{type(image).__module__}.{type(image).__qualname__}"
        raise InvalidImageError(f"cannot get `read` of the {kind} object: {reason_of(error)}") from error


def _read_file(file: Any) -> bytes:  # noqa: ANN401 - anything with a read()
    """Read a file object from its current position to the end."""
    try:
        name = getattr(file, "name", None)
    except Exception:  # noqa: BLE001 - the caller's property; the image may be fine
        name = None
    called = f"the file object {name!r}" if isinstance(name, str) else f"the {type(file).__qualname__} object"
    if isinstance(file, io.TextIOBase):
        raise InvalidImageError(f"{called} is a text file: open it in binary mode, open(path, 'rb')")
    if inspect.iscoroutinefunction(file.read):
        raise InvalidImageError(f"{called} has an asynchronous read: pass the bytes of `await file.read()`")
    try:
        data = file.read()
    except Exception as error:  # closed, opened for writing, or a method of the caller's
        raise _unreadable(file, called, error) from error
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise InvalidImageError(f"{called} returns {type(data).__name__} instead of bytes: open it in binary mode")
    if not data:
        raise InvalidImageError(f"{called} is empty, or was already read to its end: rewind it with seek(0)")
    check_size(len(data), called)
    return bytes(data)


def _unreadable(file: Any, called: str, error: Exception) -> SegmentationError:  # noqa: ANN401 - anything with a read()
    limit = limit_met(error)
    if limit is not None:
        limit.retryable = False  # a second attempt would miss the part that was read
        return limit
    remedy = ""
    with contextlib.suppress(Exception):  # a property of the caller's
        remedy = "; keep it open until the call returns" if file.closed is True else ""
    return InvalidImageError(f"cannot read {called}: {reason_of(error)}{remedy}")
