"""Outlines of what a mask covers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

from deeplab_client._extras import missing

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One connected area of a mask.

    Attributes:
        exterior: Its corners, (N, 2) float64, x and y in pixels from the upper left corner of the image; the last joins
            the first.
        holes: Corners of each hole in it, in the same form.
    """

    exterior: NDArray[np.float64]
    holes: tuple[NDArray[np.float64], ...]

    @property
    def area(self) -> float:
        """Pixels inside, without the holes."""
        return _area(self.exterior) - sum(_area(hole) for hole in self.holes)


def trace(where: NDArray[np.bool_]) -> list[Polygon]:
    """Return the connected areas of an (H, W) mask, largest first.

    Outlines run along the edges between pixels and cut across each corner by half a pixel: each exterior and each hole
    encloses half a pixel less than its pixels.

    Raises:
        ModuleNotFoundError: contourpy is not installed.
    """
    try:
        from contourpy import FillType, contour_generator  # noqa: PLC0415 of an extra
    except ModuleNotFoundError as error:
        raise missing("to_polygons", "contourpy", "polygons") from error
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    if not rows.size:
        return []
    top, left = rows[0], columns[0]
    # contourpy takes a value to stand at its pixel's centre; a frame of zeros closes what touches the image's edge.
    framed = np.pad(where[top : rows[-1] + 1, left : columns[-1] + 1], 1).astype(np.float64)
    generator = contour_generator(z=framed, fill_type=FillType.OuterOffset)
    # What it returns depends on the fill type, which contourpy's types do not say: each outer ring with its holes, and
    # where in it the rings begin and end.
    filled = generator.filled(0.5, 2.0)
    points, offsets = cast("tuple[list[NDArray[np.float64]], list[NDArray[np.uint32]]]", filled)
    corner = (left - 0.5, top - 0.5)
    polygons: list[Polygon] = []
    for outline, ends in zip(points, offsets, strict=True):
        exterior, *holes = (_corners(ring) + corner for ring in np.split(outline, ends[1:-1]))
        polygons.append(Polygon(exterior, tuple(holes)))
    return sorted(polygons, key=lambda polygon: -polygon.area)


def _corners(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a closed ring's points without those on a straight line between their neighbours."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _area(ring: NDArray[np.float64]) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
