"""The outlines of a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from deeplab_client._areas import bounds
from deeplab_client._errors import missing_extra

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One connected area of a mask.

    Attributes:
        exterior: Corners of the outline, (N, 2) float64, x and y in pixels from the upper left corner of the image. The
            last corner connects to the first, which is not repeated.
        holes: Corners of each hole, in the same form.
    """

    exterior: NDArray[np.float64]
    holes: tuple[NDArray[np.float64], ...]

    @property
    def area(self) -> float:
        """Area in pixels, without the holes."""
        return abs(_signed_area(self.exterior)) - sum(abs(_signed_area(hole)) for hole in self.holes)

    def simplify(self, tolerance: float) -> Polygon:
        """Return a polygon with fewer corners, by the algorithm of Douglas and Peucker.

        Each ring is simplified separately. A hole that becomes a line is left out. With a large tolerance, rings may
        cross: `shapely.geometry.shape(polygon).simplify(tolerance)` prevents that.

        Args:
            tolerance: Largest distance of a dropped corner from the new outline, in pixels, 0 or more.

        Raises:
            ValueError: `tolerance` is negative or not a number.
        """
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be 0 or more pixels, got {tolerance!r}")
        holes = (_simplified(hole, tolerance) for hole in self.holes)
        exterior = _simplified(self.exterior, tolerance)
        if _signed_area(exterior) == 0:  # only a line would be left
            exterior = self.exterior
        return Polygon(exterior, tuple(hole for hole in holes if _signed_area(hole) != 0))

    @property
    def __geo_interface__(self) -> dict[str, Any]:
        """The polygon as a GeoJSON mapping, for shapely, geopandas and `json.dumps`.

        Rings are closed. By RFC 7946, the exterior has a positive area in x and y, and holes have a negative one. On a
        screen, where y points down, a positive area is clockwise.
        """
        rings = [_closed(self.exterior, 1), *(_closed(hole, -1) for hole in self.holes)]
        return {"type": "Polygon", "coordinates": rings}


def trace(where: NDArray[np.bool_]) -> list[Polygon]:
    """Return the connected areas of an (H, W) mask, largest first; pixels that touch at a corner are connected.

    Outlines run along the edges between pixels and cut across each corner by half a pixel: each exterior and each hole
    encloses half a pixel less than its pixels.

    Raises:
        ModuleNotFoundError: contourpy is not installed.
    """
    try:
        from contourpy import FillType, contour_generator  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise missing_extra("to_polygons", "contourpy", "polygons") from error
    if not where.any():
        return []
    top, left, bottom, right = bounds(where)
    # contourpy places a value at the center of its pixel. A frame of zeros closes areas at the image's edge.
    framed = np.pad(where[top:bottom, left:right], 1).astype(np.float64)
    generator = contour_generator(z=framed, fill_type=FillType.OuterOffset)
    # The result depends on the fill type, which contourpy's types do not express: each outer ring with its holes, and
    # the offsets at which the rings start and end.
    # A little below one half, because if two pixels touch at a corner, the value between them is exactly one half.
    filled = generator.filled(0.5 - 1e-6, 2.0)
    points, offsets = cast("tuple[list[NDArray[np.float64]], list[NDArray[np.uint32]]]", filled)
    corner = (left - 0.5, top - 0.5)
    polygons: list[Polygon] = []
    for outline, ends in zip(points, offsets, strict=True):
        exterior, *holes = (_corners(np.round(ring * 2) / 2) + corner for ring in np.split(outline, ends[1:-1]))
        polygons.append(Polygon(exterior, tuple(holes)))
    return sorted(polygons, key=lambda polygon: -polygon.area)


def _corners(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the points of a closed ring without those on a straight line between their neighbors."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _signed_area(ring: NDArray[np.float64]) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _closed(ring: NDArray[np.float64], sign: int) -> list[list[float]]:
    """Return a closed ring whose signed area has the given sign."""
    points = ring if _signed_area(ring) * sign > 0 else ring[::-1]
    return np.concatenate([points, points[:1]]).tolist()


def _simplified(ring: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Return the corners of a ring that the algorithm of Douglas and Peucker keeps."""
    points = np.concatenate([ring, ring[:1]])
    far = int(np.argmax(np.hypot(*(ring - ring[0]).T)))
    keep = np.zeros(len(points), np.bool_)
    keep[[0, far]] = True
    pending = [(0, far), (far, len(ring))]
    while pending:
        first, last = pending.pop()
        if last - first < 2:  # noqa: PLR2004 - no corner between them
            continue
        between = points[first + 1 : last] - points[first]
        line = points[last] - points[first]
        share = np.clip(between @ line / (line @ line), 0, 1)
        distances = np.hypot(*(between - share[:, np.newaxis] * line).T)
        middle = int(np.argmax(distances))
        if distances[middle] > tolerance:
            middle += first + 1
            keep[middle] = True
            pending += [(first, middle), (middle, last)]
    return ring[keep[:-1]]
