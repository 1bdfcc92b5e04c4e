"""The pixels of each class, or of each connected area of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_client._errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """Pixels of one class that become one annotation, detection or entry.

    Attributes:
        class_id: The class.
        where: The pixels, (h, w) bool, cropped to their bounds.
        top: The row of the image at which `where` starts.
        left: The column of the image at which `where` starts.
        shape: Height and width of the image.
        pixels: Number of pixels.
        score: Mean confidence of the pixels, 0 to 1; None if the result has no confidence.
    """

    class_id: int
    where: NDArray[np.bool_]
    top: int
    left: int
    shape: tuple[int, int]
    pixels: int
    score: float | None

    def in_image(self) -> NDArray[np.bool_]:
        """Return where the pixels are in the image, (H, W) bool."""
        whole = np.zeros(self.shape, np.bool_)
        height, width = self.where.shape
        whole[self.top : self.top + height, self.left : self.left + width] = self.where
        return whole


def areas(
    mask: NDArray[np.uint8],
    confidence: NDArray[np.uint8] | None,
    *,
    background: bool,
    components: bool = False,
    min_area: int = 1,
) -> list[Area]:
    """Return the pixels of each class, by class id, or its connected areas, largest first.

    Args:
        mask: Class ids, (H, W) uint8.
        confidence: Confidence of each pixel, (H, W) uint8, 255 is 1.0.
        background: Whether class 0 is a background, which is left out.
        components: Return each connected area by itself.
        min_area: Leave out areas with fewer pixels.

    Raises:
        ModuleNotFoundError: `components` needs scipy, which is not installed.
    """
    found: list[Area] = []
    for class_id in np.unique(mask).tolist():
        if background and class_id == 0:
            continue
        top, left, bottom, right = bounds(mask == class_id)
        whole = mask[top:bottom, left:right] == class_id
        parts: list[Area] = []
        for where, row, column in _components(whole) if components else [(whole, 0, 0)]:
            pixels = int(np.count_nonzero(where))
            if pixels < min_area:
                continue
            y, x = top + row, left + column
            score = None
            if confidence is not None:
                cut = confidence[y : y + where.shape[0], x : x + where.shape[1]]
                score = float(cut[where].mean()) / 255
            parts.append(Area(class_id, where, y, x, (mask.shape[0], mask.shape[1]), pixels, score))
        found += sorted(parts, key=lambda part: -part.pixels)
    return found


def _components(where: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.bool_], int, int]]:
    """Yield each connected area of a mask, cropped to its bounds, with its first row and column."""
    try:
        from scipy import ndimage  # noqa: PLC0415 # pyright: ignore[reportMissingTypeStubs] - an extra without types
    except ModuleNotFoundError as error:
        if error.name != "scipy":
            raise
        raise missing_extra("components=True", "scipy", "components") from error
    functions: Any = ndimage
    labels, _ = functions.label(where, structure=np.ones((3, 3)))
    for label, (rows, columns) in enumerate(functions.find_objects(labels), 1):
        yield labels[rows, columns] == label, rows.start, columns.start


def bounds(where: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return top, left, bottom and right of the true pixels; bottom and right are exclusive."""
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
