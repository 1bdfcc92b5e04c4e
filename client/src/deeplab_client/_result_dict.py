"""A result as JSON holds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from deeplab_client._areas import areas
from deeplab_client._coco import json_rle

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from deeplab_client._coco import CocoRle


class ClassDict(TypedDict):
    """What `Segmentation.to_dict` says of one class that is present.

    Attributes:
        id: The class id.
        name: The class's name.
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
        width: Of the image.
        height: Of the image.
        model_name: As in the result.
        model_version: As in the result.
        weights: As in the result.
        untrained: As in the result.
        background: Name of class 0 if it is the background, else None.
        request_id: As in the result.
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
            "rle": json_rle(area) if rle else None,
        }
        for area in found
    ]
