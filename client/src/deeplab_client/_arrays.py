"""Images as numpy arrays, or objects that convert to one, and the file in which they are sent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from deeplab_client._errors import InvalidImageError, reason_of
from deeplab_client._limits import limit_met

if TYPE_CHECKING:
    from numpy.typing import NDArray

ACCEPTED = (
    "accepted are a path, the bytes of an encoded image, a binary file object, a PIL image, or an array or tensor in "
    "CPU memory of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), either uint8 or float from 0 to 1"
)

# Bytes: a protobuf message is smaller than 2 GiB, and the lengths in Triton's tensors have 32 bits. The rest of a
# request needs far less than the 1 MiB left here.
_LONGEST_IMAGE = (1 << 31) - (1 << 20)
_CHANNELS = {1, 3, 4}
# Resampling and rounding overshoot 0 and 1 a little. Values nearest to the first or last step are clipped to it.
_HALF_STEP = 1 / 510

_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")
_NOT_IN_NUMPY = re.compile(r"bfloat16|float8", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Upload:
    """An image as it is sent.

    Attributes:
        data: The encoded image.
        size: Its height and width as shown, if it came as pixels; None if it came encoded.
    """

    data: bytes
    size: tuple[int, int] | None = None


class SupportsArray(Protocol):
    """An object that numpy converts to an array, such as a tensor of PyTorch, TensorFlow or JAX."""

    def __array__(self, *args: Any, **kwargs: Any) -> NDArray[Any]:  # noqa: ANN401 - numpy's protocol
        ...


class SupportsDLPack(Protocol):
    """An object that shares its memory through DLPack."""

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - DLPack's protocol
        ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


def pixels(image: object) -> NDArray[np.uint8]:
    """Return (H, W) or (H, W, 3) uint8 pixels; a view if nothing had to change.

    Raises:
        InvalidImageError: `image` is not an array, or its dtype, shape or range is not accepted.
    """
    array, kind = _array(image)
    found = f"the {kind} of dtype {array.dtype} and shape {array.shape}"
    flat = _without_alpha(array, found)
    if flat.dtype != np.uint8 and flat.dtype.kind != "f":
        raise refused(found, _remedy(flat.dtype))
    return flat if flat.dtype == np.uint8 else _from_floats(flat, found)


def refused(found: str, remedy: str = "") -> InvalidImageError:
    """Return the error for something that is not an image, with the remedy if there is a known one."""
    return InvalidImageError(f"cannot use {found} as an image{remedy and f': {remedy}'}; {ACCEPTED}")


def check_size(size: int, name: str) -> None:
    """Refuse an image that is too large for a request.

    Raises:
        InvalidImageError: It is larger than a request can hold.
    """
    if size > _LONGEST_IMAGE:
        raise InvalidImageError(
            f"{name} has {size} bytes, but a request holds at most {_LONGEST_IMAGE}: scale the image down"
        )


def netpbm(array: NDArray[np.uint8]) -> Upload:
    """Return (H, W) or (H, W, 3) pixels as a PGM or PPM file.

    Raises:
        InvalidImageError: They are too large for a request.
    """
    # https://netpbm.sourceforge.net/doc/ppm.html: a line of text, then the pixels as they lie in memory.
    magic = "P5" if array.ndim == 2 else "P6"  # noqa: PLR2004 - height, width
    height, width = array.shape[:2]
    check_size(array.size, f"the picture of {width} x {height} pixels")
    header = f"{magic} {width} {height} 255\n".encode()
    return Upload(b"".join((header, np.ascontiguousarray(array).data)), (height, width))


def _array(image: object) -> tuple[NDArray[Any], str]:
    """Return the image as an array, and its name for messages."""
    if isinstance(image, np.ma.MaskedArray):
        raise refused("a masked array", "fill its masked pixels, array.filled(0)")
    if isinstance(image, np.ndarray):
        return image.view(np.ndarray), "array"
    kind = _kind(image)
    try:
        if hasattr(image, "__array__"):
            return np.asarray(image), kind
        if hasattr(image, "__dlpack__"):
            foreign: Any = image
            return np.from_dlpack(foreign), kind
    # Each library raises errors of its own: TypeError, RuntimeError, ValueError, BufferError and others.
    except Exception as error:
        device = getattr(image, "device", None)
        where = "" if device is None else f" on device {device}"
        message = f"cannot convert the {kind}{where} to a numpy array: {reason_of(error)}"
        remedy = ""  # otherwise PyTorch's message has one
        if _NOT_IN_NUMPY.search(str(error)):
            remedy = "; convert it first, a torch tensor with .float()"
        elif str(device) != "cpu":
            remedy = "; move it to the CPU first, a torch tensor with .detach().cpu()"
        raise limit_met(error) or InvalidImageError(f"{message}{remedy}; {ACCEPTED}") from error
    raise refused(kind if image is None else f"an object of type {kind}")


def _kind(image: object) -> str:
    if image is None:
        return "None"
    name = type(image).__qualname__
    return name if type(image).__module__ == "builtins" else f"{type(image).__module__}.{name}"


def _remedy(dtype: np.dtype[Any]) -> str:
    if dtype == np.bool_:
        return "convert booleans with array.astype(np.uint8) * 255"
    if "float" in dtype.name:  # a float type that numpy itself lacks
        return "convert it with array.astype(np.float32)"
    return "scale the values to 0..255 and cast them to uint8"


def _without_alpha(array: NDArray[Any], found: str) -> NDArray[Any]:
    # If the last axis is as short as a pixel, it holds the channels.
    if array.ndim == 3 and array.shape[2] > max(_CHANNELS) and array.shape[0] in _CHANNELS:  # noqa: PLR2004 - C, H, W
        raise refused(found, "move the channels to the last axis, array.transpose(1, 2, 0) or tensor.permute(1, 2, 0)")
    if array.ndim == 4:  # noqa: PLR2004 - N, H, W, C
        raise refused(found, "pass one image, not a batch")
    if array.dtype == np.uint8 and array.size == max(array.shape, default=0) and _is_encoded(array):
        remedy = "if it holds the bytes of an encoded image, as from cv2.imencode, pass array.tobytes()"
        raise refused(found, remedy)
    if array.ndim not in {2, 3} or (array.ndim == 3 and array.shape[2] not in _CHANNELS):  # noqa: PLR2004 - H, W, C
        raise refused(found)
    if array.size == 0:
        raise refused(f"{found}, which is empty,")
    if array.ndim == 2:  # noqa: PLR2004 - height, width
        return array
    return array[:, :, 0] if array.shape[2] == 1 else array[:, :, :3]


def _is_encoded(array: NDArray[np.uint8]) -> bool:
    """Return whether a row or column of bytes starts like an image file: cv2.imencode has returned both."""
    return array.ndim == 1 or array.ravel()[:4].tobytes().startswith(_SIGNATURES)


def _from_floats(array: NDArray[Any], found: str) -> NDArray[np.uint8]:
    low, high = float(array.min()), float(array.max())
    if not (low >= -_HALF_STEP and high <= 1 + _HALF_STEP):  # both are false for NaN
        if np.isnan(low):
            raise refused(f"{found}, which contains NaN,")
        remedy = "divide it by 255" if low >= 0 and high <= 255 else ""  # noqa: PLR2004 - the range of uint8
        raise refused(f"{found} with values from {low:g} to {high:g}", remedy)
    # In half precision 255 times a value would be off by up to a sixteenth.
    scaled = np.multiply(array, 255, dtype=np.promote_types(array.dtype, np.float32))
    return np.clip(np.rint(scaled, out=scaled), 0, 255, out=scaled).astype(np.uint8)
