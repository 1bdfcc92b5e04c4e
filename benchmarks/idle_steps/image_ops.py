"""In place of the preprocess model's image_ops: its tensors without its work."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

SIZE = (480, 640)
SIDE = 520


class InvalidImageError(ValueError):
    """Never raised."""


class Settings:
    """None are needed."""

    @classmethod
    def from_parameters(cls, _parameters: Mapping[str, str]) -> Settings:
        """Return them."""
        return cls()


@functools.cache
def _tensors(count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    return np.zeros((count, 3, SIDE, SIDE), np.float32), np.array([SIZE] * count, np.int32)


def preprocess(encoded: list[bytes], _settings: Settings) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Return PIXELS (N, 3, 520, 520) float32 and SIZE (N, 2) int32."""
    return _tensors(len(encoded))
