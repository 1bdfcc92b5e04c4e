"""The samples of Pillow's images as arrays, without a copy where the image is not too large.

Pillow lends its memory by the Arrow PyCapsule interface; NumPy does not read that, so the C structure behind it is read
here (https://arrow.apache.org/docs/format/CDataInterface.html).
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

# Only an image that lies in one block of memory is lent. Pillow's own blocks end at 16 MiB, and from 32 MiB on malloc
# gives them back to the kernel after each image, which has to clear others for the next.
_pillow: Any = Image.core
_pillow.set_block_size(28 << 20)

_PIECE = 1 << 18  # pixels that are copied at once
_CHANNELS = 4  # Pillow pads red, green and blue to four bytes

_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _ArrowArray(ctypes.Structure):
    """The beginning of struct ArrowArray."""

    _fields_: ClassVar = [
        ("length", ctypes.c_int64),
        ("null_count", ctypes.c_int64),
        ("offset", ctypes.c_int64),
        ("n_buffers", ctypes.c_int64),
        ("n_children", ctypes.c_int64),
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("children", ctypes.POINTER(ctypes.c_void_p)),
    ]


class _Lent:
    """Memory of an image, which lives as long as this does: NumPy's array interface."""

    def __init__(self, image: Image.Image) -> None:
        _, self._owner = image.__arrow_c_array__()
        pixels = _ArrowArray.from_address(_capsule_pointer(self._owner, b"arrow_array"))
        samples = _ArrowArray.from_address(pixels.children[0])  # pixels are lists of four samples
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (image.height, image.width, _CHANNELS),
            "data": (samples.buffers[1], False),  # the first buffer would say which are missing
        }


def samples_of(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return the samples of an RGB image: (height, width, 3 or 4) uint8, of which a fourth channel means nothing.

    The array may be the image's own memory, which it keeps alive.
    """
    image.load()
    try:
        return np.asarray(_Lent(image))
    except ValueError:  # it lies in several blocks
        copy = np.empty((image.height, image.width, 3), np.uint8)
        for rows, piece in pieces(image):
            copy[rows] = piece
        return copy


def pieces(image: Image.Image) -> Iterator[tuple[slice, npt.NDArray[np.int64]]]:
    """Yield the samples of some rows after another, and which rows they are.

    Pillow's own way to all of them holds three copies for a time.
    """
    height = max(1, _PIECE // image.width)
    for top in range(0, image.height, height):
        rows = slice(top, min(top + height, image.height))
        yield rows, np.asarray(image.crop((0, rows.start, image.width, rows.stop)))
