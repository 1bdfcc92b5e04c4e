"""Exports of the result, checked with the libraries of their formats."""

from __future__ import annotations

import copy
import io
import json
import pickle
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from masks import blobs, cats, masks, ring
from PIL import Image
from pycocotools import coco as reference_coco
from pycocotools import mask as reference
from results import segmentation

from deeplab_client import Polygon, Segmentation, SegmentationClient, Timings, UnknownClassError, voc
from deeplab_client.testing import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.unit


@masks
def test_run_lengths_equal_those_of_pycocotools(where: NDArray[np.bool_]) -> None:
    rle = cats(where).to_rle("cat")
    assert rle == reference.encode(np.asfortranarray(where, np.uint8))
    assert (reference.decode(rle) == where).all()


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
    loaded: Any = reference_coco.COCO(str(file))  # its types only know polygons
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
    """Return two areas, the second of which is connected at a corner, and a single pixel."""
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
    runs: list[Any] = [annotation["segmentation"] for annotation in annotations]  # its types only know bytes
    decoded = [reference.decode(rle) for rle in runs]
    assert (np.sum(decoded, axis=0) == where).all()
    assert len(result.to_coco(image_id=1, components=True, min_area=9)) == 2
    found: Any = result.to_supervision(components=True)
    assert found.area.tolist() == [32, 9, 1]
    assert (found.mask == np.stack(decoded).astype(np.bool_)).all()
    assert found["class_name"].tolist() == ["cat"] * 3
    assert [len(result.to_supervision(components=True, min_area=least)) for least in (2, 33)] == [2, 0]
    assert [polygon.area for polygon in result.to_polygons("cat")] == [31.5, 8.5, 0.5]


def test_ids_without_a_name_are_not_exported() -> None:
    result = cats(ring())
    result.mask[0, 0] = 21
    words = "class id 21, but the model has 21 classes, 0 to 20"
    with pytest.raises(UnknownClassError, match=words):
        result.to_coco(image_id=1)
    with pytest.raises(UnknownClassError, match=words):
        result.to_supervision()


# supervision works without OpenCV, but warns when it is imported.
@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
def test_detections_of_supervision() -> None:
    import supervision  # noqa: PLC0415 - it warns when it is imported

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
    # supervision's boxes end at the last pixel, inclusive.
    assert found.xyxy.tolist() == [[4, 2, 10, 8], [20, 15, 29, 15]]
    drawn = supervision.MaskAnnotator(opacity=1).annotate(np.zeros((20, 30, 3), np.uint8), found)
    assert (drawn.any(axis=2) == (mask > 0)).all()
    assert len(segmentation(np.zeros((4, 6), np.uint8)).to_supervision()) == 0


# Slices of 80 pixels that overlap by half show the small object several times, and the large one in pieces.
@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
@pytest.mark.parametrize(
    ("objects", "options"),
    [
        ("small", {}),
        ("small large", {"overlap_filter": "non_max_merge", "overlap_metric": "ios", "iou_threshold": 0.3}),
    ],
)
def test_supervisions_slicer_finds_each_object_once(objects: str, options: dict[str, Any]) -> None:
    import supervision  # noqa: PLC0415 - it warns when it is imported

    picture = np.zeros((120, 200, 3), np.uint8)
    for name, place in {"small": np.s_[10:20, 45:60], "large": np.s_[50:100, 20:180]}.items():
        picture[place] = 255 * (name in objects)
    fake = FakeTransport(lambda request: np.where(np.asarray(request.picture)[:, :, 0], np.uint8(8), np.uint8(0)))

    with SegmentationClient("fake", transport=fake) as client:

        def found(pixels: NDArray[np.uint8]) -> supervision.Detections:
            return client.segment(pixels, confidence=True).to_supervision(components=True)

        slicer = supervision.InferenceSlicer(found, slice_wh=80, overlap_wh=40, thread_workers=4, **options)
        whole: Any = found(picture)  # its fields may be None
        sliced: Any = slicer(picture)
    assert len(fake.requests) > 6
    assert sorted(sliced.area) == sorted(whole.area)
    assert (sliced.mask.any(axis=0) == whole.mask.any(axis=0)).all()
    assert len(whole.with_nms()) == len(objects.split())


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


def test_a_png_holds_ids_and_shows_colors() -> None:
    mask = np.random.default_rng(0).integers(0, 21, (40, 30), np.uint8)
    with Image.open(io.BytesIO(segmentation(mask).to_png())) as picture:
        assert (picture.format, picture.mode) == ("PNG", "P")
        assert (np.asarray(picture) == mask).all()
        assert (np.asarray(picture.convert("RGB")) == voc.PALETTE[mask]).all()
        assert "Warning" not in picture.info
    with Image.open(io.BytesIO(segmentation(mask, weights="none").to_png())) as picture:
        assert (np.asarray(picture) == mask).all()
        assert "UNTRAINED" in picture.info["Warning"]


def shown(result: Any) -> Image.Image:  # noqa: ANN401 - IPython calls this private method
    return Image.open(io.BytesIO(result._repr_png_()))


def test_a_notebook_shows_the_colors_and_the_banner() -> None:
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
        result.weights = "x"  # pyright: ignore[reportAttributeAccessIssue] - that it cannot is the test
    assert copy.copy(result).mask is result.mask
    for clone in (copy.deepcopy(result), pickle.loads(pickle.dumps(result))):  # noqa: S301 - created here
        assert clone == result
        assert clone.timings == Timings(0.1, 0.2, 0.3)
        clone.mask[:] = 0
        assert result.mask.all()


def test_without_a_call_there_are_no_timings() -> None:
    assert segmentation(np.zeros((1, 1), np.uint8)).timings is None
