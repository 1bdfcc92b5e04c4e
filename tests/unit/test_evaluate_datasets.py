"""COCO with VOC labels, and VOC's own folders, against pycocotools and Pillow."""

from __future__ import annotations

import contextlib
import io
import json
from typing import TYPE_CHECKING, Any

import coco_data
import numpy as np
import pytest
from coco_data import CAR, PERFECT, PERSON, Scene, Thing
from PIL import Image
from pycocotools.coco import COCO

from deeplab_client import voc
from deeplabv3.evaluation.coco import CocoWithVocLabels
from deeplabv3.evaluation.errors import EvaluationError
from deeplabv3.evaluation.voc_folders import VocFolders

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.unit


def opened(folder: coco_data.CocoFolder, **options: bool) -> CocoWithVocLabels:
    return CocoWithVocLabels(folder.annotations, folder.images, **options)


def edit(folder: coco_data.CocoFolder, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(folder.annotations.read_text())
    change(content)
    folder.annotations.write_text(json.dumps(content))


def test_masks_of_scenes_are_what_was_drawn(tmp_path: Path) -> None:
    dataset = opened(coco_data.write(tmp_path, PERFECT))
    assert dataset.ids == ["100", "101", "102", "103", "104", "105"]
    for image_id, scene in zip(dataset.ids, PERFECT, strict=True):
        expected = scene.classes()
        if image_id == "105":
            expected[0:100, 200:300] = 255
        np.testing.assert_array_equal(dataset.read(image_id).target, expected)


def test_masks_are_those_of_pycocotools_drawn_one_by_one(tmp_path: Path) -> None:
    """Irregular polygons; the reference is pycocotools' own COCO class and a loop over pixels of each annotation."""
    random = np.random.default_rng(5)
    folder = coco_data.write(
        tmp_path, [Scene([Thing(PERSON, (0, 0, 9, 9))] * 6), Scene([Thing(CAR, (0, 0, 9, 9))] * 4)]
    )

    def scatter(content: dict[str, Any]) -> None:
        for entry in content["annotations"]:
            polygons = random.integers(1, 3)
            entry["segmentation"] = [(random.random(2 * 7) * 519).round(2).tolist() for _ in range(polygons)]
            entry["category_id"] = int(random.choice([1, 2, 3, 17, 18, 52]))

    edit(folder, scatter)
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(str(folder.annotations))
    voc_ids = {1: 15, 2: 2, 3: 7, 17: 8, 18: 12}  # 52 is a banana
    dataset = opened(folder)
    for image_id in dataset.ids:
        count, label = np.zeros((520, 520), int), np.zeros((520, 520), int)
        for entry in reference.loadAnns(reference.getAnnIds(imgIds=[int(image_id)])):
            if entry["category_id"] in voc_ids:
                drawn = reference.annToMask(entry)
                count += drawn
                label[drawn == 1] = voc_ids[entry["category_id"]]
        target = dataset.read(image_id).target
        assert (count > 1).any()
        assert (count == 1).any()
        np.testing.assert_array_equal(target, np.where(count > 1, 255, np.where(count == 1, label, 0)))


def test_two_instances_of_one_class_are_ignored_where_they_cross(tmp_path: Path) -> None:
    things = [Thing(PERSON, (0, 0, 20, 20)), Thing(PERSON, (10, 0, 30, 20)), Thing(CAR, (10, 0, 20, 20))]
    target = opened(coco_data.write(tmp_path, [Scene(things)])).read("100").target
    assert (target[0:20, 10:20] == 255).all()
    assert (target[0:20, 0:10] == 15).all()
    assert (target == 255).sum() == 200


def test_every_category_of_coco_becomes_its_class_of_voc(tmp_path: Path) -> None:
    """By name, from COCO's numbers as its own site lists them: the six names that differ are written down here."""
    renamed = {
        "aeroplane": "airplane",
        "diningtable": "dining table",
        "motorbike": "motorcycle",
        "pottedplant": "potted plant",
        "sofa": "couch",
        "tvmonitor": "tv",
    }
    coco = ["person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat"]
    numbers = dict(enumerate(coco, start=1)) | {16: "bird", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow"}
    numbers |= {44: "bottle", 62: "chair", 63: "couch", 64: "potted plant", 67: "dining table", 72: "tv"}
    by_name = {name: number for number, name in numbers.items()}
    folder = coco_data.write(tmp_path, [Scene([Thing(PERSON, (0, 0, 9, 9))])] * 20)

    def one_each(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": number, "name": name} for number, name in numbers.items()]
        for entry, name in zip(content["annotations"], voc.CLASS_NAMES[1:], strict=True):
            entry["category_id"] = by_name[renamed.get(name, name)]

    edit(folder, one_each)
    dataset = opened(folder)
    assert [int(dataset.read(image_id).target[4, 4]) for image_id in dataset.ids] == list(range(1, 21))


def test_images_without_voc_objects_are_left_out_only_when_asked(tmp_path: Path) -> None:
    scenes = [
        Scene(),
        Scene([Thing(coco_data.BANANA, (0, 0, 500, 500))]),
        Scene([Thing(PERSON, (0, 0, 50, 20))]),  # 1000 pixels: not more
        Scene([Thing(PERSON, (0, 0, 50, 20)), Thing(CAR, (100, 100, 101, 101))]),
    ]
    folder = coco_data.write(tmp_path, scenes)
    assert len(opened(folder).ids) == 4
    assert opened(folder, drop_unannotated=True).ids == ["103"]


def test_only_the_whole_of_val2017_is_val2017(tmp_path: Path) -> None:
    folder = coco_data.write(tmp_path, [Scene()], side=8)
    named = coco_data.CocoFolder(folder.annotations.rename(tmp_path / "instances_val2017.json"), folder.images)
    assert not opened(named).is_coco_val2017
    entry = {"file_name": "a.png", "width": 8, "height": 8}
    edit(named, lambda content: content.update(images=[{"id": number, **entry} for number in range(5000)]))
    assert opened(named).is_coco_val2017
    assert not opened(
        coco_data.CocoFolder(named.annotations.rename(tmp_path / "x.json"), folder.images)
    ).is_coco_val2017


def test_the_orientation_of_exif_is_not_applied_and_told(tmp_path: Path) -> None:
    folder = coco_data.write(tmp_path, [Scene(shown=[(15, (0, 0, 200, 100))])])
    path = folder.images / "000000000100.png"
    assert not opened(folder).read("100").turned
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(path) as image:
        stored = np.asarray(image).copy()
        image.save(path, exif=exif)
    sample = opened(folder).read("100")
    assert sample.turned
    np.testing.assert_array_equal(np.asarray(sample.image), stored)


BROKEN: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no-images": (lambda content: content.pop("images"), r"no COCO instance annotation file \(KeyError: 'images'\)"),
    "empty": (lambda content: content.update(images=[]), "lists no image"),
    "other-ids": (
        lambda content: content["categories"][0].update(name="zebra"),
        "category 1 is 'zebra', and COCO's is",
    ),
    "outside": (lambda content: content["images"][0].update(file_name="../a.png"), "leads out of --images"),
    "no-runs": (lambda content: content["annotations"][0].update(segmentation=[]), "annotation 1 of image 100"),
    "other-size": (
        lambda content: content["annotations"][0].update(segmentation={"size": [8, 9], "counts": [72]}),
        "annotation 1 of image 100 is 9 x 8 pixels and the image 520 x 520",
    ),
    "other-image": (
        lambda content: content["images"][0].update(width=640),
        "is 520 x 520 pixels and its annotation 640",
    ),
    "no-file": (lambda content: content["images"][0].update(file_name="a.jpg"), r"the image .*a\.jpg cannot be read"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_wrong_with_coco_data_is_named(tmp_path: Path, case: str) -> None:
    change, message = BROKEN[case]
    folder = coco_data.write(tmp_path, [Scene([Thing(PERSON, (0, 0, 9, 9))])])
    edit(folder, change)
    with pytest.raises(EvaluationError, match=message):
        opened(folder).read("100")


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    folder = coco_data.write(tmp_path, [Scene()], side=8)
    with pytest.raises(EvaluationError, match=r"--annotations .*nowhere\.json: no such file; .*cocodataset"):
        CocoWithVocLabels(tmp_path / "nowhere.json", folder.images)
    with pytest.raises(EvaluationError, match=r"--images .*nowhere: no such folder"):
        CocoWithVocLabels(folder.annotations, tmp_path / "nowhere")
    folder.annotations.write_text("{")
    with pytest.raises(EvaluationError, match="no COCO instance annotation file"):
        opened(folder)


def write_voc(root: Path) -> Path:
    for name in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (root / name).mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("b\na\n\n")
    mask = np.zeros((6, 9), np.uint8)
    mask[0, :3] = [15, 255, 20]
    picture = Image.fromarray(mask)
    picture.putpalette(voc.PALETTE.tobytes())
    for name in "ab":
        Image.new("RGB", (9, 6), "red").save(root / f"JPEGImages/{name}.jpg")
        picture.save(root / f"SegmentationClass/{name}.png")
    return root


def test_voc_folders_are_read_as_pillow_reads_them(tmp_path: Path) -> None:
    dataset = VocFolders(write_voc(tmp_path))
    assert dataset.ids == ["b", "a"]
    sample = dataset.read("a")
    assert sample.target[0].tolist() == [15, 255, 20, 0, 0, 0, 0, 0, 0]
    assert sample.image.size == (9, 6)
    assert sample.data == (tmp_path / "JPEGImages" / "a.jpg").read_bytes()
    assert not dataset.is_coco_val2017


def test_what_is_wrong_with_voc_folders_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"--root .*nowhere: no such folder; name a folder such as VOCdevkit"):
        VocFolders(tmp_path / "nowhere")
    root = write_voc(tmp_path)
    with pytest.raises(EvaluationError, match=r"--split test: .* has val$"):
        VocFolders(root, split="test")
    (root / "SegmentationClass" / "a.png").unlink()
    with pytest.raises(EvaluationError, match=r"the mask .*a\.png cannot be read: No such file"):
        VocFolders(root).read("a")
    Image.new("RGB", (9, 6)).save(root / "SegmentationClass" / "a.png")
    with pytest.raises(EvaluationError, match=r"a\.png has mode RGB; VOC's are palette PNGs"):
        VocFolders(root).read("a")
    Image.new("L", (6, 9)).save(root / "SegmentationClass" / "a.png")
    with pytest.raises(EvaluationError, match="is 9 x 6 pixels and its annotation 6 x 9"):
        VocFolders(root).read("a")
    (root / "JPEGImages" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(EvaluationError, match=r"the image .*a\.jpg cannot be decoded"):
        VocFolders(root).read("a")
