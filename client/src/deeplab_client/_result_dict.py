"""A result as a dict for JSON."""

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
    """One present class in the dict of `Segmentation.to_dict`.

    Attributes:
        id: Class id.
        name: Name of the class.
        pixels: Number of pixels.
        fraction: Share of the image, 0 to 1.
        confidence: Mean confidence of the pixels, 0 to 1; None if the result has no confidence.
        rle: Mask of the class in COCO's run-length encoding; None without `rle=True`.
    """

    id: int
    name: str
    pixels: int
    fraction: float
    confidence: float | None
    rle: CocoRle | None


class ResultDict(TypedDict):
    """The dict of `Segmentation.to_dict`.

    Attributes:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        model_name: Name of the model.
        model_version: Version of the model.
        weights: Name of the weights; None if unknown.
        untrained: Whether the weights are random.
        background: Name of class 0 if it is the background, else None.
        request_id: Id of the request on the server.
        top_class: The class with the most pixels, without the background; None if there is only background.
        classes: The present classes, including the background, most pixels first.
        mean_confidence: Mean confidence of all pixels, 0 to 1; None if the result has no confidence.
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
    """Return the entries of the present classes, most pixels first."""
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
