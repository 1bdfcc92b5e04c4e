"""Whether replies are right: of the picture's size, with the pixels of the first reply for that picture and model."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

WRONG = "wrong mask"  # how every label of a wrong reply begins
WRONG_REQUEST = f"{WRONG}: the client rejected the reply, because it belongs to another request"
WRONG_SIZE = f"{WRONG}: its size differs from the picture's"
WRONG_PIXELS = f"{WRONG}: its pixels differ from the first reply for this picture"
BETWEEN_WORKERS = "compared between workers"  # how the name of a comparison ends, which is no request
WRONG_BETWEEN_WORKERS = f"{WRONG}: two workers got different masks for the same picture"


class FirstReply(NamedTuple):
    """The mask that others are compared with; a tuple, so that workers can send it.

    Attributes:
        picture: The picture's name.
        model: The model that answered.
        digest: Of the shape and the pixels.
        packed: The pixels, compressed: they are only read where others differ.
        shape: Rows and columns.
    """

    picture: str
    model: str
    digest: bytes
    packed: bytes
    shape: tuple[int, int]

    def mask(self) -> npt.NDArray[np.uint8]:
        """Return the mask, read-only."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.shape)


class FirstReplies:
    """The first replies of a run, which later ones must equal.

    Args:
        tolerance: Share of a mask's pixels that may differ from the first reply's.
    """

    def __init__(self, *, tolerance: float = 0.0) -> None:
        self._tolerance = tolerance
        self._first: dict[tuple[str, str], FirstReply] = {}

    def check(
        self, mask: npt.NDArray[np.uint8], *, picture: str, model: str, size: tuple[int, int]
    ) -> tuple[str | None, FirstReply | None]:
        """Return what is wrong with a mask, if anything, and the reply itself if it is a first one.

        Args:
            mask: (H, W) class ids.
            picture: The picture's name.
            model: The model that answered.
            size: The picture's width and height as shown.
        """
        rows, columns = mask.shape
        if (columns, rows) != size:
            return WRONG_SIZE, None
        pixels = np.ascontiguousarray(mask).data
        digest = hashlib.blake2b(pixels, digest_size=16, person=b"%dx%d" % (rows, columns)).digest()
        first = self._first.get((picture, model))
        if first is None:
            packed = zlib.compress(pixels, 1)
            first = self._first[picture, model] = FirstReply(picture, model, digest, packed, (rows, columns))
            return None, first
        return (None if digest == first.digest or self._near(mask, first) else WRONG_PIXELS), None

    def agrees(self, other: FirstReply) -> bool:
        """Return whether another process's first reply is ours; keep it where we have none."""
        first = self._first.setdefault((other.picture, other.model), other)
        same_shape = tuple(first.shape) == tuple(other.shape)
        return first.digest == other.digest or (same_shape and self._near(other.mask(), first))

    def _near(self, mask: npt.NDArray[np.uint8], first: FirstReply) -> bool:
        return self._tolerance > 0 and float(np.mean(mask != first.mask())) <= self._tolerance
