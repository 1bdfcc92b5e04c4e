"""COCO's instance annotations as masks of the 21 VOC classes, by the rules of torchvision's references/segmentation.

https://github.com/pytorch/vision/tree/main/references/segmentation, coco_utils.py: the published figures of the
weights were measured on val2017, prepared in this way.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from pycocotools import mask as _mask

from deeplabv3.evaluation import EvaluationError
from deeplabv3.evaluation.datasets import IGNORED, Dataset, Sample, check_size, decode, read_bytes, require

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy.typing as npt

coco_mask: Any = _mask  # its published types know only one form of a segmentation

# COCO's category id of each VOC class, by VOC's id; 0 for the background, which has none.
COCO_CATEGORIES = (0, 5, 2, 16, 9, 44, 6, 3, 17, 62, 21, 67, 18, 19, 4, 1, 64, 20, 63, 7, 72)
# COCO's own names of these categories, to refuse annotations with other meanings of the ids.
_COCO_NAMES = (
    *("", "airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "dining table", "dog"),
    *("horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv"),
)
_VOC_IDS = {category: voc_id for voc_id, category in enumerate(COCO_CATEGORIES) if voc_id}

# torchvision leaves an image out of the *training* split if its annotations of these categories have at most this area.
_LEAST_AREA = 1000

_VAL2017_NAME = "instances_val2017.json"
_VAL2017_IMAGES = 5000
_REMEDY = "COCO's are at https://cocodataset.org/#download"


def coco_with_voc_labels(annotations: Path, images: Path, *, drop_unannotated: bool = False) -> Dataset:
    """Open a folder of images with a COCO instance annotation file.

    Args:
        annotations: the JSON file, such as instances_val2017.json.
        images: the folder of the images, such as val2017.
        drop_unannotated: leave out the images with at most 1000 annotated pixels of VOC objects.

    Raises:
        EvaluationError: a file or folder is missing, or the file is not a COCO annotation file.
    """
    require(annotations, "--annotations", directory=False, remedy=f"name an instance annotation file; {_REMEDY}")
    require(images, "--images", directory=True, remedy=f"name the folder of the images; {_REMEDY}")
    objects: dict[str, list[dict[str, Any]]] = defaultdict(list)
    try:
        content = json.loads(annotations.read_bytes())
        _check_categories(content["categories"], annotations)
        # In the order of COCO's image ids, as torchvision reads them.
        entries = sorted(content["images"], key=lambda entry: entry["id"])
        files = {str(entry["id"]): images / _plain_name(entry["file_name"]) for entry in entries}
        sizes = {str(entry["id"]): (entry["height"], entry["width"]) for entry in entries}
        for entry in content["annotations"]:
            if entry["category_id"] in _VOC_IDS:
                objects[str(entry["image_id"])].append(entry)
        ids = [
            image_id
            for image_id in files
            if not drop_unannotated or sum(entry["area"] for entry in objects[image_id]) > _LEAST_AREA
        ]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        flaw = f"{type(exc).__name__}: {exc}"
        raise EvaluationError(
            f"--annotations {annotations} is not a COCO instance annotation file ({flaw}); {_REMEDY}"
        ) from exc
    if not ids:
        raise EvaluationError(f"--annotations {annotations} lists no images to measure; give another file")

    def read(image_id: str) -> Sample:
        path, annotation = files[image_id], f"the file {annotations}"
        data = read_bytes(path, "the image")
        image, turned = decode(data, path)
        check_size(path, image, sizes[image_id], annotation, turned=turned)
        target = _merged(objects.get(image_id, ()), image.height, image.width)
        return Sample(path.name, data, image, turned, target, annotation)

    return Dataset(
        ids=ids,
        facts={
            "kind": "coco",
            "annotations": str(annotations.resolve()),
            "images": str(images.resolve()),
            "drop_unannotated": drop_unannotated,
            "size": len(ids),
        },
        read=read,
        files=lambda image_id: (files[image_id], annotations),
        is_coco_val2017=annotations.name == _VAL2017_NAME and len(ids) == _VAL2017_IMAGES,
    )


def _merged(objects: Sequence[dict[str, Any]], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Merge the instances of one image; pixels of several instances are IGNORED, even if the classes agree."""
    target = np.zeros((height, width), np.uint8)
    covered = np.zeros((height, width), np.bool_)
    for entry in objects:
        where = _instance(entry, height, width)
        target[where] = np.where(covered[where], IGNORED, _VOC_IDS[entry["category_id"]])
        covered |= where
    return target


def _instance(entry: dict[str, Any], height: int, width: int) -> npt.NDArray[np.bool_]:
    """Return the mask (H, W) of one annotation: polygons, or a run-length encoding, plain or compressed."""
    segmentation: Any = entry.get("segmentation")
    try:
        compressed = isinstance(segmentation, dict) and isinstance(segmentation["counts"], str)
        runs: Any = segmentation if compressed else coco_mask.frPyObjects(segmentation, height, width)
        decoded: npt.NDArray[np.uint8] = coco_mask.decode(runs)
    except Exception as exc:  # pycocotools raises whatever its C code trips over
        raise EvaluationError(
            f"the segmentation of annotation {entry.get('id')} of image {entry['image_id']} cannot be decoded: {exc}; "
            "correct it"
        ) from exc
    where = decoded.any(axis=2) if decoded.ndim == 3 else decoded.astype(np.bool_)  # noqa: PLR2004 - several polygons
    if where.shape != (height, width):
        raise EvaluationError(
            f"annotation {entry.get('id')} of image {entry['image_id']} is {where.shape[1]} x {where.shape[0]} pixels, "
            f"but the image is {width} x {height}; correct one of them"
        )
    return where


def _check_categories(categories: list[dict[str, Any]], annotations: Path) -> None:
    for category in categories:
        voc_id = _VOC_IDS.get(category["id"])
        if voc_id is not None and category["name"] != _COCO_NAMES[voc_id]:
            raise EvaluationError(
                f"--annotations {annotations}: category {category['id']} is {category['name']!r}, but in COCO it is "
                f"{_COCO_NAMES[voc_id]!r}; give a file with COCO's own category ids"
            )


def _plain_name(name: str) -> str:
    """Return a file name; raise ValueError if it is outside of the folder of images."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the file name {name!r} is outside of --images")
    return name
