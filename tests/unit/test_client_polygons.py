"""The outlines of a result, against shapely."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import shapely
from masks import blobs, cats, masks, ring
from results import segmentation
from shapely.geometry import MultiPolygon, shape

if TYPE_CHECKING:
    from numpy.typing import NDArray

pytestmark = pytest.mark.unit


@masks
def test_the_pixels_inside_are_those_of_the_mask(where: NDArray[np.bool_]) -> None:
    polygons = cats(where).to_polygons("cat")
    shapes: list[Any] = [shape(polygon) for polygon in polygons]
    areas: Any = MultiPolygon(shapes)
    assert areas.is_valid
    shapely.prepare(areas)
    rows, columns = np.indices(where.shape) + 0.5  # their centers
    assert (shapely.contains_xy(areas, columns, rows) == where).all()
    assert [area.area for area in areas.geoms] == [polygon.area for polygon in polygons]
    assert [len(area.interiors) for area in areas.geoms] == [len(polygon.holes) for polygon in polygons]


@masks
def test_polygons_have_the_masks_area_but_for_their_corners(where: NDArray[np.bool_]) -> None:
    polygons = cats(where).to_polygons("cat")
    holes = sum(len(polygon.holes) for polygon in polygons)
    area = sum(polygon.area for polygon in polygons)
    assert area == where.sum() - 0.5 * len(polygons) + 0.5 * holes


def test_polygons_are_in_pixels_of_the_image_with_holes_and_largest_first() -> None:
    outer, inner = cats(ring()).to_polygons("cat")
    assert (outer.exterior.min(axis=0) == (8, 5)).all()
    assert (outer.exterior.max(axis=0) == (32, 25)).all()
    (hole,) = outer.holes
    assert (hole.min(axis=0) == (14, 10)).all()
    assert (hole.max(axis=0) == (26, 20)).all()
    assert outer.area == 20 * 24 - 10 * 12
    assert not inner.holes
    assert inner.area == 2 * 4 - 0.5
    assert len(outer.exterior) == 8, "no points along straight lines"
    assert segmentation(np.zeros((3, 3), np.uint8)).to_polygons("cat") == []


@masks
def test_polygons_are_as_many_as_connected_areas(where: NDArray[np.bool_]) -> None:
    result = cats(where)
    assert len(result.to_polygons("cat")) == len(result.to_coco(image_id=1, components=True))


def test_a_simplified_polygon_is_within_the_tolerance() -> None:
    for polygon in cats(blobs(1)).to_polygons("cat"):
        for tolerance in (0, 0.5, 2, 1000):
            simple = polygon.simplify(tolerance)
            kept = {tuple(corner) for corner in simple.exterior.tolist()}
            assert kept <= {tuple(corner) for corner in polygon.exterior.tolist()}
            assert len(simple.exterior) >= 3
            ends = np.roll(simple.exterior, -1, axis=0)
            for corner in polygon.exterior:
                line, offset = ends - simple.exterior, corner - simple.exterior
                along = np.clip((offset * line).sum(axis=1) / (line * line).sum(axis=1), 0, 1)
                assert np.hypot(*(offset - along[:, np.newaxis] * line).T).min() <= tolerance + 1e-9
            if tolerance == 0:
                assert simple.area == polygon.area
            if tolerance == 2:
                assert len(simple.exterior) < len(polygon.exterior) / 2
            if tolerance == 1000:
                break
    for wrong in (-1, float("nan")):
        with pytest.raises(ValueError, match="tolerance"):
            cats(ring()).to_polygons("cat")[0].simplify(wrong)


def test_a_small_hole_is_simplified_away() -> None:
    outer = cats(ring()).to_polygons("cat")[0]
    assert len(outer.simplify(1).holes) == 1
    assert not outer.simplify(50).holes


def test_polygons_are_geojson() -> None:
    outer = cats(ring()).to_polygons("cat")[0]
    found = json.loads(json.dumps(outer.__geo_interface__))
    assert found["type"] == "Polygon"
    exterior, hole = (np.array(points) for points in found["coordinates"])
    for points, original, sign in ((exterior, outer.exterior, 1), (hole, outer.holes[0], -1)):
        assert (points[0] == points[-1]).all()
        assert {tuple(point) for point in points.tolist()} == {tuple(point) for point in original.tolist()}
        x, y = points.T
        assert np.sign(x[:-1] @ y[1:] - x[1:] @ y[:-1]) == sign, "RFC 7946: exteriors counterclockwise, holes clockwise"
