"""Annotated pictures whose right figures are known by construction.

Every picture is drawn in the VOC colors, so that a model which tells classes by color predicts exactly `shown`,
whatever the annotations say.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from deeplab_client import voc

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

SIDE = 520  # the preset's shorter side: nothing is resized on the way to the model
PERSON, BICYCLE, CAR, CAT, DOG, BANANA = 1, 2, 3, 17, 18, 52
CATEGORIES = {PERSON: "person", BICYCLE: "bicycle", CAR: "car", CAT: "cat", DOG: "dog", BANANA: "banana"}

Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom are outside


@dataclass(frozen=True, slots=True)
class Thing:
    """One annotated rectangle."""

    category: int
    box: Box
    form: Literal["polygon", "two polygons", "runs", "compressed runs"] = "polygon"

    def segmentation(self, side: int) -> Any:  # noqa: ANN401 - any of COCO's forms
        left, top, right, bottom = self.box
        if self.form == "polygon":
            return [_outline(self.box)]
        if self.form == "two polygons":
            middle = (left + right) // 2
            return [_outline((left, top, middle, bottom)), _outline((middle, top, right, bottom))]
        filled = np.zeros((side, side), np.uint8)
        filled[top:bottom, left:right] = 1
        if self.form == "compressed runs":
            encoded: Any = coco_mask.encode(np.asfortranarray(filled))
            return {"size": [side, side], "counts": encoded["counts"].decode()}
        # COCO's plain form: lengths of runs of zeros and ones in turn, down the columns, zeros first.
        runs = [(value, len(list(group))) for value, group in itertools.groupby(filled.ravel(order="F").tolist())]
        lengths = [length for _, length in runs]
        return {"size": [side, side], "counts": lengths if runs[0][0] == 0 else [0, *lengths]}


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture.

    Attributes:
        things: its annotations.
        shown: what a model that tells classes by color sees: VOC class ids of rectangles, on background.
    """

    things: list[Thing] = field(default_factory=list)
    shown: list[tuple[int, Box]] = field(default_factory=list)

    def classes(self, side: int = SIDE) -> npt.NDArray[np.uint8]:
        ids = np.zeros((side, side), np.uint8)
        for class_id, (left, top, right, bottom) in self.shown:
            ids[top:bottom, left:right] = class_id
        return ids


# VOC's ids: bicycle 2, car 7, cat 8, dog 12, person 15, sofa 18.
PERFECT = [
    Scene([Thing(PERSON, (10, 20, 110, 220))], [(15, (10, 20, 110, 220))]),
    Scene(
        [Thing(DOG, (0, 0, 200, 100), "two polygons"), Thing(CAR, (300, 300, 520, 520), "runs")],
        [(12, (0, 0, 200, 100)), (7, (300, 300, 520, 520))],
    ),
    Scene([Thing(CAT, (100, 100, 200, 200), "compressed runs")], [(8, (100, 100, 200, 200))]),
    # Nothing to see, and nothing that VOC knows.
    Scene(),
    Scene([Thing(BANANA, (50, 50, 400, 400))]),
    # Where the two cross, the sofa that is seen there counts for nothing.
    Scene(
        [Thing(CAR, (0, 0, 300, 100)), Thing(PERSON, (200, 0, 400, 100))],
        [(7, (0, 0, 200, 100)), (18, (200, 0, 300, 100)), (15, (300, 0, 400, 100))],
    ),
]

# Of a cat of 100 x 200 the left half is seen, the other half is taken for background; a bicycle is seen as a dog.
HALF = [
    Scene([Thing(CAT, (100, 100, 300, 200))], [(8, (100, 100, 200, 200))]),
    Scene([Thing(BICYCLE, (0, 0, 50, 50))], [(12, (0, 0, 50, 50))]),
]
HALF_PIXELS = 2 * SIDE * SIDE
HALF_BACKGROUND = HALF_PIXELS - 20_000 - 2_500
HALF_IOU = {
    "__background__": HALF_BACKGROUND / (HALF_BACKGROUND + 10_000),
    "bicycle": 0.0,
    "cat": 0.5,
    "dog": 0.0,
}
HALF_MEAN_IOU = sum(HALF_IOU.values()) / 4
HALF_PIXEL_ACCURACY = (HALF_BACKGROUND + 10_000) / HALF_PIXELS


@dataclass(frozen=True, slots=True)
class CocoFolder:
    """The files that were written."""

    annotations: Path
    images: Path

    @property
    def options(self) -> list[str]:
        return ["--annotations", str(self.annotations), "--images", str(self.images)]


def write(folder: Path, scenes: list[Scene], *, side: int = SIDE) -> CocoFolder:
    """Write scenes as a COCO data set of PNGs; image ids are 100, 101, ..."""
    images = folder / "images"
    images.mkdir(parents=True)
    content: dict[str, list[Any]] = {
        "categories": [{"id": category, "name": name} for category, name in CATEGORIES.items()],
        "images": [],
        "annotations": [],
    }
    for image_id, scene in enumerate(scenes, start=100):
        name = f"{image_id:012d}.png"
        Image.fromarray(voc.PALETTE[scene.classes(side)]).save(images / name)
        content["images"].append({"id": image_id, "file_name": name, "width": side, "height": side})
        for thing in scene.things:
            left, top, right, bottom = thing.box
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": thing.category,
                    "iscrowd": int("runs" in thing.form),
                    "area": (right - left) * (bottom - top),
                    "segmentation": thing.segmentation(side),
                }
            )
    # The order of the file is not that of the ids.
    content["images"].reverse()
    annotations = folder / "instances.json"
    annotations.write_text(json.dumps(content), encoding="utf-8")
    return CocoFolder(annotations, images)


def _outline(box: Box) -> list[int]:
    left, top, right, bottom = box
    return [left, top, right, top, right, bottom, left, bottom]
