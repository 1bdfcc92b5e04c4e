"""Masks in the formats of others: COCO, polygons, Roboflow's supervision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np

from deeplab_client._errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


class _Scored(TypedDict, total=False):
    score: float


class CocoAnnotation(_Scored):
    """All pixels of one class in one image, or those of one connected area.

    Attributes:
        bbox: x and y of the upper left corner, width and height, in pixels.
        iscrowd: 0, so that evaluation takes it for an object of its own.
        score: Mean confidence of its pixels, 0 to 1; left out if the result has none.
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


class ClassDict(TypedDict):
    """What `Segmentation.to_dict` says of one class that is present.

    Attributes:
        pixels: How many are of this class.
        fraction: Their share of the image, 0 to 1.
        confidence: Their mean confidence, 0 to 1; None if the result has none.
        rle: Where they are; None unless asked for.
    """

    id: int
    name: str
    pixels: int
    fraction: float
    confidence: float | None
    rle: CocoRle | None


class ResultDict(TypedDict):
    """What `Segmentation.to_dict` returns; lengths are in pixels.

    Attributes:
        background: Name of class 0 if it is the background, else None.
        top_class: As the property; None where there is only background.
        classes: The present classes, the background among them, most pixels first.
        mean_confidence: That of all pixels, 0 to 1; None if the result has none.
    """

    width: int
    height: int
    model_name: str
    model_version: str
    weights: str | None
    untrained: bool
    background: str | None
    request_id: str
    top_class: str | None
    classes: list[ClassDict]
    mean_confidence: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Area:
    """Pixels of one class that become one annotation, detection or entry.

    Attributes:
        where: They alone, (h, w) bool, cut to their bounds.
        top: The row of the image at which `where` begins.
        left: The column of the image at which `where` begins.
        shape: Height and width of the image.
        score: Mean confidence of the pixels, 0 to 1; None where there is none.
    """

    class_id: int
    where: NDArray[np.bool_]
    top: int
    left: int
    shape: tuple[int, int]
    pixels: int
    score: float | None

    def in_image(self) -> NDArray[np.bool_]:
        """Return where the pixels are in the image, (H, W) bool."""
        whole = np.zeros(self.shape, np.bool_)
        height, width = self.where.shape
        whole[self.top : self.top + height, self.left : self.left + width] = self.where
        return whole


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
        return abs(_signed_area(self.exterior)) - sum(abs(_signed_area(hole)) for hole in self.holes)

    def simplify(self, tolerance: float) -> Polygon:
        """Return a polygon with fewer corners, by Douglas and Peucker's algorithm.

        Each ring is simplified by itself. A hole that shrinks to a line is left out. Large tolerances can make rings
        cross: `shapely.geometry.shape(polygon).simplify(tolerance)` prevents that.

        Args:
            tolerance: How far a dropped corner may be from the new outline, in pixels, 0 or more.

        Raises:
            ValueError: `tolerance` is negative or not a number.
        """
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be 0 or more pixels; found {tolerance!r}")
        holes = (_simplified(hole, tolerance) for hole in self.holes)
        exterior = _simplified(self.exterior, tolerance)
        if _signed_area(exterior) == 0:  # nothing but a line would be left
            exterior = self.exterior
        return Polygon(exterior, tuple(hole for hole in holes if _signed_area(hole) != 0))

    @property
    def __geo_interface__(self) -> dict[str, Any]:
        """The polygon as a GeoJSON mapping, for shapely, geopandas and `json.dumps`.

        Rings are closed. By RFC 7946, the exterior has a positive area in x and y, and holes have a negative one. On a
        screen, where y points down, a positive area is clockwise.
        """
        rings = [_closed(self.exterior, 1), *(_closed(hole, -1) for hole in self.holes)]
        return {"type": "Polygon", "coordinates": rings}


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


def areas(
    mask: NDArray[np.uint8],
    confidence: NDArray[np.uint8] | None,
    *,
    background: bool,
    components: bool = False,
    min_area: int = 1,
) -> list[Area]:
    """Return the pixels of each class, by class id, or its connected areas, largest first.

    Args:
        mask: Class ids, (H, W).
        confidence: That of each pixel, (H, W), 255 is 1.0.
        background: Whether class 0 is one, which is left out.
        components: Return one for each connected area.
        min_area: The fewest pixels.

    Raises:
        ModuleNotFoundError: `components` needs scipy, which is not installed.
    """
    found: list[Area] = []
    for class_id in np.unique(mask).tolist():
        if background and class_id == 0:
            continue
        top, left, bottom, right = _bounds(mask == class_id)
        whole = mask[top:bottom, left:right] == class_id
        parts: list[Area] = []
        for where, row, column in _components(whole) if components else [(whole, 0, 0)]:
            pixels = int(np.count_nonzero(where))
            if pixels < min_area:
                continue
            y, x = top + row, left + column
            score = None
            if confidence is not None:
                cut = confidence[y : y + where.shape[0], x : x + where.shape[1]]
                score = float(cut[where].mean()) / 255
            parts.append(Area(class_id, where, y, x, (mask.shape[0], mask.shape[1]), pixels, score))
        found += sorted(parts, key=lambda part: -part.pixels)
    return found


def _components(where: NDArray[np.bool_]) -> Iterator[tuple[NDArray[np.bool_], int, int]]:
    """Yield each connected area of a mask, cut to its bounds, and the row and column at which it begins."""
    try:
        from scipy import ndimage  # pyright: ignore[reportMissingTypeStubs] - it has none
    except ModuleNotFoundError as error:
        if error.name != "scipy":
            raise
        raise missing_extra("components=True", "scipy", "components") from error
    functions: Any = ndimage
    labels, _ = functions.label(where, structure=np.ones((3, 3)))
    for label, (rows, columns) in enumerate(functions.find_objects(labels), 1):
        yield labels[rows, columns] == label, rows.start, columns.start


def annotate(found: Sequence[Area], *, image_id: int, first_id: int) -> list[CocoAnnotation]:
    """Return one annotation for each area; ids count from `first_id`."""
    annotations: list[CocoAnnotation] = []
    for number, area in enumerate(found, first_id):
        height, width = area.where.shape
        annotation: CocoAnnotation = {
            "id": number,
            "image_id": image_id,
            "category_id": area.class_id,
            "segmentation": _json_rle(area),
            "area": float(area.pixels),
            "bbox": [float(area.left), float(area.top), float(width), float(height)],
            "iscrowd": 0,
        }
        if area.score is not None:
            annotation["score"] = area.score
        annotations.append(annotation)
    return annotations


def _json_rle(area: Area) -> CocoRle:
    return {"size": list(area.shape), "counts": _rle_counts(area.in_image()).decode()}


def classes(
    mask: NDArray[np.uint8], class_names: Sequence[str], confidence: NDArray[np.uint8] | None, *, rle: bool
) -> list[ClassDict]:
    """Return what is said of each present class, most pixels first."""
    found = sorted(areas(mask, confidence, background=False), key=lambda area: -area.pixels)
    return [
        {
            "id": area.class_id,
            "name": class_names[area.class_id],
            "pixels": area.pixels,
            "fraction": area.pixels / mask.size,
            "confidence": area.score,
            "rle": _json_rle(area) if rle else None,
        }
        for area in found
    ]


def categories(class_names: Sequence[str], *, background: bool) -> list[CocoCategory]:
    """Return every class but the background."""
    return [{"id": i, "name": name, "supercategory": ""} for i, name in enumerate(class_names) if i or not background]


def trace(where: NDArray[np.bool_]) -> list[Polygon]:
    """Return the connected areas of an (H, W) mask, largest first; pixels that touch at a corner are connected.

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
    # A little below one half, because where two pixels touch at a corner, the middle is one half exactly.
    filled = generator.filled(0.5 - 1e-6, 2.0)
    points, offsets = cast("tuple[list[NDArray[np.float64]], list[NDArray[np.uint32]]]", filled)
    corner = (left - 0.5, top - 0.5)
    polygons: list[Polygon] = []
    for outline, ends in zip(points, offsets, strict=True):
        exterior, *holes = (_corners(np.round(ring * 2) / 2) + corner for ring in np.split(outline, ends[1:-1]))
        polygons.append(Polygon(exterior, tuple(holes)))
    return sorted(polygons, key=lambda polygon: -polygon.area)


def _corners(ring: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return a closed ring's points without those on a straight line between their neighbours."""
    points = ring[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _signed_area(ring: NDArray[np.float64]) -> float:
    x, y = ring[:, 0], ring[:, 1]
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _closed(ring: NDArray[np.float64], sign: int) -> list[list[float]]:
    """Return a ring whose last point is its first and whose area has a sign."""
    points = ring if _signed_area(ring) * sign > 0 else ring[::-1]
    return np.concatenate([points, points[:1]]).tolist()


def _simplified(ring: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Return the corners of a ring that Douglas and Peucker's algorithm keeps."""
    points = np.concatenate([ring, ring[:1]])
    far = int(np.argmax(np.hypot(*(ring - ring[0]).T)))
    keep = np.zeros(len(points), np.bool_)
    keep[[0, far]] = True
    pending = [(0, far), (far, len(ring))]
    while pending:
        first, last = pending.pop()
        if last - first < 2:  # noqa: PLR2004 - no corner between them
            continue
        between = points[first + 1 : last] - points[first]
        line = points[last] - points[first]
        share = np.clip(between @ line / (line @ line), 0, 1)
        distances = np.hypot(*(between - share[:, np.newaxis] * line).T)
        middle = int(np.argmax(distances))
        if distances[middle] > tolerance:
            middle += first + 1
            keep[middle] = True
            pending += [(first, middle), (middle, last)]
    return ring[keep[:-1]]


def detections(found: Sequence[Area], class_names: Sequence[str]) -> supervision.Detections:
    """Return one detection for each area.

    Raises:
        ModuleNotFoundError: supervision is not installed.
    """
    try:
        import supervision
    except ModuleNotFoundError as error:
        if error.name != "supervision":
            raise
        raise missing_extra("to_supervision", "supervision", "supervision") from error
    if not found:
        return supervision.Detections.empty()
    masks = np.stack([area.in_image() for area in found])
    scores = [area.score for area in found if area.score is not None]
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks).astype(np.float64),
        mask=masks,
        confidence=np.array(scores) if scores else None,
        class_id=np.array([area.class_id for area in found]),
        data={"class_name": np.array([class_names[area.class_id] for area in found])},
    )


def _bounds(where: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the first row and column of what is true, and those behind the last."""
    rows, columns = np.flatnonzero(where.any(axis=1)), np.flatnonzero(where.any(axis=0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1
