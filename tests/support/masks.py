"""Masks of one class, of every shape that an outline or a run may have trouble with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image
from results import segmentation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deeplab_client import Segmentation


def cats(where: NDArray[np.bool_]) -> Segmentation:
    return segmentation(np.where(where, np.uint8(8), np.uint8(0)))


def blobs(seed: int, height: int = 90, width: int = 130) -> NDArray[np.bool_]:
    """Return smooth areas, some with holes, some cut by the edge."""
    small = np.random.default_rng(seed).random((9, 13), np.float32)
    return np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)) > 0.55


def ring() -> NDArray[np.bool_]:
    where = np.zeros((30, 40), np.bool_)
    where[5:25, 8:32] = True
    where[10:20, 14:26] = False
    where[14:16, 18:22] = True
    return where


MASKS = {
    "none": np.zeros((7, 5), np.bool_),
    "all": np.ones((7, 5), np.bool_),
    "one pixel of one": np.ones((1, 1), np.bool_),
    "no pixel of one": np.zeros((1, 1), np.bool_),
    "first": np.eye(1, 35, 0, dtype=np.bool_).reshape(7, 5),
    "last": np.eye(1, 35, 34, dtype=np.bool_).reshape(7, 5),
    "a row": np.ones((1, 4000), np.bool_),
    "a column": np.arange(4000).reshape(-1, 1) % 3 == 0,
    "chequers": np.indices((17, 23)).sum(axis=0) % 2 == 0,
    "ring": ring(),
    "frame": np.pad(np.zeros((40, 50), np.bool_), 3, constant_values=True),
    "long runs": np.repeat(np.arange(40) % 2 == 1, 50_000).reshape(2000, 1000),
    **{f"blobs {seed}": blobs(seed) for seed in range(8)},
    **{
        f"noise {density}": np.random.default_rng(5).random((61, 47)) < density
        for density in (0.01, 0.3, 0.5, 0.7, 0.99)
    },
}
masks = pytest.mark.parametrize("where", MASKS.values(), ids=MASKS)
