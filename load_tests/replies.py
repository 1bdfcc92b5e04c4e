"""Whether replies are right: of the picture's size, and the pixels of the first reply for that picture and model."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

WRONG = "wrong mask"  # how every label of a wrong reply begins
WRONG_REQUEST = f"{WRONG}: the client refused it, because it belongs to another request"
WRONG_SIZE = f"{WRONG}: not of the picture's size"
WRONG_PIXELS = f"{WRONG}: not the pixels of the first reply for this picture"
BETWEEN_WORKERS = "compared between workers"  # how the name of what no request was ends
WRONG_BETWEEN_WORKERS = f"{WRONG}: two workers got different ones for one picture"


@dataclass(frozen=True, slots=True)
class FirstReply:
    """The mask that others are compared with.

    Attributes:
        digest: Of its shape and pixels.
        packed: Its pixels, compressed: for as long as all is well nobody looks at them.
        shape: Rows and columns.
    """

    digest: bytes
    packed: bytes
    shape: tuple[int, int]

    @classmethod
    def of(cls, mask: npt.NDArray[np.uint8], digest: bytes) -> FirstReply:
        """Keep a mask."""
        rows, columns = mask.shape
        return cls(digest, zlib.compress(mask.tobytes(), 1), (rows, columns))

    def mask(self) -> npt.NDArray[np.uint8]:
        """Return the mask, read-only."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.shape)


class FirstReplies:
    """The first replies of a run, and the verdict on those that follow.

    Args:
        tolerance: Share of a mask's pixels that may differ from the first reply's.
    """

    def __init__(self, *, tolerance: float = 0.0) -> None:
        self._tolerance = tolerance
        self._first: dict[tuple[str, str], FirstReply] = {}

    def check(
        self, mask: npt.NDArray[np.uint8], *, picture: str, model: str, size: tuple[int, int]
    ) -> tuple[str | None, FirstReply | None]:
        """Return what is wrong with a mask, if anything, and the reply to tell others of if it is a first one.

        Args:
            mask: (H, W) class ids.
            picture: The picture's name.
            model: Who answered.
            size: The picture's width and height as shown.
        """
        if mask.shape != (size[1], size[0]):
            return WRONG_SIZE, None
        digest = _digest(mask)
        first = self._first.get((picture, model))
        if first is None:
            first = self._first[picture, model] = FirstReply.of(mask, digest)
            return None, first
        return (None if digest == first.digest or self._near(mask, first) else WRONG_PIXELS), None

    def agrees(self, other: FirstReply, *, picture: str, model: str) -> bool:
        """Tell whether another process's first reply is ours, and keep it where we have none."""
        first = self._first.setdefault((picture, model), other)
        return first.digest == other.digest or (first.shape == other.shape and self._near(other.mask(), first))

    def _near(self, mask: npt.NDArray[np.uint8], first: FirstReply) -> bool:
        return self._tolerance > 0 and float(np.mean(mask != first.mask())) <= self._tolerance


def _digest(mask: npt.NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(mask).data, digest_size=16, person=b"%dx%d" % mask.shape).digest()
