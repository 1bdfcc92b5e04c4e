"""TIFF files."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from corpus.case import LONG, SHORT, Case, Refused, Taken, noise, smooth, to_rgb, truncated, upright, xmp
from corpus.tiff_layout import (
    ADOBE_DEFLATE,
    BLACK_IS_ZERO,
    BYTE,
    CMYK,
    DEFLATE,
    LZW,
    NONE,
    PACK_BITS,
    PALETTE,
    RGB,
    UNDEFINED,
    WHITE_IS_ZERO,
    Entries,
    Layout,
    write,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corpus.case import Samples

_NAMES = {NONE: "none", LZW: "lzw", DEFLATE: "deflate", ADOBE_DEFLATE: "adobe-deflate", PACK_BITS: "packbits"}


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
        yield Case(f"tiff-gray-{depth}", data, Taken(shown))
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
    yield Case("tiff-gray-1-fill-order-2", data, Taken(to_rgb(bits, depth=1)))


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
    gray = noise(channels=1)
    for layout, name in ((Layout(LZW), "lzw"), (Layout(PACK_BITS), "packbits"), (Layout(tile=(16, 16)), "tiles")):
        yield Case(f"tiff-gray-8-{name}", write(gray, 8, BLACK_IS_ZERO, layout), Taken(to_rgb(gray)))
    small = write(noise(10, 10), 8, RGB)
    yield Case("tiff-10x10", small, Taken(to_rgb(noise(10, 10))))
    pages = ((noise(50, 60), 8, RGB), (gray, 8, BLACK_IS_ZERO))
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
    claim = {700: (BYTE, list(xmp(6)))}
    yield Case("tiff-xmp-6", write(samples, 8, RGB, Layout(entries=claim)), Taken(pixels))
    for name, entries in (
        ("private-tag", {50_000: (UNDEFINED, [1, 2, 3])}),
        ("2000-private-tags", {40_000 + tag: (SHORT, [1]) for tag in range(2000)}),
        ("private-tag-of-100-kilobytes", {50_000: (UNDEFINED, [7] * 100_000)}),
        ("bad-resolution", {282: (SHORT, [72]), 296: (SHORT, [77])}),
        ("bad-icc", {34_675: (UNDEFINED, list(b"garbage"))}),
        ("bad-photoshop", {34_377: (BYTE, list(b"garbage"))}),
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
    endless = bytearray(write(samples, 8, RGB, Layout(entries={50_000: (LONG, [1, 2])})))
    place = endless.index(struct.pack("<HH", 50_000, LONG)) + 4
    endless[place : place + 4] = b"\xff" * 4
    yield Case("tiff-private-tag-of-16-gigabytes", bytes(endless), Taken(to_rgb(samples)))
    size: Entries = {256: (LONG, [60_000]), 257: (LONG, [60_000])}
    for name, data, message in (
        ("float", write(floats, 32, BLACK_IS_ZERO, Layout(entries=sample_format)), "float|fraction"),
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
