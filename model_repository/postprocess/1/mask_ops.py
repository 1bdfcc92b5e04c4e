"""Class masks from logits: bilinear upsampling and argmax in strips of bounded memory.

Pure numpy, so that a postprocess instance takes tens of megabytes and not the hundreds of a torch import.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

# A mask is made in tiles of at most _TILE_COLUMNS columns, each in strips of about _STRIP_PIXELS pixels: the C
# float32 planes of a strip stay near a core's L2 cache (1.4 MB for 21 classes), and the interpreter's cost of a
# numpy call stays small beside the call's work. With 65 x 65 logits a tile takes 45 MB, whatever the picture's size.
_TILE_COLUMNS = 4_096
_STRIP_PIXELS = 16_384
# Bounds the interpolation matrix of a strip, rows x logit rows, where masks are very narrow.
_STRIP_ROWS = 2_048


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
    """Read one class name a line, id 0 first.

    Raises:
        ValueError: no name, more than the 256 that a uint8 mask can hold, an empty or a repeated one.
    """
    names = tuple(path.read_text(encoding="utf-8").splitlines())
    if not 1 <= len(names) <= _MAX_CLASSES:
        raise ValueError(f"{path.name} has {len(names)} class names; a uint8 mask takes 1 to {_MAX_CLASSES}")
    if not all(names) or len(set(names)) != len(names):
        raise ValueError(f"{path.name} has an empty or a repeated class name")
    return names


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

    Equal values go to the lower class id. Columns are interpolated first, at the logits' own height, then rows.
    The memory taken beside the mask does not grow with the picture (see _TILE_COLUMNS).

    Args:
        logits: (C, h, w) float32 at any resolution, C from 1 to 256.
        mask: (H, W) uint8, overwritten with class ids.

    Returns:
        (C,) int64, the number of pixels of each class.
    """
    height, width = mask.shape
    classes, source_height, source_width = logits.shape
    columns = _half_pixel_axis(source_width, width)
    rows = _half_pixel_axis(source_height, height)
    if height < source_height:  # Rows that no output row reads would only be interpolated along their length.
        logits = _blend(logits[:, rows.low], logits[:, rows.high], rows.weight[:, np.newaxis])
        rows = _half_pixel_axis(height, height)
    class_pixels = np.zeros(classes, np.int64)
    for left in range(0, width, _TILE_COLUMNS):
        tile = slice(left, left + _TILE_COLUMNS)
        wide = _interpolate_columns(logits, columns.part(tile))
        strip_rows = min(_STRIP_ROWS, max(1, _STRIP_PIXELS // wide.shape[2]))
        for top in range(0, height, strip_rows):
            strip = slice(top, top + strip_rows)
            part = mask[strip, tile]
            _argmax(_interpolate_rows(wide, rows.part(strip)), part)
            class_pixels += np.bincount(part.reshape(-1), minlength=classes)
    return class_pixels


def _interpolate_columns(logits: npt.NDArray[np.float32], columns: _Axis) -> npt.NDArray[np.float32]:
    """Return (C, h, w) logits at the target columns: (C, h, columns)."""
    return _blend(logits[:, :, columns.low], logits[:, :, columns.high], columns.weight)


def _blend(
    low: npt.NDArray[np.float32], high: npt.NDArray[np.float32], weight: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Return low + weight * (high - low), in the memory of `high`."""
    high -= low
    high *= weight
    high += low
    return high


def _interpolate_rows(wide: npt.NDArray[np.float32], rows: _Axis) -> npt.NDArray[np.float32]:
    """Return (C, h, W) logits at the target rows: (C, rows, W), as one small matrix product a class."""
    first = rows.low[0]
    source = wide[:, first : rows.high[-1] + 1]
    matrix = np.zeros((len(rows.low), source.shape[1]), np.float32)
    target = np.arange(len(rows.low))
    matrix[target, rows.low - first] = 1 - rows.weight
    matrix[target, rows.high - first] += rows.weight
    return np.matmul(matrix, source)


def _argmax(values: npt.NDArray[np.float32], mask: npt.NDArray[np.uint8]) -> None:
    """Write the index of the largest of (C, rows, W) values into the (rows, W) mask.

    Plane by plane with operations that numpy vectorises; its own argmax over the first axis does not. Class ids
    rise, so the maximum of the ids whose plane beat all before it is the id of the last that did.
    """
    best = values[0]
    greater = np.empty(mask.shape, np.bool_)
    candidate = np.empty(mask.shape, np.uint8)
    mask.fill(0)
    for class_id, plane in enumerate(values[1:], start=1):
        np.greater(plane, best, out=greater)
        np.maximum(plane, best, out=best)
        np.multiply(greater.view(np.uint8), np.uint8(class_id), out=candidate)
        np.maximum(mask, candidate, out=mask)
