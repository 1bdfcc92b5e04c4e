"""Drawing masks: overlays, colors, legends, PNG files."""

from __future__ import annotations

import math
from io import BytesIO
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from deeplab_client import voc
from deeplab_client._errors import InvalidImageError
from deeplab_client._image import decode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from deeplab_client._image import ImageLike

Entry: TypeAlias = "tuple[int, str, float]"
"""Class id, name, share of the picture from 0 to 1."""

_BANNER = ("UNTRAINED WEIGHTS", "not a segmentation")
WARNING = ": ".join(_BANNER)
"""The text on pictures of an untrained model."""

_RED, _WHITE, _INK = (200, 0, 0), (255, 255, 255), (32, 32, 32)
_SMALLEST_FONT = 12  # pixels; below that the default font is hard to read
_LARGEST_BANNER_FONT, _LARGEST_LEGEND_FONT = 160, 96
_FEWEST_ROWS = 6  # of a legend beside a small picture, which may then be higher than the picture
_LONGEST_NAME = 24  # characters in a legend
# zlib's level: masks are long runs. Level 1 takes a third of the time of level 6 for few more bytes.
_COMPRESS_LEVEL = 1
_LONGEST_PREVIEW = 1024  # pixels of a side


def palette_of(*, background: bool) -> NDArray[np.uint8]:
    """Return RGB of each class id, (256, 3) uint8: VOC's, from its second color on if there is no background."""
    return voc.PALETTE if background else np.roll(voc.PALETTE, -1, axis=0)


def colorize(mask: NDArray[np.uint8], *, untrained: bool, background: bool) -> Image.Image:
    """Return the mask in the colors of its classes."""
    picture = _with_palette(mask, background=background).convert("RGB")
    return _under_banner(picture) if untrained else picture


def overlay(
    mask: NDArray[np.uint8],
    image: ImageLike,
    *,
    alpha: float,
    entries: Sequence[Entry],
    untrained: bool,
    background: bool,
) -> Image.Image:
    """Return the image with the class colors blended over it, except over the background."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 to 1, got {alpha!r}")
    picture = decode(image)
    height, width = mask.shape
    if picture.size != (width, height):
        raise InvalidImageError(
            f"the image has {picture.width} x {picture.height} pixels, but the mask has {width} x {height}: "
            "pass the image that was segmented"
        )
    palette = palette_of(background=background)
    for class_id, count in enumerate(Image.fromarray(mask).histogram()):
        if count and (class_id or not background):
            blended = picture.point(_blend(palette[class_id], alpha))
            picture.paste(blended, mask=Image.fromarray(mask == class_id))
    if entries:
        picture = _beside_legend(picture, entries, background=background)
    return _under_banner(picture) if untrained else picture


def png(mask: NDArray[np.uint8], *, untrained: bool, background: bool) -> bytes:
    """Return a palette PNG whose pixel values are the class ids."""
    about = PngInfo()
    if untrained:
        about.add_text("Warning", WARNING)
    return _saved(_with_palette(mask, background=background), about)


def preview(mask: NDArray[np.uint8], *, untrained: bool, background: bool) -> bytes:
    """Return the colored mask as a PNG small enough for a notebook."""
    step = max(1, -(-max(mask.shape) // _LONGEST_PREVIEW))
    small = np.ascontiguousarray(mask[::step, ::step])
    return _saved(colorize(small, untrained=untrained, background=background), PngInfo())


def _blend(color: NDArray[np.uint8], alpha: float) -> list[int]:
    """Return the blended value of each of 256 values of red, green and blue.

    As in torchvision's `draw_segmentation_masks`, which computes in single precision and truncates.
    """
    values = np.arange(256, dtype=np.float32) * np.float32(1 - alpha)
    blended = values + color.astype(np.float32)[:, np.newaxis] * np.float32(alpha)
    return blended.astype(np.uint8).ravel().tolist()


def _with_palette(mask: NDArray[np.uint8], *, background: bool) -> Image.Image:
    picture = Image.fromarray(mask)
    picture.putpalette(palette_of(background=background).tobytes())
    return picture


def _saved(picture: Image.Image, about: PngInfo) -> bytes:
    file = BytesIO()
    picture.save(file, "PNG", compress_level=_COMPRESS_LEVEL, pnginfo=about)
    return file.getvalue()


def _under_banner(picture: Image.Image) -> Image.Image:
    """Return the whole picture under a banner; if it is too narrow for the text, the canvas is wider."""
    text = WARNING
    fitting = _fitting(text, picture.width)
    if fitting < _SMALLEST_FONT * 2:  # on a narrow picture, two lines are larger
        text = "\n".join(_BANNER)
        fitting = _fitting(text, picture.width)
    size = max(_SMALLEST_FONT, min(_LARGEST_BANNER_FONT, fitting, picture.height // 10))
    left, top, right, bottom = _box(text, size)
    margin = round(size * 0.5)
    width = max(picture.width, round(right - left) + 2 * margin)
    height = round(bottom - top) + 2 * margin
    canvas = Image.new("RGB", (width, height + picture.height), _RED)
    ImageDraw.Draw(canvas).multiline_text(
        ((width - (right - left)) / 2 - left, margin - top),
        text,
        fill=_WHITE,
        font=ImageFont.load_default(size),
        align="center",
    )
    # A white line, because some class colors are close to that of the banner.
    ImageDraw.Draw(canvas).line((0, height - 1, width, height - 1), fill=_WHITE)
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


def _beside_legend(picture: Image.Image, entries: Sequence[Entry], *, background: bool) -> Image.Image:
    """Return the picture with a panel to its right, one row per entry in the given order.

    Except for small pictures, the panel is no higher and no wider than the picture. Entries without room are counted.
    """
    fitting = min(round(math.sqrt(picture.width * picture.height) / 32), picture.height // 10)
    size = max(_SMALLEST_FONT, min(_LARGEST_LEGEND_FONT, fitting))
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

    canvas = Image.new("RGB", (picture.width + columns * column, height), _WHITE)
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    palette = palette_of(background=background)

    def corner(index: int) -> tuple[int, int]:
        return picture.width + index // rows * column + gap, gap // 2 + index % rows * row

    for index in range(shown):
        x, y = corner(index)
        class_id = entries[index][0]
        # The background is not drawn, so its swatch is hollow.
        color = tuple(palette[class_id].tolist()) if class_id or not background else _WHITE
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
    return "<0.1 %" if 0 < share < 0.001 else f"{share * 100:.1f} %"  # noqa: PLR2004 - 0.1 %


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3] + "..."
