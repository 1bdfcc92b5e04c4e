"""The result in the formats of others, against their own libraries."""

from __future__ import annotations

import copy
import io
import json
import pickle
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import coco as reference_coco
from pycocotools import mask as reference
from results import segmentation

from deeplab_client import Polygon, Segmentation, Timings, UnknownClassError, voc

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.unit


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


@masks
def test_run_lengths_equal_those_of_pycocotools(where: NDArray[np.bool_]) -> None:
    rle = cats(where).to_rle("cat")
    assert rle == reference.encode(np.asfortranarray(where, np.uint8))
    assert (reference.decode(rle) == where).all()


def area_inside(polygon: Polygon, height: int, width: int) -> NDArray[np.bool_]:
    """Fill a polygon with pycocotools, hole by hole."""
    rings = [ring.ravel().tolist() for ring in (polygon.exterior, *polygon.holes)]
    exterior, *holes = (reference.decode(rle) > 0 for rle in reference.frPyObjects(rings, height, width))
    for hole in holes:
        exterior &= ~hole
    return exterior


@pytest.mark.parametrize("name", [name for name in MASKS if not name.startswith(("noise", "chequers", "long"))])
def test_polygons_fill_to_the_mask_again(name: str) -> None:
    where = MASKS[name]
    polygons = cats(where).to_polygons("cat")
    filled = np.zeros_like(where)
    for polygon in polygons:
        filled |= area_inside(polygon, where.shape[0], where.shape[1])
    # Filling rounds to pixels; where the outline crosses a corner, either side is right.
    outline = sum(len(ring) for polygon in polygons for ring in (polygon.exterior, *polygon.holes))
    assert np.count_nonzero(filled != where) <= max(0.01 * where.sum(), 0.25 * outline)


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


def test_annotations_load_in_pycocotools(tmp_path: Path) -> None:
    mask = (blobs(1) * 8).astype(np.uint8)
    mask[60:80, 100:] = 15
    results = {7: segmentation(mask), 9: segmentation(np.zeros((4, 6), np.uint8)), 12: segmentation(mask[::-1].copy())}
    annotations: list[Any] = []
    for image_id, result in results.items():
        annotations += result.to_coco(image_id=image_id, first_id=len(annotations) + 1)
    images = [{"id": i, "height": r.mask.shape[0], "width": r.mask.shape[1]} for i, r in results.items()]
    file = tmp_path / "annotations.json"
    file.write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": results[7].coco_categories()})
    )
    loaded: Any = reference_coco.COCO(str(file))  # its types know of polygons only
    assert loaded.getCatIds(catNms=["cat", "person"]) == [8, 15]
    assert loaded.getCatIds() == list(range(1, 21)), "the background is no category"
    for image_id, result in results.items():
        again = np.zeros_like(result.mask)
        for annotation in loaded.loadAnns(loaded.getAnnIds(imgIds=[image_id])):
            where = loaded.annToMask(annotation) > 0
            again[where] = annotation["category_id"]
            rle = loaded.annToRLE(annotation)
            assert annotation["bbox"] == reference.toBbox(rle).tolist()
            assert annotation["area"] == reference.area(rle)
            assert annotation["iscrowd"] == 0
        assert (again == result.mask).all()
    assert [annotation["id"] for annotation in annotations] == [1, 2, 3, 4]


def two_cats() -> NDArray[np.bool_]:
    """Return two areas, the second of which hangs together at a corner, and a speck."""
    where = np.zeros((20, 30), np.bool_)
    where[2:5, 2:5] = True
    where[8:12, 10:14] = True
    where[12:16, 14:18] = True
    where[18, 28] = True
    return where


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
def test_each_connected_area_is_an_object() -> None:
    where = two_cats()
    result = cats(where)
    assert len(result.to_coco(image_id=1)) == 1
    annotations = result.to_coco(image_id=1, first_id=5, components=True)
    assert [annotation["area"] for annotation in annotations] == [32, 9, 1]
    assert [annotation["id"] for annotation in annotations] == [5, 6, 7]
    assert [annotation["bbox"] for annotation in annotations] == [[10, 8, 8, 8], [2, 2, 3, 3], [28, 18, 1, 1]]
    runs: list[Any] = [annotation["segmentation"] for annotation in annotations]  # its types know bytes only
    masks = [reference.decode(rle) for rle in runs]
    assert (np.sum(masks, axis=0) == where).all()
    assert len(result.to_coco(image_id=1, components=True, min_area=9)) == 2
    found: Any = result.to_supervision(components=True)
    assert found.area.tolist() == [32, 9, 1]
    assert (found.mask == np.stack(masks).astype(np.bool_)).all()
    assert found["class_name"].tolist() == ["cat"] * 3
    assert [len(result.to_supervision(components=True, min_area=least)) for least in (2, 33)] == [2, 0]
    assert [polygon.area for polygon in result.to_polygons("cat")] == [31.5, 8.5, 0.5]


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


def test_ids_without_a_name_are_not_exported() -> None:
    result = cats(ring())
    result.mask[0, 0] = 21
    words = "class id 21; this model has 21 classes, 0 to 20"
    with pytest.raises(UnknownClassError, match=words):
        result.to_coco(image_id=1)
    with pytest.raises(UnknownClassError, match=words):
        result.to_supervision()


# supervision does without OpenCV, but says at its import that it would rather have it.
@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
def test_detections_of_supervision() -> None:
    import supervision  # noqa: PLC0415 it warns when it is imported

    mask = np.zeros((20, 30), np.uint8)
    mask[2:9, 4:11] = 8
    mask[15, 20:30] = 15
    result = segmentation(mask).to_supervision()
    assert isinstance(result, supervision.Detections)
    found: Any = result  # each field of its type may be None
    assert found.class_id.tolist() == [8, 15]
    assert found["class_name"].tolist() == ["cat", "person"]
    assert (found.mask == np.stack([mask == 8, mask == 15])).all()
    assert found.area.tolist() == [49, 10]
    # supervision's boxes end at the last pixel, not behind it.
    assert found.xyxy.tolist() == [[4, 2, 10, 8], [20, 15, 29, 15]]
    drawn = supervision.MaskAnnotator(opacity=1).annotate(np.zeros((20, 30, 3), np.uint8), found)
    assert (drawn.any(axis=2) == (mask > 0)).all()
    assert len(segmentation(np.zeros((4, 6), np.uint8)).to_supervision()) == 0


def outline(result: Segmentation) -> list[Polygon]:
    return result.to_polygons("cat")


def objects(result: Segmentation) -> object:
    return result.to_coco(image_id=1, components=True)


@pytest.mark.parametrize(
    ("module", "call"),
    [("contourpy", outline), ("supervision", Segmentation.to_supervision), ("scipy", objects)],
)
def test_a_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, module: str, call: Callable[[Segmentation], object]
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    extra = {"contourpy": "polygons", "scipy": "components"}.get(module, module)
    with pytest.raises(ImportError, match=rf"needs {module}: pip install './client\[{extra}\]'") as caught:
        call(segmentation(np.full((3, 3), 8, np.uint8)))
    assert caught.value.name == module


@pytest.mark.parametrize("export", [Segmentation.to_rle, Segmentation.to_polygons])
def test_exports_refuse_unknown_classes(export: Callable[[Segmentation, str], object]) -> None:
    with pytest.raises(UnknownClassError, match="'kat'"):
        export(segmentation(np.zeros((3, 3), np.uint8)), "kat")


def test_a_png_holds_ids_and_shows_colours() -> None:
    mask = np.random.default_rng(0).integers(0, 21, (40, 30), np.uint8)
    with Image.open(io.BytesIO(segmentation(mask).to_png())) as picture:
        assert (picture.format, picture.mode) == ("PNG", "P")
        assert (np.asarray(picture) == mask).all()
        assert (np.asarray(picture.convert("RGB")) == voc.PALETTE[mask]).all()
        assert "Warning" not in picture.info
    with Image.open(io.BytesIO(segmentation(mask, weights="none").to_png())) as picture:
        assert (np.asarray(picture) == mask).all()
        assert "UNTRAINED" in picture.info["Warning"]


def shown(result: Any) -> Image.Image:  # noqa: ANN401 IPython calls what is protected to others
    return Image.open(io.BytesIO(result._repr_png_()))


def test_a_notebook_shows_the_colours_and_the_banner() -> None:
    mask = np.full((300, 200), 15, np.uint8)
    with shown(segmentation(mask)) as picture:
        assert picture.size == (200, 300)
        assert picture.convert("RGB").getpixel((100, 200)) == (192, 128, 128)
    with shown(segmentation(mask, weights="none")) as picture:
        assert picture.height > 300
        assert picture.getpixel((1, 1)) == (200, 0, 0)
    large = np.zeros((2500, 4000), np.uint8)
    with shown(segmentation(large)) as picture:
        assert picture.size == (1000, 625)


def test_equality_is_of_values_but_not_of_timings() -> None:
    mask = np.full((3, 4), 8, np.uint8)
    result = segmentation(mask)
    assert result == segmentation(mask.copy(), timings=Timings(1, 2, 3))
    mask[0, 0] = 0
    result = segmentation(mask)
    for different in (
        segmentation(mask[::-1].copy()),
        segmentation(mask[:2]),
        segmentation(mask, weights="none"),
        segmentation(mask, model_version="2"),
        segmentation(mask, model_name="x"),
        segmentation(mask, class_names=("a",) * 21),
    ):
        assert result != different
    assert result != mask.tolist()
    with pytest.raises(TypeError, match="unhashable"):
        hash(result)


def test_results_are_frozen_and_copies_share_the_mask_only_where_they_are_shallow() -> None:
    result = segmentation(np.full((3, 4), 8, np.uint8), timings=Timings(0.1, 0.2, 0.3))
    with pytest.raises(AttributeError):
        result.weights = "x"  # pyright: ignore[reportAttributeAccessIssue] that it cannot is the test
    assert copy.copy(result).mask is result.mask
    for clone in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):  # noqa: S301 made here
        assert clone == result
        assert clone.timings == Timings(0.1, 0.2, 0.3)
        clone.mask[:] = 0
        assert result.mask.all()


def test_without_a_call_there_are_no_timings() -> None:
    assert segmentation(np.zeros((1, 1), np.uint8)).timings is None
