"""The formats of the output, and what each makes of one result."""

from __future__ import annotations

import json
from enum import Enum
from io import BytesIO
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deeplab_client import Segmentation
    from deeplab_client._cli.settings import Settings
    from deeplab_client._cli.sources import Source


class Format(str, Enum):
    """Formats of the output."""

    OVERLAY = "overlay"
    COLORS = "colors"
    IDS = "ids"
    JSON = "json"
    COCO = "coco"


SUFFIXES = {
    Format.OVERLAY: ".overlay.png",
    Format.COLORS: ".colors.png",
    Format.IDS: ".ids.png",
    Format.JSON: ".json",
}
"""What an output's name adds to its picture's; coco has one file for all pictures."""


def render(kind: Format, source: Source, result: Segmentation, settings: Settings) -> bytes:
    """Return the file that a format other than coco makes of a result.

    Raises:
        InvalidImageError: The picture cannot be drawn on.
    """
    if kind is Format.JSON:
        return json.dumps(result.to_dict(rle=True)).encode()
    if kind is Format.IDS:
        return result.to_png()
    if kind is Format.COLORS:
        picture = result.colorize()
    else:
        picture = result.overlay(source.image, alpha=settings.alpha, legend=settings.legend)
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
