"""Class masks from logits: bilinear upsampling and argmax in tiles of bounded memory.

Pure numpy, so that a postprocess instance takes tens of megabytes and not the hundreds of a torch import.

Most of a picture is no work: where one class is ahead at all four logits around a pixel, it is ahead between them too,
for a bilinear blend is a weighted mean. So each tile interpolates those classes alone that can win somewhere in it, and
a tile with one such class is filled with it (`_contenders`). The masks are those of the whole computation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

# A mask is made in tiles of 64 x 256 pixels, of as many pixels where it is narrower or less high: a class of a tile
# (66 kB) stays in a core's caches, and the interpreter's cost of a numpy call stays small beside the call's work. All
# of 21 classes take 1.4 MB.
_TILE_ROWS, _TILE_COLUMNS = 64, 256
_TILE_PIXELS = _TILE_ROWS * _TILE_COLUMNS
# Bounds the matrix of weights of a tile, positions x sources, where a mask is very narrow or very low.
_TILE_SIDE = 2_048

# How far below another class's a class's logits must lie before it is left out, in units of the largest logit: blends
# are rounded, and the rounding of four products and three sums makes up for less than a tenth of this.
_MARGIN = 64 * np.float32(np.finfo(np.float32).eps)

# The ids that a uint8 mask can hold.
_MAX_CLASSES = 256


class InvalidLogitsError(ValueError):
    """The caller's tensors cannot become masks; the message says why."""


@dataclass(frozen=True, slots=True)
class Masks:
    """The results of one request.

    Attributes:
        masks: (N, H, W) uint8 class ids.
        class_pixels: (N, C) int64, the number of pixels of each class; a row's sum is H * W.
    """

    masks: npt.NDArray[np.uint8]
    class_pixels: npt.NDArray[np.int64]


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read one class name a line, id 0 first; blank lines at the end are none.

    The rules are those of deeplabv3/repository/class_names.py; a test compares both.

    Raises:
        ValueError: no name, more than the 256 that a uint8 mask can hold, an empty, a repeated or an unprintable one.
    """
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n"))
    if len(names) > _MAX_CLASSES:
        raise ValueError(f"{path.name} has {len(names)} class names; a uint8 mask takes at most {_MAX_CLASSES}")
    if len(set(names)) != len(names) or not all(name and name.isprintable() for name in names):
        raise ValueError(f"{path.name} has an empty, a repeated or an unprintable class name")
    return names


def max_pixels_in(parameters: Mapping[str, str]) -> int:
    """Return the limit on the pixels of a mask that the string parameters of config.pbtxt state.

    Raises:
        ValueError: it is missing or impossible.
    """
    text = parameters.get("max_pixels", "").strip()
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ValueError(f"parameter max_pixels of the model's config.pbtxt must be an integer from 1, got {text!r}")
    return int(text)


def postprocess(
    logits: npt.NDArray[np.float32], sizes: npt.NDArray[np.int32], *, class_count: int, max_pixels: int
) -> Masks:
    """Turn the LOGITS (N, C, h, w) and SIZE (N, 2) of one request into its masks.

    Raises:
        InvalidLogitsError: another number of classes than class_count, empty logits, sizes that differ, are below 1
            or have more than max_pixels pixels.
    """
    height, width = checked_size(logits.shape, sizes, class_count=class_count, max_pixels=max_pixels)
    masks = np.empty((len(logits), height, width), np.uint8)
    class_pixels = np.empty((len(logits), class_count), np.int64)
    # Logits that are no numbers give a mask that means nothing; they must not fill the server's log.
    with np.errstate(all="ignore"):
        for index, planes in enumerate(logits):
            class_pixels[index] = segment(planes, masks[index])
    return Masks(masks, class_pixels)


def checked_size(
    shape: tuple[int, ...], sizes: npt.NDArray[np.int32], *, class_count: int, max_pixels: int
) -> tuple[int, int]:
    """Return the height and width of the masks of one request, by the shape of its LOGITS and its SIZE.

    Raises:
        InvalidLogitsError: as `postprocess`.
    """
    if shape[1] != class_count:
        raise InvalidLogitsError(f"LOGITS has {shape[1]} classes, and this model has {class_count}")
    if 0 in shape:
        raise InvalidLogitsError(f"LOGITS has shape {list(shape)}; every side must be at least 1")
    height, width = (int(side) for side in sizes[0])
    if (sizes != sizes[0]).any():
        raise InvalidLogitsError(f"the SIZE of one request must be one, and these are {sizes.tolist()}")
    if height < 1 or width < 1 or height * width > max_pixels:
        raise InvalidLogitsError(
            f"SIZE is {height} x {width}; each must be at least 1, and the pixels at most {max_pixels}"
        )
    return height, width


@dataclass(frozen=True, slots=True)
class _Axis:
    """Where each output position of one axis reads: floor index, ceiling index, weight of the ceiling."""

    low: npt.NDArray[np.intp]
    high: npt.NDArray[np.intp]
    weight: npt.NDArray[np.float32]

    def part(self, positions: slice) -> "_Axis":
        """Return the axis for some of the output positions."""
        return _Axis(self.low[positions], self.high[positions], self.weight[positions])

    @property
    def cells(self) -> slice:
        """The cells that the positions lie in."""
        return slice(self.low[0], self.low[-1] + 1)

    @property
    def sources(self) -> slice:
        """The source positions that are read."""
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
    """Return the sampling positions of a bilinear resize with half-pixel centres (align_corners false).

    As PyTorch's `area_pixel_compute_source_index`: x = (i + 0.5) * source / target - 0.5, clamped at 0.
    """
    scale = np.float32(source) / np.float32(target)
    position = (np.arange(target, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5)
    np.maximum(position, 0, out=position)
    low = np.minimum(position.astype(np.intp), source - 1)
    high = np.minimum(low + 1, source - 1)
    return _Axis(low, high, (position - low).astype(np.float32))


def segment(logits: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Resize logits bilinearly to the mask's size, write the arg max over the classes into it, count the classes.

    Equal values go to the lower class id. Memory beside the mask: a few copies of the logits, a few megabytes for a
    tile, and some 30 bytes for each row and each column: nothing for a picture, 1.5 GB for one of 1 x 50,000,000.

    Args:
        logits: (C, h, w) float32 at any resolution, C from 1 to 256.
        mask: (H, W) uint8, overwritten with class ids.

    Returns:
        (C,) int64, the number of pixels of each class.
    """
    height, width = mask.shape
    classes, source_height, source_width = logits.shape
    rows = _half_pixel_axis(source_height, height)
    columns = _half_pixel_axis(source_width, width)
    # What no position reads would only be interpolated along the other axis.
    if height < source_height:
        logits = _blend(logits[:, rows.low], logits[:, rows.high], rows.weight[:, np.newaxis])
        rows = _half_pixel_axis(height, height)
    if width < source_width:
        logits = _blend(logits[:, :, columns.low], logits[:, :, columns.high], columns.weight)
        columns = _half_pixel_axis(width, width)
    contenders = _contenders(logits)
    tile_rows = min(_TILE_SIDE, max(_TILE_ROWS, _TILE_PIXELS // width))
    tile_columns = min(_TILE_SIDE, max(_TILE_COLUMNS, _TILE_PIXELS // height))
    class_pixels = np.zeros(classes, np.int64)
    for top in range(0, height, tile_rows):
        tile_height = rows.part(slice(top, top + tile_rows))
        in_band = contenders[:, tile_height.cells].any(axis=1)
        for left in range(0, width, tile_columns):
            tile_width = columns.part(slice(left, left + tile_columns))
            found = np.flatnonzero(in_band[:, tile_width.cells].any(axis=1))
            tile = mask[top : top + tile_rows, left : left + tile_columns]
            if len(found) == 1:
                tile.fill(found[0])
                class_pixels[found[0]] += tile.size
                continue
            source = logits[found, tile_height.sources, tile_width.sources]
            class_ids = found.tolist()
            _argmax(_interpolate(source, tile_height, tile_width), class_ids, tile)
            for class_id in class_ids:
                class_pixels[class_id] += np.count_nonzero(tile == class_id)
    return class_pixels


def _contenders(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Tell which classes can be the arg max somewhere in a cell.

    Cell (y, x) is what lies between the logits of y, y + 1 and x, x + 1. No class gets above the largest of its four
    logits there, and none below its smallest; who cannot reach the best of the smallest is out.

    Args:
        logits: (C, h, w) float32.

    Returns:
        (C, h, w) bool. All True where a logit is no finite number, for which none of this holds.
    """
    if not np.isfinite(logits).all():
        return np.ones(logits.shape, np.bool_)
    largest, smallest = logits.copy(), logits.copy()
    for near, far in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:, :, :-1], np.s_[:, :, 1:])):
        np.maximum(largest[near], largest[far], out=largest[near])
        np.minimum(smallest[near], smallest[far], out=smallest[near])
    assured = smallest.max(axis=0)
    assured -= _MARGIN * max(largest.max(), -smallest.min())
    return largest >= assured


def _blend(
    low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return low + weight * (high - low), in the memory of `high`."""
    high -= low
    high *= weight
    high += low
    return high


def _interpolate(source: npt.NDArray[np.float32], rows: _Axis, columns: _Axis) -> npt.NDArray[np.float32]:
    """Return the logits of a tile: (C, rows, columns), from those of `rows.sources` and `columns.sources`.

    Two small matrix products a class: numpy gathers columns more slowly than BLAS multiplies them by zeros.
    """
    return np.matmul(rows.matrix(), np.matmul(source, columns.matrix().T))


def _argmax(values: npt.NDArray[np.float32], class_ids: list[int], mask: npt.NDArray[np.uint8]) -> None:
    """Write the class of the largest of (C, rows, columns) values into the (rows, columns) mask.

    Plane by plane with operations that numpy vectorises; its own argmax over the first axis does not. Class ids
    rise, so the maximum of the ids whose plane beat all before it is the id of the last that did.
    """
    best = values[0]
    greater = np.empty(mask.shape, np.bool_)
    candidate = np.empty(mask.shape, np.uint8)
    mask.fill(class_ids[0])
    for class_id, plane in zip(class_ids[1:], values[1:], strict=True):
        np.greater(plane, best, out=greater)
        np.maximum(plane, best, out=best)
        np.multiply(greater.view(np.uint8), np.uint8(class_id), out=candidate)
        np.maximum(mask, candidate, out=mask)
