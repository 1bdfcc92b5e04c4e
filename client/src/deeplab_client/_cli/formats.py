"""The output formats and their file names."""

from __future__ import annotations

from enum import Enum


class Format(str, Enum):
    """Output formats."""

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
"""The suffix that each format adds to a picture's name; coco has one file for all pictures."""

ANNOTATIONS = "annotations.json"
"""The file of coco in the output folder; no output of a picture has this name there."""
