"""Masks as annotations in COCO's format, https://cocodataset.org/#format-data."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np

from deeplab_client import _rle

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


class CocoRle(TypedDict):
    """A run-length encoded mask that JSON can hold: pycocotools takes text as it takes bytes."""

    size: list[int]
    counts: str


class CocoAnnotation(TypedDict):
    """All pixels of one class in one image.

    Attributes:
        bbox: x and y of the upper left corner, width and height, in pixels.
        iscrowd: 0, so that evaluation takes it for an object of its own.
    """

    id: int
    image_id: int
    category_id: int
    segmentation: CocoRle
    area: float
    bbox: list[float]
    iscrowd: int


class CocoCategory(TypedDict):
    """One class."""

    id: int
    name: str
    supercategory: str


def annotate(mask: NDArray[np.uint8], *, image_id: int, first_id: int) -> list[CocoAnnotation]:
    """Return one annotation for each class id in a mask, the background left out; ids count from `first_id`."""
    found: list[CocoAnnotation] = []
    for class_id in np.unique(mask):
        if class_id == 0:
            continue
        where = mask == class_id
        found.append(
            {
                "id": first_id + len(found),
                "image_id": image_id,
                "category_id": int(class_id),
                "segmentation": {"size": list(where.shape), "counts": _rle.counts(where).decode()},
                "area": float(np.count_nonzero(where)),
                "bbox": _box(where),
                "iscrowd": 0,
            }
        )
    return found


def categories(class_names: Sequence[str]) -> list[CocoCategory]:
    """Return every class but the background."""
    return [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(class_names) if i]


def _box(where: NDArray[np.bool_]) -> list[float]:
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    left, top = columns[0], rows[0]
    return [float(left), float(top), float(columns[-1] - left + 1), float(rows[-1] - top + 1)]
