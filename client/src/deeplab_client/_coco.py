"""Masks in COCO's formats: run lengths, annotations, categories."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deeplab_client._areas import Area

_BITS = 5  # of a character
_MORE = 0x20  # flags that another character follows
_FIRST = 48  # the character of value 0


class Rle(TypedDict):
    """A mask as pycocotools' `encode` returns it and its other functions accept it.

    Attributes:
        size: Height and width.
        counts: Alternating lengths of runs of zeros and ones, down the columns, compressed. Always bytes here; the type
            is that of pycocotools.
    """

    size: list[int]
    counts: str | bytes


class CocoRle(TypedDict):
    """A run-length encoded mask for JSON: `counts` is text, which pycocotools accepts too.

    Attributes:
        size: Height and width.
        counts: As in `Rle`, but as text.
    """

    size: list[int]
    counts: str


class _Scored(TypedDict, total=False):
    score: float


class CocoAnnotation(_Scored):
    """All pixels of one class in one image, or those of one connected area.

    Attributes:
        id: Id of the annotation.
        image_id: Id of its image.
        category_id: Class id.
        segmentation: Mask of the whole image.
        area: Number of pixels.
        bbox: x and y of the upper left corner, width and height, in pixels.
        iscrowd: 0, so that evaluation treats it as one object.
        score: Mean confidence of its pixels, 0 to 1; missing if the result has no confidence.
    """

    id: int
    image_id: int
    category_id: int
    segmentation: CocoRle
    area: float
    bbox: list[float]
    iscrowd: int


class CocoCategory(TypedDict):
    """One class in COCO's form.

    Attributes:
        id: Class id.
        name: Name of the class.
        supercategory: Always empty.
    """

    id: int
    name: str
    supercategory: str


def annotate(found: Sequence[Area], *, image_id: int, first_id: int) -> list[CocoAnnotation]:
    """Return one annotation for each area; ids count from `first_id`."""
    annotations: list[CocoAnnotation] = []
    for number, area in enumerate(found, first_id):
        height, width = area.where.shape
        annotation: CocoAnnotation = {
            "id": number,
            "image_id": image_id,
            "category_id": area.class_id,
            "segmentation": json_rle(area),
            "area": float(area.pixels),
            "bbox": [float(area.left), float(area.top), float(width), float(height)],
            "iscrowd": 0,
        }
        if area.score is not None:
            annotation["score"] = area.score
        annotations.append(annotation)
    return annotations


def categories(class_names: Sequence[str], *, background: bool) -> list[CocoCategory]:
    """Return every class but the background."""
    return [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(class_names) if i or not background]


def rle(where: NDArray[np.bool_]) -> Rle:
    """Encode an (H, W) mask."""
    height, width = where.shape
    return {"size": [height, width], "counts": _rle_counts(where)}


def json_rle(area: Area) -> CocoRle:
    """Encode an area for JSON."""
    return {"size": list(area.shape), "counts": _rle_counts(area.in_image()).decode()}


def _rle_counts(where: NDArray[np.bool_]) -> bytes:
    """Return the packed runs of an (H, W) mask."""
    return _packed(_runs(where.ravel(order="F")))


def _runs(flat: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the lengths of runs; the first run is of zeros, with length 0 if the mask starts with a one."""
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate(([0], edges, [flat.size]))
    if flat.size and flat[0]:
        bounds = np.concatenate(([0], bounds))
    return np.diff(bounds)


def _packed(runs: NDArray[np.int64]) -> bytes:
    """Compress runs like rleToString of maskApi.c (https://github.com/cocodataset/cocoapi).

    From the fourth run on, the difference from the run two before is stored. A number is written in groups of five
    bits, lowest first, until the remaining bits equal the sign bit of the last group.
    """
    left = runs.copy()
    left[3:] -= runs[1:-2]
    columns: list[NDArray[np.int64]] = []
    written: list[NDArray[np.bool_]] = []
    more = np.ones(left.shape, np.bool_)
    while more.any():
        group = left & 0x1F
        left >>= _BITS
        written.append(more)
        more = more & (left != np.where(group & 0x10, -1, 0))
        columns.append(group + np.where(more, _MORE, 0) + _FIRST)
    return np.stack(columns, axis=1)[np.stack(written, axis=1)].astype(np.uint8).tobytes()
