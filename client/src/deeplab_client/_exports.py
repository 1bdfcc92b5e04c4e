"""Masks in the formats of others: COCO, polygons, Roboflow's supervision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np

from deeplab_client._errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    import supervision
    from numpy.typing import NDArray

# ruff: noqa: PLC0415 - each extra is loaded only where it is used

_BITS = 5  # of a character
_MORE = 0x20  # flags that another character follows
_FIRST = 48  # the character of value 0


class Rle(TypedDict):
    """A mask as pycocotools' `encode` gives it and its other functions take it.

    Attributes:
        size: Height and width.
        counts: Lengths of the runs of zeros and ones in turn, down the columns, packed. Always bytes: the type is
            that of pycocotools.
    """

    size: list[int]
    counts: str | bytes


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


@dataclass(frozen=True, slots=True, eq=False)
class Polygon:
    """One connected area of a mask.

    Attributes:
        exterior: Its corners, (N, 2) float64, x and y in pixels from the upper left corner of the image; the last joins
            the first.
        holes: Corners of each hole in it, in the same form.
    """

    exterior: NDArray[np.float64]
    holes: tuple[NDArray[np.float64], ...]

    @property
    def area(self) -> float:
        """Pixels inside, without the holes."""
        return _area(self.exterior) - sum(_area(hole) for hole in self.holes)


def rle(where: NDArray[np.bool_]) -> Rle:
    """Encode an (H, W) mask."""
    height, width = where.shape
    return {"size": [height, width], "counts": _rle_counts(where)}


def _rle_counts(where: NDArray[np.bool_]) -> bytes:
    """Return the packed runs of an (H, W) mask."""
    return _packed(_runs(where.ravel(order="F")))


def _runs(flat: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return lengths of runs; the first is of zeros, and 0 where the mask begins with a one."""
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    bounds = np.concatenate(([0], edges, [flat.size]))
    if flat.size and flat[0]:
        bounds = np.concatenate(([0], bounds))
    return np.diff(bounds)


def _packed(runs: NDArray[np.int64]) -> bytes:
    """Return what rleToString of maskApi.c (https://github.com/cocodataset/cocoapi) makes of the runs.

    From the fourth on, a run is stored as its difference from the one two before. A number is written in groups of
    five bits, lowest first, until the rest is what the sign of the last group says.
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


def annotate(mask: NDArray[np.uint8], *, image_id: int, first_id: int) -> list[CocoAnnotation]:
    """Return one annotation for each class id in a mask, the background left out; ids count from `first_id`."""
    found: list[CocoAnnotation] = []
    for class_id in np.unique(mask):
        if class_id == 0:
            continue
        where = mask == class_id
        top, left, bottom, right = _bounds(where)
        found.append(
            {
                "id": first_id + len(found),
                "image_id": image_id,
                "category_id": int(class_id),
                "segmentation": {"size": list(where.shape), "counts": _rle_counts(where).decode()},
                "area": float(np.count_nonzero(where)),
                "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
                "iscrowd": 0,
            }
        )
    return found


def categories(class_names: Sequence[str]) -> list[CocoCategory]:
    """Return every class but the background."""
    return [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(class_names) if i]


def trace(where: NDArray[np.bool_]) -> list[Polygon]:
    """Return the connected areas of an (H, W) mask, largest first.

    Outlines run along the edges between pixels and cut across each corner by half a pixel: each exterior and each hole
    encloses half a pixel less than its pixels.

    Raises:
        ModuleNotFoundError: contourpy is not installed.
    """
    try:
        from contourpy import FillType, contour_generator
    except ModuleNotFoundError as error:
        raise missing_extra("to_polygons", "contourpy", "polygons") from error
    if not where.any():
        return []
    top, left, bottom, right = _bounds(where)
    # contourpy takes a value to stand at its pixel's centre; a frame of zeros closes what touches the image's edge.
    framed = np.pad(where[top:bottom, left:right], 1).astype(np.float64)
    generator = contour_generator(z=framed, fill_type=FillType.OuterOffset)
    # What it returns depends on the fill type, which contourpy's types do not say: each outer ring with its holes, and
    # where in it the rings begin and end.
    filled = generator.filled(0.5, 2.0)
    points, offsets = cast("tuple[list[NDArray[np.float64]], list[NDArray[np.uint32]]]", filled)
    corner = (left - 0.5, top - 0.5)
    polygons: list[Polygon] = []
    for outline, ends in zip(points, offsets, strict=True):
        exterior, *holes = (_corners(ring) + corner for ring in np.split(outline, ends[1:-1]))
        polygons.append(Polygon(exterior, tuple(holes)))
    return sorted(polygons, key=lambda polygon: -polygon.area)


def _corners(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a closed ring's points without those on a straight line between their neighbours."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _area(ring: NDArray[np.float64]) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def detections(mask: NDArray[np.uint8], class_names: Sequence[str]) -> supervision.Detections:
    """Return one detection for each class id in a mask, the background left out.

    Raises:
        ModuleNotFoundError: supervision is not installed.
    """
    try:
        import supervision
    except ModuleNotFoundError as error:
        if error.name != "supervision":
            raise
        raise missing_extra("to_supervision", "supervision", "supervision") from error
    present = np.unique(mask)
    class_ids = present[present != 0].astype(np.int64)
    if not class_ids.size:
        return supervision.Detections.empty()
    masks = mask == class_ids[:, np.newaxis, np.newaxis]
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks).astype(np.float64),
        mask=masks,
        class_id=class_ids,
        data={"class_name": np.array([class_names[class_id] for class_id in class_ids])},
    )


def _bounds(where: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the first row and column of what is true, and those behind the last."""
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
