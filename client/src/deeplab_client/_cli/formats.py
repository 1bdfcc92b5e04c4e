"""The formats of the output, and how their files are named."""

from __future__ import annotations

from enum import Enum


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

ANNOTATIONS = "annotations.json"
"""The one file of coco, in the output folder; no picture's output has this name there."""
