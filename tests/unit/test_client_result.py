"""The result: numbers, pictures, and the marks of untrained output."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as reference
from results import segmentation

from deeplab_client import InvalidImageError, Segmentation, UnknownClassError, voc

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.unit

RED = (200, 0, 0)


def halves(height: int = 6, width: int = 10, class_id: int = 8) -> NDArray[np.uint8]:
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = class_id
    return mask


def noise(height: int = 6, width: int = 10) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def test_voc_names_and_palette() -> None:
    assert len(voc.CLASS_NAMES) == 21
    known_names = {0: "__background__", 1: "aeroplane", 8: "cat", 11: "diningtable", 15: "person", 20: "tvmonitor"}
    assert {class_id: voc.CLASS_NAMES[class_id] for class_id in known_names} == known_names
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {class_id: tuple(voc.PALETTE[class_id]) for class_id in known} == known
    assert voc.PALETTE.shape == (256, 3)
    assert voc.PALETTE.dtype == np.uint8
    assert not voc.PALETTE.flags.writeable


def test_lookups() -> None:
    mask = halves()
    mask[0, :3] = 12
    result = segmentation(mask)
    assert result.pixel_counts == {"cat": 30, "__background__": 27, "dog": 3}
    assert result.top_class == "cat"
    assert result.fraction("dog") == pytest.approx(0.05)
    assert result.fraction("bus") == 0
    assert result["cat"].dtype == np.bool_
    assert (result["cat"] == (mask == 8)).all()
    assert not result["bus"].any()


def test_everything_is_of_the_mask_as_it_is_now() -> None:
    result = segmentation(np.zeros((2, 5), np.uint8))
    result.mask[0] = 8
    assert result.pixel_counts == {"__background__": 5, "cat": 5}
    assert result.fractions == {"__background__": 0.5, "cat": 0.5}
    assert result.top_class == "cat"
    assert result.fraction("cat") == 0.5
    assert "cat" in result
    assert "cat 50.0%" in repr(result)
    assert result.to_dict()["top_class"] == "cat"
    picture = noise(100, 100)
    large = segmentation(np.zeros((100, 100), np.uint8))
    before = large.overlay(picture, legend=True)
    large.mask[:] = 8
    panels = [np.asarray(drawn)[:, 100:] for drawn in (before, large.overlay(picture, legend=True))]
    assert [(panel == voc.PALETTE[8]).all(axis=2).any() for panel in panels] == [False, True]


def test_an_id_without_a_name_breaks_no_repr() -> None:
    result = segmentation(halves())
    result.mask[0, 0] = 21
    assert "cat 50.0%" in repr(result)
    assert result.top_class == "cat"
    assert "cat" in result
    for count in (lambda: result.pixel_counts, lambda: result.fractions, result.to_dict):
        with pytest.raises(UnknownClassError, match="class id 21"):
            count()


def test_sizes_and_the_mask_of_a_class() -> None:
    result = segmentation(halves(), request_id="abc")
    assert (result.width, result.height) == (10, 6)
    assert (result.mask_of("cat") == result["cat"]).all()
    assert result.request_id == "abc"
    assert result == segmentation(halves(), request_id="def")


def test_a_dict_is_json() -> None:
    result = segmentation(halves(), request_id="abc")
    found = json.loads(json.dumps(result.to_dict()))
    assert found.pop("classes") == [
        {"id": 0, "name": "__background__", "pixels": 30, "fraction": 0.5, "confidence": None, "rle": None},
        {"id": 8, "name": "cat", "pixels": 30, "fraction": 0.5, "confidence": None, "rle": None},
    ]
    assert found == {
        "width": 10,
        "height": 6,
        "model_name": "segment_resnet50",
        "model_version": "1",
        "weights": "COCO_WITH_VOC_LABELS_V1",
        "untrained": False,
        "background": "__background__",
        "request_id": "abc",
        "top_class": "cat",
        "mean_confidence": None,
    }
    runs = {each["name"]: each["rle"] for each in json.loads(json.dumps(result.to_dict(rle=True)))["classes"]}
    assert (reference.decode(runs["cat"]) == result["cat"]).all()


def test_without_a_background_class_0_counts_and_is_drawn() -> None:
    mask = halves()
    mask[:, :7] = 0
    result = segmentation(mask, background=False)
    assert result.top_class == "__background__"
    assert result.to_dict()["background"] is None
    assert [category["id"] for category in result.coco_categories()][:2] == [0, 1]
    assert [annotation["category_id"] for annotation in result.to_coco(image_id=1)] == [0, 8]
    with Image.open(io.BytesIO(result.to_png())) as png:
        assert (np.asarray(png) == mask).all()
        shown = np.asarray(png.convert("RGB"))
    for drawn in (np.asarray(result.overlay(noise(), alpha=1)), np.asarray(result.colorize()), shown):
        assert (drawn == voc.PALETTE[mask + 1]).all(), "no class is black"
    panel = np.asarray(segmentation(halves(300, 400), background=False).overlay(noise(300, 400), legend=True))[:, 400:]
    assert (panel == voc.PALETTE[1]).all(axis=2).sum() >= 50
    assert result != segmentation(mask)


def test_top_class_leaves_the_background_out() -> None:
    mask = halves()
    mask[:, 6:] = 0
    assert segmentation(mask).top_class == "cat"
    assert segmentation(np.zeros((3, 3), np.uint8)).top_class is None


def test_an_unknown_class_names_the_known_ones() -> None:
    result = segmentation(halves())
    for look_up in (result.__getitem__, result.fraction):
        with pytest.raises(UnknownClassError, match=r"'kat'.*cat") as caught:
            look_up("kat")
        assert isinstance(caught.value, KeyError)
        assert str(caught.value).startswith("unknown class"), "KeyError's quotes are gone"


def test_a_name_used_for_two_ids_means_both() -> None:
    mask = np.array([[1, 2, 0]], np.uint8)
    result = Segmentation(mask, ("bg", "n/a", "n/a"), "m", "1", None)
    assert result.pixel_counts == {"n/a": 2, "bg": 1}
    assert result["n/a"].tolist() == [[True, True, False]]


def test_repr_is_short_and_distinguishes_untrained_from_unknown() -> None:
    mask = halves(1000, 1000)
    assert len(repr(segmentation(mask))) < 150
    assert "cat 50.0%" in repr(segmentation(mask))
    assert "UNTRAINED" not in repr(segmentation(mask))
    assert "UNTRAINED" in repr(segmentation(mask, weights="none"))
    assert "unknown" in repr(segmentation(mask, weights=None))
    assert [segmentation(mask, weights=weights).untrained for weights in ("none", None, "mine.pth")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_overlay_refuses_other_alphas(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        segmentation(halves()).overlay(noise(), alpha=alpha)


def test_overlay_accepts_all_images_of_segment_and_does_not_change_them(tmp_path: Path) -> None:
    picture = noise()
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    path = tmp_path / "picture.png"
    path.write_bytes(file.getvalue())
    opened = Image.fromarray(picture)
    result = segmentation(halves())
    before = picture.copy()
    images: list[Any] = [picture, opened, file.getvalue(), path, str(path), np.dstack([picture, picture[:, :, 0]])]
    drawn = [np.asarray(result.overlay(image)) for image in images]
    assert all((other == drawn[0]).all() for other in drawn)
    assert (picture == before).all()
    assert (np.asarray(opened) == before).all()
    assert (np.asarray(result.overlay(picture[:, :, 0]))[:, :5, 1] == picture[:, :5, 0]).all()


def test_overlay_refuses_another_picture_and_other_objects() -> None:
    result = segmentation(halves())
    with pytest.raises(InvalidImageError, match=r"11 x 6 .*10 x 6"):
        result.overlay(noise(6, 11))
    with pytest.raises(InvalidImageError, match="decoded"):
        result.overlay(b"no image")


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20, 12), (100, 75), (451, 300), (1200, 40), (40, 1200)])
def test_untrained_pictures_stand_whole_under_a_banner(width: int, height: int) -> None:
    picture = noise(height, width)
    result = segmentation(np.zeros((height, width), np.uint8), weights="none")
    for drawn, below in ((result.overlay(picture), picture), (result.colorize(), np.zeros_like(picture))):
        pixels = np.asarray(drawn)
        extra, left = drawn.height - height, (drawn.width - width) // 2
        assert extra >= 18, "rows for legible text"
        assert drawn.width >= 60
        assert (pixels[extra - 1] == 255).all(), "a white line sets the banner off"
        banner = pixels[: extra - 1]
        assert (banner == RED).all(axis=2).mean() > 0.5
        ink = banner[:, :, 1] > 120  # green is 0 in the red, and text is anti-aliased
        assert ink.sum() > 100, "white text"
        assert not ink[:, [0, -1]].any(), "text is cut off at a side"
        assert not ink[[0, -1]].any(), "text is cut off above or below"
        assert (pixels[extra:, left : left + width] == below).all()


@pytest.mark.parametrize("weights", ["COCO_WITH_VOC_LABELS_V1", "mine.pth", None])
def test_trained_models_draw_no_banner(weights: str | None) -> None:
    result = segmentation(halves(), weights=weights)
    assert result.overlay(noise()).size == result.colorize().size == (10, 6)


@pytest.mark.parametrize(("width", "height"), [(20, 12), (100, 75), (451, 300), (3000, 200), (60, 900)])
def test_a_legend_stands_beside_the_whole_picture(width: int, height: int) -> None:
    result = segmentation((np.arange(width * height).reshape(height, width) % 21).astype(np.uint8))
    picture = noise(height, width)
    plain, drawn = result.overlay(picture), result.overlay(picture, legend=True)
    assert (np.asarray(drawn)[:height, :width] == np.asarray(plain)).all()
    assert drawn.width >= width + 80
    assert drawn.width <= max(2 * width, width + 250), "the panel does not dwarf the picture"
    assert drawn.height <= max(height, 120)


def test_a_legend_shows_a_swatch_for_each_present_class() -> None:
    mask = halves(300, 400, class_id=15)
    panel = np.asarray(segmentation(mask).overlay(noise(300, 400), legend=True))[:, 400:]
    assert (panel == (192, 128, 128)).all(axis=2).sum() >= 50
    assert not (panel == (128, 0, 0)).all(axis=2).any()


def test_the_banner_spans_the_legend_too() -> None:
    drawn = segmentation(halves(300, 400), weights="none").overlay(noise(300, 400), legend=True)
    assert (np.asarray(drawn)[0] == RED).all()
    assert drawn.width > 400


def test_a_class_is_in_a_result_where_some_pixel_has_it() -> None:
    result = segmentation(np.array([[0, 15, 15]], np.uint8))
    assert "person" in result
    assert "cat" not in result
    with pytest.raises(TypeError, match="not iterable"):
        iter(result)  # pyright: ignore[reportArgumentType, reportCallIssue] - the point of the test
