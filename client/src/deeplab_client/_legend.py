"""The panel of colours, names and shares beside a picture."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from deeplab_client import voc

if TYPE_CHECKING:
    from collections.abc import Sequence

Entry: TypeAlias = "tuple[int, str, float]"
"""Class id, name, share of the picture from 0 to 1."""

_PAPER = (255, 255, 255)
_INK = (32, 32, 32)
_SMALLEST, _LARGEST = 12, 96  # font size in pixels
_FEWEST_ROWS = 6  # of a panel beside a small picture, which it then outgrows downwards
_LONGEST_NAME = 24  # characters


def beside(picture: Image.Image, entries: Sequence[Entry]) -> Image.Image:
    """Return the picture with a panel at its right, one row an entry in the order given.

    The panel is no higher than the picture and no wider, small pictures aside; what does not fit is counted.
    """
    fitting = min(round(math.sqrt(picture.width * picture.height) / 32), picture.height // 10)
    size = max(_SMALLEST, min(_LARGEST, fitting))
    font = ImageFont.load_default(size)
    row = round(size * 1.5)
    gap = round(size * 0.6)
    texts = [(_shorten(name), _percent(share)) for _, name, share in entries]
    name_width = max(math.ceil(font.getlength(name)) for name, _ in texts)
    share_width = max(math.ceil(font.getlength(share)) for _, share in texts)
    column = gap + size + gap + name_width + gap + share_width + gap

    rows = max(_FEWEST_ROWS, (picture.height - gap) // row)
    columns = max(1, min(math.ceil(len(entries) / rows), picture.width // column))
    shown = len(entries) if len(entries) <= rows * columns else rows * columns - 1
    height = max(picture.height, min(rows, len(entries)) * row + gap)

    canvas = Image.new("RGB", (picture.width + columns * column, height), _PAPER)
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)

    def corner(index: int) -> tuple[int, int]:
        return picture.width + index // rows * column + gap, gap // 2 + index % rows * row

    for index in range(shown):
        x, y = corner(index)
        class_id = entries[index][0]
        # The background is not painted over: its swatch is hollow.
        color = tuple(int(value) for value in voc.PALETTE[class_id]) if class_id else _PAPER
        top = y + (row - size) // 2
        draw.rectangle((x, top, x + size - 1, top + size - 1), fill=color, outline=_INK)
        name, share = texts[index]
        middle = y + row / 2
        draw.text((x + size + gap, middle), name, fill=_INK, font=font, anchor="lm")
        right = x + size + gap + name_width + gap + share_width
        draw.text((right, middle), share, fill=_INK, font=font, anchor="rm")
    if shown < len(entries):
        x, y = corner(shown)
        more = f"+{len(entries) - shown} more"
        draw.text((x + size + gap, y + row / 2), more, fill=_INK, font=font, anchor="lm")
    return canvas


def _percent(share: float) -> str:
    return "<0.1 %" if 0 < share < 0.001 else f"{share * 100:.1f} %"  # noqa: PLR2004 what 0.1 % means


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
