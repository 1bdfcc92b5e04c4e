"""Checks of replies: the picture's size, and the pixels of the first reply for that picture and model."""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

WRONG = "wrong mask"  # prefix of every label of a wrong reply
WRONG_REQUEST = f"{WRONG}: the client rejected the reply, because it belongs to another request"
WRONG_SIZE = f"{WRONG}: its size differs from the picture's"
WRONG_PIXELS = f"{WRONG}: its pixels differ from the first reply for this picture"
BETWEEN_WORKERS = "compared between workers"  # suffix of the name of a comparison, which is not a request
WRONG_BETWEEN_WORKERS = f"{WRONG}: two workers got different masks for the same picture"


class FirstReply(NamedTuple):
    """The mask that later replies are compared with. It is a tuple, so that workers can send it.

    Attributes:
        picture: The picture's name.
        model: The model that answered.
        digest: Digest of the shape and the pixels.
        packed: The compressed pixels, which are read only if another reply differs.
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
    """The first replies of a run. Later replies must be equal to them.

    Args:
        tolerance: Share of a mask's pixels that may differ from the first reply's.
    """

    def __init__(self, *, tolerance: float = 0.0) -> None:
        self._tolerance = tolerance
        self._first: dict[tuple[str, str], FirstReply] = {}

    def check(
        self, mask: npt.NDArray[np.uint8], *, picture: str, model: str, size: tuple[int, int]
    ) -> tuple[str | None, FirstReply | None]:
        """Return the label of a wrong mask or None, and the reply if it is the first for this picture and model.

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
        return (None if digest == first.digest or self._is_within_tolerance(mask, first) else WRONG_PIXELS), None

    def agrees(self, other: FirstReply) -> bool:
        """Return whether the first reply of another process equals ours; store it if we have none."""
        first = self._first.setdefault((other.picture, other.model), other)
        same_shape = tuple(first.shape) == tuple(other.shape)
        return first.digest == other.digest or (same_shape and self._is_within_tolerance(other.mask(), first))

    def _is_within_tolerance(self, mask: npt.NDArray[np.uint8], first: FirstReply) -> bool:
        return self._tolerance > 0 and float(np.mean(mask != first.mask())) <= self._tolerance
