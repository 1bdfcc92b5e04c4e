"""COCO with VOC labels, VOC's own folders and a user's, against pycocotools and Pillow."""

from __future__ import annotations

import contextlib
import io
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import coco_data
import numpy as np
import pytest
from coco_data import CAR, PERFECT, PERSON, Scene, Thing
from PIL import Image
from pycocotools.coco import COCO

from deeplab_client import voc
from deeplabv3.evaluation import EvaluationError
from deeplabv3.evaluation.coco import coco_with_voc_labels
from deeplabv3.evaluation.datasets import Dataset, mask_folders, voc_folders

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy.typing as npt

pytestmark = pytest.mark.unit


def opened(folder: coco_data.CocoFolder, **options: bool) -> Dataset:
    return coco_with_voc_labels(folder.annotations, folder.images, **options)


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


def test_the_orientation_of_exif_is_not_applied_but_reported(tmp_path: Path) -> None:
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
    "no-images": (lambda content: content.pop("images"), r"not a COCO instance annotation file \(KeyError: 'images'\)"),
    "empty": (lambda content: content.update(images=[]), "lists no image"),
    "other-ids": (
        lambda content: content["categories"][0].update(name="zebra"),
        "category 1 is 'zebra', but in COCO it is",
    ),
    "outside": (lambda content: content["images"][0].update(file_name="../a.png"), "is outside of --images"),
    "no-runs": (lambda content: content["annotations"][0].update(segmentation=[]), "annotation 1 of image 100"),
    "other-size": (
        lambda content: content["annotations"][0].update(segmentation={"size": [8, 9], "counts": [72]}),
        "annotation 1 of image 100 is 9 x 8 pixels, but the image is 520 x 520",
    ),
    "other-image": (
        lambda content: content["images"][0].update(width=640),
        "is 520 x 520 pixels, but its annotation is 640",
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
        coco_with_voc_labels(tmp_path / "nowhere.json", folder.images)
    with pytest.raises(EvaluationError, match=r"--images .*nowhere: no such folder"):
        coco_with_voc_labels(folder.annotations, tmp_path / "nowhere")
    folder.annotations.write_text("{")
    with pytest.raises(EvaluationError, match="not a COCO instance annotation file"):
        opened(folder)


def write_voc(root: Path) -> Path:
    for name in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (root / name).mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("b\na\n\n")
    mask = np.zeros((6, 9), np.uint8)
    mask[0, :5] = [15, 255, 20, 21, 254]
    picture = Image.fromarray(mask)
    picture.putpalette(voc.PALETTE.tobytes())
    for name in "ab":
        Image.new("RGB", (9, 6), "red").save(root / f"JPEGImages/{name}.jpg")
        picture.save(root / f"SegmentationClass/{name}.png")
    return root


def test_voc_folders_are_read_as_pillow_reads_them(tmp_path: Path) -> None:
    dataset = voc_folders(write_voc(tmp_path))
    assert dataset.ids == ["b", "a"]
    sample = dataset.read("a")
    # Ids that are not VOC classes are not counted.
    assert sample.target[0].tolist() == [15, 255, 20, 255, 255, 0, 0, 0, 0]
    assert sample.image.size == (9, 6)
    assert sample.data == (tmp_path / "JPEGImages" / "a.jpg").read_bytes()
    assert not dataset.is_coco_val2017


def test_what_is_wrong_with_voc_folders_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"--root .*nowhere: no such folder; name a folder such as VOCdevkit"):
        voc_folders(tmp_path / "nowhere")
    root = write_voc(tmp_path)
    with pytest.raises(EvaluationError, match=r"--split test: .* it has val$"):
        voc_folders(root, split="test")
    (root / "SegmentationClass" / "a.png").unlink()
    with pytest.raises(EvaluationError, match=r"the mask .*a\.png cannot be read: No such file"):
        voc_folders(root).read("a")
    Image.new("RGB", (9, 6)).save(root / "SegmentationClass" / "a.png")
    with pytest.raises(EvaluationError, match=r"a\.png has mode RGB, but a mask must be a palette or 8-bit"):
        voc_folders(root).read("a")
    Image.new("L", (6, 9)).save(root / "SegmentationClass" / "a.png")
    with pytest.raises(EvaluationError, match="is 9 x 6 pixels, but its annotation is 6 x 9"):
        voc_folders(root).read("a")
    (root / "JPEGImages" / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(EvaluationError, match=r"the image .*a\.jpg cannot be decoded: its format is unknown"):
        voc_folders(root).read("a")


class Folders(NamedTuple):
    images: Path
    masks: Path


def save_mask(path: Path, ids: npt.NDArray[np.uint8], *, palette: bool = False) -> None:
    mask = Image.fromarray(ids)
    if palette:
        mask.putpalette(voc.PALETTE.tobytes())
    mask.save(path)


@pytest.fixture
def own(tmp_path: Path) -> Folders:
    """Two pictures of 9 x 6 in two formats; one mask is a palette PNG, the other grayscale."""
    folders = Folders(tmp_path / "pictures", tmp_path / "masks")
    for folder in (folders.images, folders.masks):
        folder.mkdir()
    ids = np.zeros((6, 9), np.uint8)
    ids[0, :3] = [2, 255, 1]
    Image.new("RGB", (9, 6), "red").save(folders.images / "b.JPG", "JPEG")
    Image.new("L", (9, 6)).save(folders.images / "a.v1.tif")
    save_mask(folders.masks / "b.png", ids, palette=True)
    save_mask(folders.masks / "a.v1.PNG", ids)
    (folders.images / "notes.txt").write_text("no picture")
    (folders.images / "._b.jpg").write_bytes(b"what macOS leaves")
    return folders


def test_pictures_and_masks_are_paired_by_their_names_without_suffix(own: Folders) -> None:
    dataset = mask_folders(*own)
    assert dataset.ids == ["a.v1", "b"]
    for image_id, name in (("a.v1", "a.v1.tif"), ("b", "b.JPG")):
        sample = dataset.read(image_id)
        assert sample.name == name
        assert sample.data == (own.images / name).read_bytes()
        assert sample.image.mode == "RGB"
        assert sample.target[0, :4].tolist() == [2, 255, 1, 0]
    assert (dataset.ignore, dataset.class_names) == (255, None)


UNPAIRED: dict[str, tuple[Callable[[Folders], object], str]] = {
    "no mask": (
        lambda own: (own.masks / "b.png").unlink(),
        r"no file of the same name among the masks for .*pictures/b\.JPG; add the masks, or remove",
    ),
    "no picture": (
        lambda own: (own.images / "a.v1.tif").unlink(),
        r"no file of the same name among the pictures for .*masks/a\.v1\.PNG; add the pictures",
    ),
    "two pictures": (
        lambda own: Image.new("L", (9, 6)).save(own.images / "b.png"),
        r"--images .* has both b\.JPG and b\.png, .*rename or remove one",
    ),
    "none": (
        lambda own: [path.unlink() for path in own.masks.iterdir()],
        r"--masks .*masks has no mask PNGs; give the folder that holds them",
    ),
    "no folder": (lambda own: own.masks.rename(own.masks.with_name("x")), r"--masks .*masks: no such folder; name the"),
}


@pytest.mark.parametrize("case", UNPAIRED)
def test_what_has_no_partner_is_named(own: Folders, case: str) -> None:
    change, message = UNPAIRED[case]
    change(own)
    with pytest.raises(EvaluationError, match=message):
        mask_folders(*own)


BAD_MASKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "turned": (
        lambda path: save_mask(path, np.zeros((9, 6), np.uint8)),
        r"b\.JPG is 9 x 6 pixels, but its annotation is 6 x 9 \(the mask .*b\.png\); replace one",
    ),
    "colors": (
        lambda path: Image.new("RGB", (9, 6)).save(path),
        r"the mask .*b\.png has mode RGB, .*convert it",
    ),
    "16 bits": (lambda path: Image.new("I;16", (9, 6)).save(path), r"the mask .*b\.png has mode I;16"),
    "1 bit": (lambda path: Image.new("1", (9, 6)).save(path), r"the mask .*b\.png has mode 1"),
    "a JPEG": (lambda path: Image.new("L", (9, 6)).save(path, "JPEG"), r"b\.png cannot be decoded: it is not a PNG"),
    "truncated": (
        lambda path: path.write_bytes(path.read_bytes()[:60]),
        r"the mask .*b\.png cannot be decoded: .*replace",
    ),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_what_is_wrong_with_a_mask_is_named(own: Folders, case: str) -> None:
    change, message = BAD_MASKS[case]
    dataset = mask_folders(*own)
    change(own.masks / "b.png")
    with pytest.raises(EvaluationError, match=message):
        dataset.read("b")


def test_a_size_that_only_the_exif_explains_is_explained(own: Folders) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 9)).save(own.images / "b.JPG", "JPEG", exif=exif)
    with pytest.raises(EvaluationError, match="without its EXIF orientation, because annotations are for the image as"):
        mask_folders(*own).read("b")


def test_class_ids_that_no_model_has_are_named(own: Folders) -> None:
    sample = mask_folders(*own).read("b")
    sample.check_class_ids(3, ignore=255)
    message = (
        r"the mask .*b\.png has the class ids 2, but the models have 2 classes, 0 to 1, and --ignore is 255; correct"
    )
    with pytest.raises(EvaluationError, match=message):
        sample.check_class_ids(2, ignore=255)
    with pytest.raises(EvaluationError, match=r"the class ids 255, but .* --ignore is 2;"):
        sample.check_class_ids(2, ignore=2)
