"""COCO's run-length encoding of masks, as pycocotools writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_BITS = 5  # of a character
_MORE = 0x20  # flags that another character follows
_FIRST = 48  # the character of value 0


class Rle(TypedDict):
    """A mask as pycocotools' `encode` gives it and its other functions take it.

    Attributes:
        size: Height and width.
        counts: Lengths of the runs of zeros and ones in turn, down the columns, packed. Always bytes: the type is
            that of pycocotools.
    """

    size: list[int]
    counts: str | bytes


def encode(where: NDArray[np.bool_]) -> Rle:
    """Encode an (H, W) mask."""
    height, width = where.shape
    return {"size": [height, width], "counts": counts(where)}


def counts(where: NDArray[np.bool_]) -> bytes:
    """Return the packed runs of an (H, W) mask."""
    return _packed(_runs(where.ravel(order="F")))


def _runs(flat: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return lengths of runs; the first is of zeros, and 0 where the mask begins with a one."""
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate(([0], edges, [flat.size]))
    if flat.size and flat[0]:
        bounds = np.concatenate(([0], bounds))
    return np.diff(bounds)


def _packed(runs: NDArray[np.int64]) -> bytes:
    """Return what rleToString of maskApi.c (https://github.com/cocodataset/cocoapi) makes of the runs.

    From the fourth on, a run is stored as its difference from the one two before. A number is written in groups of
    five bits, lowest first, until the rest is what the sign of the last group says.
    """
    left = runs.copy()
    left[3:] -= runs[1:-2]
    columns: list[NDArray[np.int64]] = []
    written: list[NDArray[np.bool_]] = []
    more = np.ones(left.shape, np.bool_)
    while more.any():
        group = left & 0x1F
        left >>= _BITS
        written.append(more)
        more = more & (left != np.where(group & 0x10, -1, 0))
        columns.append(group + np.where(more, _MORE, 0) + _FIRST)
    return np.stack(columns, axis=1)[np.stack(written, axis=1)].astype(np.uint8).tobytes()
