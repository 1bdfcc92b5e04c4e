"""GIF files, after CompuServe's specifications of 1987 and 1989."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from corpus.case import SIZE, Case, Refused, Taken, noise, to_rgb, truncated
from corpus.codes import lzw

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corpus.case import Samples

_ROWS_OF_PASSES = ((0, 8), (4, 8), (2, 4), (1, 2))


@dataclass(frozen=True, slots=True)
class Frame:
    """One image of the file.

    Attributes:
        indices: (H, W) into the palette.
        left: Of the frame on the screen.
        top: Of the frame on the screen.
        palette: Of its own.
        interlaced: Whether the rows stand in four passes.
        transparent: The index that is not drawn.
        disposal: What becomes of the frame before the next.
    """

    indices: Samples
    left: int = 0
    top: int = 0
    palette: Samples | None = None
    interlaced: bool = False
    transparent: int | None = None
    disposal: int = 0


def _bits(palette: Samples) -> int:
    return max(1, (len(palette) - 1).bit_length())


def _table(palette: Samples) -> bytes:
    return palette.astype(np.uint8).tobytes().ljust(3 << _bits(palette), b"\0")


def _blocks(data: bytes) -> bytes:
    parts = [data[at : at + 255] for at in range(0, len(data), 255)]
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def _image(frame: Frame, bits: int) -> bytes:
    height, width = frame.indices.shape
    rows = frame.indices
    if frame.interlaced:
        rows = np.concatenate([rows[first::step] for first, step in _ROWS_OF_PASSES])
    if frame.palette is not None:
        bits = _bits(frame.palette)
    flags = 0x40 * frame.interlaced | (0 if frame.palette is None else 0x80 | (bits - 1))
    control = b""
    if frame.transparent is not None or frame.disposal:
        drawn = frame.transparent is None
        flag = frame.disposal << 2 | (not drawn)
        control = b"!\xf9\x04" + struct.pack("<BHBB", flag, 10, frame.transparent or 0, 0)
    table = b"" if frame.palette is None else _table(frame.palette)
    size = max(2, bits)
    pixels = lzw(rows.astype(np.uint8).tobytes(), bits=size, order="lsb")
    start = b"," + struct.pack("<HHHHB", frame.left, frame.top, width, height, flags)
    return control + start + table + bytes([size]) + _blocks(pixels)


def write(
    *frames: Frame,
    palette: Samples | None = None,
    screen: tuple[int, int] = SIZE,
    version: bytes = b"GIF89a",
    extensions: bytes = b"",
) -> bytes:
    """Return a GIF of frames on a screen of (width, height)."""
    bits = 8 if palette is None else _bits(palette)
    flags = 0x70 | (0 if palette is None else 0x80 | (bits - 1))
    table = b"" if palette is None else _table(palette)
    images = b"".join(_image(frame, bits) for frame in frames)
    return version + struct.pack("<HHBBB", *screen, flags, 0, 0) + table + extensions + images + b";"


def _palette(colors: int) -> Samples:
    return noise(colors, 1)[0]


def _indices(colors: int, width: int = SIZE[0], height: int = SIZE[1]) -> Samples:
    indices = noise(width, height, channels=1, depth=16)[..., 0] % colors
    indices[5:12, 4:30] = colors - 1  # something that compresses
    return indices


_PALETTE, _INDICES = _palette(16), _indices(16)
_PIXELS = to_rgb(_PALETTE[_INDICES])
_GRAY = np.repeat(np.arange(256)[:, np.newaxis], 3, axis=1)


def _palettes() -> Iterator[Case]:
    """Return pictures of one frame."""
    for colors in (2, 3, 4, 16, 100, 256):
        palette, indices = _palette(colors), _indices(colors)
        shown = Taken(to_rgb(palette[indices]))
        yield Case(f"gif-{colors}-colors", write(Frame(indices), palette=palette), shown)
        data = write(Frame(indices, interlaced=True), palette=palette)
        yield Case(f"gif-{colors}-colors-interlaced", data, shown)
    palette, indices = _PALETTE, _INDICES
    frame, shown = Frame(indices), Taken(_PIXELS)
    yield Case("gif-87a", write(frame, palette=palette, version=b"GIF87a"), shown)
    yield Case("gif-local-palette", write(Frame(indices, palette=palette)), shown)
    both = write(Frame(indices, palette=palette), palette=palette[::-1])
    yield Case("gif-local-and-global-palette", both, shown)
    many = _indices(256)
    yield Case("gif-gray", write(Frame(many), palette=_GRAY), Taken(to_rgb(_GRAY[many])))
    for index in (0, 7, 15):  # alpha is dropped: what is not drawn has the color of its index
        data = write(Frame(indices, transparent=index), palette=palette)
        yield Case(f"gif-transparent-{index}", data, shown)
    long = _indices(256, 200, 100)  # more than a full table of codes
    screen = (200, 100)
    yield Case("gif-full-table", write(Frame(long), palette=_GRAY, screen=screen), Taken(to_rgb(_GRAY[long])))


def _extensions() -> Iterator[Case]:
    """Return animations, comments, and frames that do not fill the screen."""
    palette, indices = _PALETTE, _INDICES
    frame, shown = Frame(indices), Taken(_PIXELS)
    second = Frame(15 - indices, transparent=3, disposal=2)
    animated = write(frame, second, frame, palette=palette)
    yield Case("gif-animated", animated, shown)
    for disposal in (1, 2, 3):
        data = write(Frame(indices, disposal=disposal), second, palette=palette)
        yield Case(f"gif-animated-disposal-{disposal}", data, shown)
    loop = b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
    yield Case("gif-looped", write(frame, second, palette=palette, extensions=loop), shown)
    comment = b"!\xfe" + _blocks(b"made by hand" * 100)
    yield Case("gif-comment", write(frame, palette=palette, extensions=comment), shown)
    unknown = b"!\x42" + _blocks(b"who knows")
    many_comments = write(frame, palette=palette, extensions=b"!\xfe\1x\0" * 10_000)
    yield Case("gif-10000-comments", many_comments, shown)
    yield Case("gif-5000-frames", write(frame, *[Frame(indices[:1, :1])] * 5000, palette=palette), shown)
    yield Case("gif-unknown-extension", write(frame, palette=palette, extensions=unknown), shown)
    claim = b"!\xff\x0bXMP DataXMP" + _blocks(b'<tiff:Orientation="6"/>')
    yield Case("gif-xmp-6", write(frame, palette=palette, extensions=claim), shown)
    yield Case("gif-trailing-bytes", write(frame, palette=palette) + bytes(500), shown)
    no_screen = write(frame, palette=palette, screen=(0, 0))  # browsers take the size of the frame
    yield Case("gif-without-screen-size", no_screen, Taken(_PIXELS, or_refused="GIF"))
    yield Case("gif-without-trailer", write(frame, palette=palette)[:-1], shown)

    on_screen, drawn = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.bool_)
    on_screen[9 : 9 + SIZE[1], 6 : 6 + SIZE[0]] = _PIXELS
    drawn[9 : 9 + SIZE[1], 6 : 6 + SIZE[0]] = True
    inside = Frame(indices, left=6, top=9)
    data = write(inside, palette=palette, screen=(60, 40))
    yield Case("gif-frame-inside-of-screen", data, Taken(on_screen, where=drawn))
    data = write(inside, Frame(15 - indices), palette=palette, screen=(60, 40))
    yield Case("gif-animated-frame-inside-of-screen", data, Taken(on_screen, where=drawn))


def _refused() -> Iterator[Case]:
    palette, indices = _PALETTE, _INDICES
    frame = Frame(indices)
    bomb = write(Frame(indices[:2, :2]), palette=palette, screen=(65535, 65535))
    wide = write(frame, palette=palette)
    place = wide.index(b",") + 5
    for name, data, message in (
        ("bomb", bomb, "65535 x 65535 .* limit"),
        ("frame-bomb", wide[:place] + b"\xff\xff\xff\xff" + wide[place + 4 :], "GIF|limit"),
        ("no-frame", write(palette=palette), "GIF"),
        ("header-only", b"GIF89a", "GIF"),
        ("code-size-13", wide.replace(b"\x25\0\x17\0\0\x04", b"\x25\0\x17\0\0\x0d"), "GIF"),
    ):
        yield Case(f"gif-{name}", data, Refused(message))
    yield from truncated("gif", write(Frame(_indices(256)), palette=_GRAY), "GIF", fractions=(0.7, 0.9))
    yield from truncated(
        "gif-interlaced", write(Frame(_indices(256), interlaced=True), palette=_GRAY), "GIF", fractions=(0.8,)
    )


def cases() -> Iterator[Case]:
    """Return all of them."""
    yield from _palettes()
    yield from _extensions()
    yield from _refused()
