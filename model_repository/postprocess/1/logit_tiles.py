"""Coarse logits, interpolated bilinearly in tiles of bounded memory, with only the classes that can win in each tile.

Pure numpy, so that an instance takes tens of megabytes instead of the hundreds of a torch import.

Most of a picture is cheap. If one class is ahead at all four logits around a pixel, it is ahead between them too,
because bilinear interpolation is a weighted mean. So a tile interpolates only the classes that can matter in it.

`postprocess` and `confidence` have the same file, because a step can only import from its own folder; a test compares
the files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# A picture is computed in tiles of 64 x 256 pixels, or as many pixels if it is narrower or lower: a class of a tile
# (66 kB) stays in a core's caches, and the overhead of a numpy call stays small compared with its work. 21 classes take
# 1.4 MB.
_TILE_ROWS, _TILE_COLUMNS = 64, 256
_TILE_PIXELS = _TILE_ROWS * _TILE_COLUMNS
# Limits the matrix of weights of a tile, positions x sources, if a picture is very narrow or very low.
_TILE_SIDE = 2_048

# The margin, in units of the largest logit, by which a class's logits must be below another class's before it is left
# out. It covers rounding: that of four products and three sums is less than a tenth of it.
_MARGIN = 64 * np.float32(np.finfo(np.float32).eps)


class InvalidLogitsError(ValueError):
    """The caller's tensors are invalid; the message says why."""


def max_pixels_in(parameters: Mapping[str, str]) -> int:
    """Return max_pixels from the string parameters of config.pbtxt.

    Raises:
        ValueError: it is missing or not an integer from 1.
    """
    text = parameters.get("max_pixels", "").strip()
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ValueError(f"parameter max_pixels of the model's config.pbtxt must be an integer from 1, got {text!r}")
    return int(text)


def checked_size(
    shape: tuple[int, ...], sizes: npt.NDArray[np.int32], *, class_count: int, max_pixels: int
) -> tuple[int, int]:
    """Return the height and width of the pictures of one request, from the shape of its LOGITS and its SIZE (N, 2).

    Raises:
        InvalidLogitsError: the number of classes is not class_count, the logits are empty, or the sizes differ, are
            below 1 or have more than max_pixels pixels.
    """
    if shape[1] != class_count:
        raise InvalidLogitsError(f"LOGITS has {shape[1]} classes, but this model has {class_count}")
    if 0 in shape:
        raise InvalidLogitsError(f"LOGITS has shape {list(shape)}; every side must be at least 1")
    height, width = (int(side) for side in sizes[0])
    if (sizes != sizes[0]).any():
        raise InvalidLogitsError(f"all rows of SIZE in one request must be equal, got {sizes.tolist()}")
    if height < 1 or width < 1 or height * width > max_pixels:
        raise InvalidLogitsError(
            f"SIZE is {height} x {width}; each side must be at least 1, and the number of pixels at most {max_pixels}"
        )
    return height, width


@dataclass(frozen=True, slots=True)
class _Axis:
    """The source positions of each output position of one axis: floor index, ceiling index, weight of the ceiling."""

    low: npt.NDArray[np.intp]
    high: npt.NDArray[np.intp]
    weight: npt.NDArray[np.float32]

    def part(self, positions: slice) -> "_Axis":
        """Return the axis for some of the output positions."""
        return _Axis(self.low[positions], self.high[positions], self.weight[positions])

    @property
    def cells(self) -> slice:
        """The cells that contain the positions."""
        return slice(self.low[0], self.low[-1] + 1)

    @property
    def sources(self) -> slice:
        """The source positions that the positions read."""
        return slice(self.low[0], self.high[-1] + 1)

    def matrix(self) -> npt.NDArray[np.float32]:
        """Return the weights of the sources in each position: (positions, sources)."""
        first = self.low[0]
        weights = np.zeros((len(self.low), self.high[-1] + 1 - first), np.float32)
        position = np.arange(len(self.low))
        weights[position, self.low - first] = 1 - self.weight
        weights[position, self.high - first] += self.weight
        return weights


def _half_pixel_axis(source: int, target: int) -> _Axis:
    """Return the sampling positions of a bilinear resize with half-pixel centers (align_corners false).

    As PyTorch's `area_pixel_compute_source_index`: x = (i + 0.5) * source / target - 0.5, clamped at 0.
    """
    scale = np.float32(source) / np.float32(target)
    position = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    np.maximum(position, 0, out=position)
    low = np.minimum(position.astype(np.intp), source - 1)
    high = np.minimum(low + 1, source - 1)
    return _Axis(low, high, (position - low).astype(np.float32))


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a picture, and the classes that can matter there.

    Attributes:
        part: the rows and columns of the picture.
        class_ids: (K,) ids in ascending order, at least one.
    """

    part: tuple[slice, slice]
    class_ids: npt.NDArray[np.intp]
    _logits: npt.NDArray[np.float32]
    _rows: _Axis
    _columns: _Axis

    def sources(self) -> npt.NDArray[np.float32]:
        """Return the logits from which the tile is interpolated: (K, h, w)."""
        return self._logits[self.class_ids, self._rows.sources, self._columns.sources]

    def values(self) -> npt.NDArray[np.float32]:
        """Return the interpolated logits of the classes: (K, rows, columns), to be overwritten at will.

        Two small matrix products per class, because numpy gathers columns more slowly than BLAS multiplies by zeros.
        """
        return np.matmul(self._rows.matrix(), np.matmul(self.sources(), self._columns.matrix().T))


def tiles(logits: npt.NDArray[np.float32], height: int, width: int, *, behind: float = 0) -> Iterator[Tile]:
    """Cut a picture into tiles, each with the classes whose interpolated logits can matter there.

    Memory: a few copies of the logits, a few megabytes for a tile, and about 30 bytes per row and per column, which is
    negligible for most pictures and 1.5 GB for one of 1 x 50,000,000.

    Args:
        logits: (C, h, w) float32 at any resolution, C from 1 to 256.
        height: height of the picture in pixels.
        width: width of the picture in pixels.
        behind: a class is left out of a tile if its logit is more than this below the largest one at every pixel. The
            rounding of the interpolation is taken into account.
    """
    _, source_height, source_width = logits.shape
    rows = _half_pixel_axis(source_height, height)
    columns = _half_pixel_axis(source_width, width)
    # Otherwise rows or columns that no position reads would be interpolated along the other axis.
    if height < source_height:
        logits = _blend(logits[:, rows.low], logits[:, rows.high], rows.weight[:, np.newaxis])
        rows = _half_pixel_axis(height, height)
    if width < source_width:
        logits = _blend(logits[:, :, columns.low], logits[:, :, columns.high], columns.weight)
        columns = _half_pixel_axis(width, width)
    contenders = _contenders(logits, behind)
    tile_rows = min(_TILE_SIDE, max(_TILE_ROWS, _TILE_PIXELS // width))
    tile_columns = min(_TILE_SIDE, max(_TILE_COLUMNS, _TILE_PIXELS // height))
    for top in range(0, height, tile_rows):
        in_rows = slice(top, top + tile_rows)
        tile_height = rows.part(in_rows)
        in_band = contenders[:, tile_height.cells].any(axis=1)
        for left in range(0, width, tile_columns):
            in_columns = slice(left, left + tile_columns)
            tile_width = columns.part(in_columns)
            found = np.flatnonzero(in_band[:, tile_width.cells].any(axis=1))
            yield Tile((in_rows, in_columns), found, logits, tile_height, tile_width)


def _contenders(logits: npt.NDArray[np.float32], behind: float) -> npt.NDArray[np.bool_]:
    """Return which classes come within `behind` of the largest value somewhere in a cell.

    Cell (y, x) is between the logits of y, y + 1 and x, x + 1. In a cell a class is never above the largest of its four
    logits and never below the smallest. Drop classes whose maximum is more than `behind` below the best minimum.

    Args:
        logits: (C, h, w) float32.
        behind: as in `tiles`.

    Returns:
        (C, h, w) bool; all True if a logit is not finite, because then these bounds do not hold.
    """
    if not np.isfinite(logits).all():
        return np.ones(logits.shape, np.bool_)
    largest, smallest = logits.copy(), logits.copy()
    for near, far in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:, :, :-1], np.s_[:, :, 1:])):
        np.maximum(largest[near], largest[far], out=largest[near])
        np.minimum(smallest[near], smallest[far], out=smallest[near])
    assured = smallest.max(axis=0)
    assured -= np.float32(behind) + _MARGIN * max(largest.max(), -smallest.min())
    return largest >= assured


def _blend(
    low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return low + weight * (high - low), in the memory of `high`."""
    high -= low
    high *= weight
    high += low
    return high
