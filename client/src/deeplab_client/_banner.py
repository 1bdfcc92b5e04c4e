"""The banner over pictures that mean nothing."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

_LINES = ("UNTRAINED WEIGHTS", "not a segmentation")
TEXT = ": ".join(_LINES)
_BACKGROUND = (200, 0, 0)
_INK = (255, 255, 255)
_SMALLEST, _LARGEST = 12, 160  # font size in pixels; below 12 the default font is hard to read


def above(picture: Image.Image) -> Image.Image:
    """Return the picture, whole, under a banner; a picture too narrow for the text gets a wider canvas."""
    text = TEXT
    fitting = _fitting(text, picture.width)
    if fitting < _SMALLEST * 2:  # a narrow picture: two lines are larger
        text = "\n".join(_LINES)
        fitting = _fitting(text, picture.width)
    size = max(_SMALLEST, min(_LARGEST, fitting, picture.height // 10))
    left, top, right, bottom = _box(text, size)
    margin = round(size * 0.5)
    width = max(picture.width, round(right - left) + 2 * margin)
    height = round(bottom - top) + 2 * margin
    canvas = Image.new("RGB", (width, height + picture.height), _BACKGROUND)
    ImageDraw.Draw(canvas).multiline_text(
        ((width - (right - left)) / 2 - left, margin - top),
        text,
        fill=_INK,
        font=ImageFont.load_default(size),
        align="center",
    )
    # A white line, for some class colours are close to the banner's.
    ImageDraw.Draw(canvas).line((0, height - 1, width, height - 1), fill=_INK)
    canvas.paste(picture, ((width - picture.width) // 2, height))
    return canvas


def _fitting(text: str, width: int) -> int:
    """Return the font size at which the text fills most of a width."""
    reference = 100
    left, _, right, _ = _box(text, reference)
    return int(reference * 0.8 * width / (right - left))


def _box(text: str, size: int) -> tuple[float, float, float, float]:
    return ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(
        (0, 0), text, font=ImageFont.load_default(size), align="center"
    )
