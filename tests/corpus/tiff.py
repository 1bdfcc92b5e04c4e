"""TIFF files, after Adobe's TIFF 6.0, its supplements and the design of BigTIFF."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from PIL import Image

from corpus.case import ASCII, LONG, SHORT, SIZE, Case, Refused, Taken, noise, smooth, to_rgb, truncated, upright, xmp
from corpus.codes import lzw, pack_bits, packed_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corpus.case import Samples

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
NONE, LZW, DEFLATE, ADOBE_DEFLATE, PACK_BITS = 1, 5, 32946, 8, 32773
_NAMES = {NONE: "none", LZW: "lzw", DEFLATE: "deflate", ADOBE_DEFLATE: "adobe-deflate", PACK_BITS: "packbits"}
_BYTE, _UNDEFINED, _LONG8 = 1, 7, 16

Entries: TypeAlias = dict[int, tuple[int, list[int]]]
"""Of a directory, by tag: the type and the values."""

_LETTERS = {_BYTE: "B", ASCII: "B", _UNDEFINED: "B", SHORT: "H", LONG: "I", _LONG8: "Q"}


@dataclass(frozen=True, slots=True)
class Layout:
    """How the samples of a page are stored.

    Attributes:
        compression: Its number.
        rows: Of a strip; 0 for all.
        tile: Width and height of a tile; no tiles where it is left out.
        planar: Each channel by itself.
        order: "<" for II, ">" for MM.
        predictor: 2 for differences along the row.
        big: BigTIFF.
        fill_order: 2 for the first sample in the lowest bits.
        entries: More entries of the directory: {tag: (type, values)}.
    """

    compression: int = NONE
    rows: int = 0
    tile: tuple[int, int] | None = None
    planar: bool = False
    order: Literal["<", ">"] = "<"
    predictor: int = 1
    big: bool = False
    fill_order: int = 1
    entries: Entries = field(default_factory=dict)


def _compressed(samples: Samples, depth: int, layout: Layout) -> bytes:
    """Return the samples (H, W, channels) of one strip or tile."""
    if layout.predictor == 2:
        first = np.zeros_like(samples[:, :1])
        samples = np.diff(samples, axis=1, prepend=first) % 2**depth
    if depth > 8:
        rows = [row.astype(f"{layout.order}u{depth // 8}").tobytes() for row in samples]
    else:
        rows = packed_rows(samples, depth)
    if layout.fill_order == 2:
        rows = [bytes(int(f"{byte:08b}"[::-1], 2) for byte in row) for row in rows]
    if layout.compression == PACK_BITS:
        return b"".join(pack_bits(row) for row in rows)
    data = b"".join(rows)
    if layout.compression == LZW:
        return lzw(data, order="msb", early=1)
    return zlib.compress(data) if layout.compression in {DEFLATE, ADOBE_DEFLATE} else data


def _parts(samples: Samples, layout: Layout) -> list[Samples]:
    planes = [samples[..., [channel]] for channel in range(samples.shape[2])] if layout.planar else [samples]
    height, width = samples.shape[:2]
    if layout.tile is None:
        rows = layout.rows or height
        return [plane[top : top + rows] for plane in planes for top in range(0, height, rows)]
    across, down = layout.tile
    padding = ((0, -height % down), (0, -width % across), (0, 0))
    return [
        plane[top : top + down, left : left + across]
        for plane in (np.pad(plane, padding) for plane in planes)
        for top in range(0, height, down)
        for left in range(0, width, across)
    ]


def write(
    samples: Samples,
    depth: int,
    photometric: int,
    layout: Layout | None = None,
    *,
    further: tuple[tuple[Samples, int, int], ...] = (),
    orientation: int | None = None,
) -> bytes:
    """Return a TIFF of (H, W, channels) samples; further pages are (samples, depth, photometric)."""
    layout = layout or Layout()
    pages = [(samples, depth, photometric), *further]
    offset, count, entry = ("Q", "Q", "HHQ") if layout.big else ("I", "H", "HHI")
    room = struct.calcsize("=" + offset)
    data = (b"II" if layout.order == "<" else b"MM") + struct.pack(layout.order + "H", 43 if layout.big else 42)
    data += struct.pack(layout.order + "HH", 8, 0) if layout.big else b""
    link = len(data)
    data += bytes(room)
    for page, bits, kind in pages:
        parts = [_compressed(part, bits, layout) for part in _parts(page, layout)]
        starts = [len(data) + sum(map(len, parts[:number])) for number in range(len(parts))]
        data += b"".join(parts)
        data += bytes(len(data) % 2)
        height, width, channels = page.shape
        tags: Entries = {
            256: (LONG, [width]),
            257: (LONG, [height]),
            258: (SHORT, [bits] * channels),
            259: (SHORT, [layout.compression]),
            262: (SHORT, [kind]),
            266: (SHORT, [layout.fill_order]),
            277: (SHORT, [channels]),
            284: (SHORT, [1 + layout.planar]),
            317: (SHORT, [layout.predictor]),
        }
        where = _LONG8 if layout.big else LONG
        sizes = [len(part) for part in parts]
        if layout.tile is None:
            tags |= {273: (where, starts), 278: (LONG, [layout.rows or height]), 279: (where, sizes)}
        else:
            tags |= {322: (LONG, [layout.tile[0]]), 323: (LONG, [layout.tile[1]])}
            tags |= {324: (where, starts), 325: (where, sizes)}
        if orientation is not None:
            tags[274] = (SHORT, [orientation])
        tags |= layout.entries
        directory = b""
        for tag, (form, values) in sorted(tags.items()):
            packed = struct.pack(f"{layout.order}{len(values)}{_LETTERS[form]}", *values)
            if len(packed) > room:
                place = struct.pack(layout.order + offset, len(data))
                data += packed + bytes(len(packed) % 2)
                packed = place
            directory += struct.pack(layout.order + entry, tag, form, len(values)) + packed.ljust(room, b"\0")
        data = data[:link] + struct.pack(layout.order + offset, len(data)) + data[link + room :]
        data += struct.pack(layout.order + count, len(tags)) + directory
        link = len(data)
        data += bytes(room)
    return data


def _map(colors: Samples) -> Entries:
    """Return the palette entry: 16 bits a sample, all reds first."""
    return {320: (SHORT, [int(value) * 257 for value in colors.T.reshape(-1)])}


_ALPHA: Entries = {338: (SHORT, [2])}
_ASSOCIATED: Entries = {338: (SHORT, [0])}


def _modes() -> Iterator[Case]:
    for depth in (1, 2, 4, 8, 16):
        samples = noise(channels=1, depth=depth)
        shown = to_rgb(samples, depth=depth)
        data = write(samples, depth, BLACK_IS_ZERO)
        yield Case(f"tiff-grey-{depth}", data, Taken(shown))
        data = write(samples, depth, WHITE_IS_ZERO)
        turned = to_rgb(2**depth - 1 - samples, depth=depth)
        yield Case(f"tiff-white-is-zero-{depth}", data, Taken(turned))
        if depth <= 8:
            colors = noise(2**depth, 1)[0]
            data = write(samples, depth, PALETTE, Layout(entries=_map(colors)))
            yield Case(f"tiff-palette-{depth}", data, Taken(to_rgb(colors[samples[..., 0]])))
    for depth in (8, 16):
        for channels, kind, extra in (
            (2, BLACK_IS_ZERO, _ALPHA),
            (3, RGB, {}),
            (4, RGB, _ALPHA),
            (4, RGB, _ASSOCIATED),
        ):
            samples = noise(channels=channels, depth=depth)
            name = f"tiff-{channels}-channels-{depth}" + ("-unspecified" if extra is _ASSOCIATED else "")
            rare = "TIFF" if channels == 2 and depth == 16 else ""
            for order in ("<", ">"):
                data = write(samples, depth, kind, Layout(order=order, entries=extra))
                shown = Taken(to_rgb(samples, depth=depth), or_refused=rare)
                yield Case(name + ("-big-endian" if order == ">" else ""), data, shown)
    inks = noise(channels=4)
    shown = Taken(((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).round().astype(np.uint8), tolerance=1)
    yield Case("tiff-cmyk-8", write(inks, 8, CMYK), shown)
    bits = noise(channels=1, depth=1)
    data = write(bits, 1, BLACK_IS_ZERO, Layout(fill_order=2))
    yield Case("tiff-grey-1-fill-order-2", data, Taken(to_rgb(bits, depth=1)))


def _layouts() -> Iterator[Case]:
    samples, pixels = noise(), Taken(to_rgb(noise()))
    wide, high_bytes = noise(depth=16), Taken(to_rgb(noise(depth=16), depth=16))
    for compression, name in _NAMES.items():
        for layout, kind in (
            (Layout(compression), "one-strip"),
            (Layout(compression, rows=5), "strips"),
            (Layout(compression, tile=(16, 16)), "tiles"),
            (Layout(compression, planar=True), "planes"),
            (Layout(compression, rows=7, order=">"), "strips-big-endian"),
        ):
            yield Case(f"tiff-{name}-{kind}", write(samples, 8, RGB, layout), pixels)
        data = write(wide, 16, RGB, Layout(compression, rows=6, order=">"))
        yield Case(f"tiff-{name}-16", data, high_bytes)
        if compression not in {NONE, PACK_BITS}:
            for depth, picture, shown in ((8, samples, pixels), (16, wide, high_bytes)):
                data = write(picture, depth, RGB, Layout(compression, rows=6, predictor=2))
                yield Case(f"tiff-{name}-predictor-{depth}", data, shown)
    data = write(samples, 8, RGB, Layout(LZW, tile=(32, 16), planar=True, order=">"))
    yield Case("tiff-lzw-tiles-planes", data, pixels)
    data = write(wide, 16, RGB, Layout(planar=True))
    yield Case("tiff-planes-16", data, Taken(high_bytes.pixels, or_refused="TIFF"))
    for order in ("<", ">"):
        data = write(samples, 8, RGB, Layout(big=True, order=order, rows=8))
        shown = Taken(pixels.pixels, or_refused="BigTIFF" if order == ">" else "")
        yield Case("tiff-big" + ("-big-endian" if order == ">" else ""), data, shown)
    grey = noise(channels=1)
    for layout, name in ((Layout(LZW), "lzw"), (Layout(PACK_BITS), "packbits"), (Layout(tile=(16, 16)), "tiles")):
        yield Case(f"tiff-grey-8-{name}", write(grey, 8, BLACK_IS_ZERO, layout), Taken(to_rgb(grey)))
    small = write(noise(10, 10), 8, RGB)
    yield Case("tiff-10x10", small, Taken(to_rgb(noise(10, 10))))
    pages = ((noise(50, 60), 8, RGB), (grey, 8, BLACK_IS_ZERO))
    yield Case("tiff-3-pages", write(samples, 8, RGB, further=pages), pixels)


def _by_libtiff() -> Iterator[Case]:
    """Compressions that have no encoder here: scanners' faxes and JPEG, and those of scientists."""

    def encode(picture: Image.Image, compression: str) -> bytes:
        buffer = io.BytesIO()
        picture.save(buffer, "TIFF", compression=compression)
        return buffer.getvalue()

    bits = noise(channels=1, depth=1)
    page = Image.fromarray(to_rgb(bits, depth=1)).convert("1")
    for compression in ("tiff_ccitt", "group3", "group4"):
        yield Case(f"tiff-{compression.replace('_', '-')}", encode(page, compression), Taken(to_rgb(bits, depth=1)))
    picture = Image.fromarray(smooth())
    yield Case("tiff-jpeg", encode(picture, "jpeg"), Taken(smooth(), tolerance=12))
    for compression in ("lzma", "zstd"):
        data = encode(picture, compression)
        yield Case(f"tiff-{compression}", data, Taken(smooth(), or_refused="TIFF.*compress"))


def _metadata() -> Iterator[Case]:
    samples, pixels = noise(), to_rgb(noise())
    for orientation in range(1, 9):
        shown = Taken(upright(pixels, orientation))
        for layout, name in (
            (Layout(), ""),
            (Layout(LZW, rows=5, order=">"), "-lzw"),
            (Layout(tile=(16, 16)), "-tiles"),
        ):
            data = write(samples, 8, RGB, layout, orientation=orientation)
            yield Case(f"tiff-orientation-{orientation}{name}", data, shown)
    for orientation in (0, 9):
        data = write(samples, 8, RGB, orientation=orientation)
        yield Case(f"tiff-orientation-{orientation}", data, Taken(pixels))
    further = ((noise(50, 60), 8, RGB),)
    data = write(samples, 8, RGB, orientation=6, further=further)
    yield Case("tiff-orientation-6-two-pages", data, Taken(upright(pixels, 6)))
    claim = {700: (_BYTE, list(xmp(6)))}
    yield Case("tiff-xmp-6", write(samples, 8, RGB, Layout(entries=claim)), Taken(pixels))
    for name, entries in (
        ("private-tag", {50_000: (_UNDEFINED, [1, 2, 3])}),
        ("bad-resolution", {282: (SHORT, [72]), 296: (SHORT, [77])}),
        ("bad-icc", {34_675: (_UNDEFINED, list(b"garbage"))}),
        ("bad-photoshop", {34_377: (_BYTE, list(b"garbage"))}),
        ("exif-nowhere", {34_665: (LONG, [10**6])}),
    ):
        yield Case(f"tiff-{name}", write(samples, 8, RGB, Layout(entries=entries)), Taken(pixels))


def _refused() -> Iterator[Case]:
    samples = noise()
    floats = noise(channels=1, depth=32)
    sample_format: Entries = {339: (SHORT, [3])}
    loop = bytearray(write(samples, 8, RGB))
    loop[-4:] = loop[4:8]  # the directory comes after itself
    yield Case("tiff-looped-directories", bytes(loop), Taken(to_rgb(samples)))
    size: Entries = {256: (LONG, [60_000]), 257: (LONG, [60_000])}
    for name, data, message in (
        ("float", write(floats, 32, BLACK_IS_ZERO, Layout(entries=sample_format)), "float"),
        ("32-bit", write(floats, 32, BLACK_IS_ZERO), "32|bit"),
        ("compression-999", write(samples, 8, RGB, Layout(999)), "TIFF.*compress"),
        ("bomb", write(samples, 8, RGB, Layout(entries=size)), "60000 x 60000 .* limit"),
        ("bomb-deflate", write(samples, 8, RGB, Layout(ADOBE_DEFLATE, entries=size)), "60000 x 60000 .* limit"),
        ("0-wide", write(samples, 8, RGB, Layout(entries={256: (LONG, [0])})), "TIFF|0 x"),
        ("no-strips", write(samples, 8, RGB, Layout(entries={273: (LONG, []), 279: (LONG, [])})), "TIFF"),
        ("no-directory", b"II*\0\x08\0\0\0", "TIFF"),
        ("directory-nowhere", b"II*\0\xff\xff\xff\x7f" + bytes(100), "TIFF"),
        ("header-only", b"MM\0*", "TIFF"),
        ("strips-nowhere", write(samples, 8, RGB, Layout(entries={273: (LONG, [10**6])})), "TIFF.*(broken|truncated)"),
    ):
        yield Case(f"tiff-{name}", data, Refused(message))
    # The directory stands behind the pixels: what is cut off is all of it, or strips of what follows it.
    yield from truncated("tiff", write(samples, 8, RGB), "TIFF", fractions=(0.5, 0.9, 0.97))
    data = write(noise(*SIZE), 8, RGB, Layout(entries={279: (LONG, [37 * 23 * 3])}))
    for name, layout in (("", Layout()), ("-lzw", Layout(LZW)), ("-deflate", Layout(ADOBE_DEFLATE))):
        short = bytearray(write(samples, 8, RGB, layout))
        moved = struct.pack("<I", len(short) - 400)
        place = short.index(struct.pack("<HHI", 273, LONG, 1)) + 8
        short[place : place + 4] = moved
        yield Case(f"tiff-strip-ends-behind-the-file{name}", bytes(short), Refused("TIFF.*(broken|truncated)"))


def cases() -> Iterator[Case]:
    """Return all TIFF files."""
    yield from _modes()
    yield from _layouts()
    yield from _by_libtiff()
    yield from _metadata()
    yield from _refused()
