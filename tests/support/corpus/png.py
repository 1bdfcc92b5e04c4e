"""PNG files, written chunk by chunk after the PNG specification (W3C, third edition)."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

from corpus.case import SIZE, Case, Refused, Taken, Verdict, exif, noise, to_rgb, truncated, upright, xmp
from corpus.codes import packed_rows
from corpus.parts import png_chunk as chunk

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from corpus.case import Samples

GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA = 0, 2, 3, 4, 6
_CHANNELS = {GRAY: 1, RGB: 3, PALETTE: 1, GRAY_ALPHA: 2, RGBA: 4}
_DEPTHS = {GRAY: (1, 2, 4, 8, 16), RGB: (8, 16), PALETTE: (1, 2, 4, 8), GRAY_ALPHA: (8, 16), RGBA: (8, 16)}
_NAMES = {GRAY: "gray", RGB: "rgb", PALETTE: "palette", GRAY_ALPHA: "gray-alpha", RGBA: "rgba"}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

SIGNATURE = b"\x89PNG\r\n\x1a\n"
END = b"\0\0\0\0IEND\xaeB`\x82"


def repaired(data: bytes) -> bytes:
    """Return a damaged PNG with new checksums of its chunks, as far as chunks can be recognized."""
    at, whole = 8, data[:8]
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        whole += chunk(data[at + 4 : at + 8], data[at + 8 : end - 4])
        at = end
    return whole + data[at:]


def with_scanlines(size: tuple[int, int], data: bytes) -> bytes:
    """Return an RGB PNG of (width, height) whose rows, filters included, are these bytes."""
    return header(*size) + chunk(b"IDAT", zlib.compress(data)) + END


def header(width: int, height: int, depth: int = 8, color: int = RGB, *, interlaced: bool = False) -> bytes:
    """Return the signature and the IHDR chunk."""
    return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, interlaced))


def _filtered(row: bytes, above: bytes, distance: int, method: int) -> bytes:
    def predictor(left: int, up: int, corner: int) -> int:
        if method == 4:
            estimate = left + up - corner
            return min((left, up, corner), key=lambda value: abs(estimate - value))
        return (0, left, up, (left + up) // 2)[method]

    def at(line: bytes, index: int) -> int:
        return line[index] if index >= 0 else 0

    if method == 0:
        return row
    return bytes(
        (value - predictor(at(row, i - distance), above[i], at(above, i - distance))) % 256
        for i, value in enumerate(row)
    )


def _packed(samples: Samples, depth: int) -> list[bytes]:
    if depth == 16:
        return [row.astype(">u2").tobytes() for row in samples]
    return packed_rows(samples, depth)


def scanlines(samples: Samples, depth: int, filters: Sequence[int] = range(5)) -> bytes:
    """Return the rows of (H, W, channels) samples, each with one of the filters, in turns."""
    distance = max(1, samples.shape[2] * depth // 8)
    rows = _packed(samples, depth) if samples.size else []
    above = bytes(len(rows[0])) if rows else b""
    filtered: list[bytes] = []
    for number, row in enumerate(rows):
        method = filters[number % len(filters)]
        filtered += [bytes([method]), _filtered(row, above, distance, method)]
        above = row
    return b"".join(filtered)


def write(
    samples: Samples,
    depth: int,
    color: int,
    *,
    interlaced: bool = False,
    filters: Sequence[int] = range(5),
    before: bytes = b"",
    after: bytes = b"",
    parts: int = 1,
    level: int = 6,
) -> bytes:
    """Return a PNG of (H, W, channels) samples.

    Args:
        samples: Palette indices where color is PALETTE.
        depth: Bits of a sample.
        color: The color type.
        interlaced: Adam7.
        filters: Of the rows, in turns.
        before: Chunks between IHDR and IDAT.
        after: Chunks between IDAT and IEND.
        parts: The number of IDAT chunks.
        level: Of the compression.
    """
    height, width, _ = samples.shape
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in _ADAM7] if interlaced else [samples]
    packed = zlib.compress(b"".join(scanlines(part, depth, filters) for part in passes), level)
    step = -(-len(packed) // parts)
    pixels = b"".join(chunk(b"IDAT", packed[start : start + step]) for start in range(0, len(packed), step))
    return header(width, height, depth, color, interlaced=interlaced) + before + pixels + after + END


def _palette(depth: int) -> Samples:
    return noise(2**depth, 1, channels=3)[0]


def _plte(colors: Samples) -> bytes:
    return chunk(b"PLTE", colors.astype(np.uint8).tobytes())


def plain(*, before: bytes = b"", after: bytes = b"") -> bytes:
    """Return the RGB PNG that metadata and flaws are put into."""
    return write(noise(), 8, RGB, before=before, after=after)


PIXELS = to_rgb(noise())


def _modes() -> Iterator[Case]:
    """Color types, depths, interlacing, transparency; sizes; filters; the layout of IDAT."""
    for color, depths in _DEPTHS.items():
        for depth in depths:
            samples = noise(channels=_CHANNELS[color], depth=depth)
            colors = _palette(depth) if color == PALETTE else None
            shown = to_rgb(samples, depth=depth) if colors is None else to_rgb(colors[samples[..., 0]])
            before = b"" if colors is None else _plte(colors)
            name = f"png-{_NAMES[color]}-{depth}"
            yield Case(name, write(samples, depth, color, before=before), Taken(shown))
            interlaced = write(samples, depth, color, before=before, interlaced=True)
            yield Case(f"{name}-interlaced", interlaced, Taken(shown))
            if color in {GRAY, RGB}:
                key = chunk(b"tRNS", samples[3, 5].astype(">u2").tobytes())
                yield Case(f"{name}-trns", write(samples, depth, color, before=key), Taken(shown))
            if color == PALETTE:
                alphas = chunk(b"tRNS", bytes(range(2**depth - 1)))
                yield Case(f"{name}-trns", write(samples, depth, color, before=before + alphas), Taken(shown))
    for number, name in enumerate(("none", "sub", "up", "average", "paeth")):
        yield Case(f"png-filter-{name}", write(noise(), 8, RGB, filters=[number]), Taken(PIXELS))
    for interlaced in (False, True):  # as rows that are missing look
        black = np.zeros_like(noise())
        name = "png-black" + ("-interlaced" if interlaced else "")
        yield Case(name, write(black, 8, RGB, interlaced=interlaced), Taken(to_rgb(black)))
    for width, height in ((1, 1), (1, 40), (40, 1), (3, 2), (8, 8), (9, 5)):
        samples = noise(width, height)
        for interlaced in (False, True):
            data = write(samples, 8, RGB, interlaced=interlaced)
            name = f"png-{width}x{height}" + ("-interlaced" if interlaced else "")
            yield Case(name, data, Taken(to_rgb(samples)))
    yield Case("png-20-idat", write(noise(), 8, RGB, parts=20), Taken(PIXELS))
    yield Case("png-stored", write(noise(), 8, RGB, level=0), Taken(PIXELS))
    yield Case("png-empty-idat", plain(before=chunk(b"IDAT")), Taken(PIXELS))
    yield Case("png-suggested-palette", plain(before=_plte(_palette(4))), Taken(PIXELS))
    colors = _palette(2)[:3]  # fewer than the depth allows
    samples = noise(channels=1, depth=2) % 3
    data = write(samples, 2, PALETTE, before=_plte(colors))
    yield Case("png-palette-2-of-3-colors", data, Taken(to_rgb(colors[samples[..., 0]])))


def _metadata() -> Iterator[Case]:
    """The EXIF orientation, which viewers apply, and data that they ignore: XMP, flawed chunks, a second frame."""
    for orientation in range(1, 9):
        shown = Taken(upright(PIXELS, orientation))
        block = chunk(b"eXIf", exif(orientation, order="<" if orientation % 2 else ">"))
        yield Case(f"png-exif-{orientation}", plain(before=block), shown)
        yield Case(f"png-exif-{orientation}-behind-idat", plain(after=block), shown)
    stored = Taken(PIXELS)
    claim = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp(6))
    yield Case("png-xmp-6", plain(before=claim), stored)
    yield Case("png-xmp-6-behind-idat", plain(after=claim), stored)
    both = claim + chunk(b"eXIf", exif(3))
    yield Case("png-xmp-6-exif-3", plain(before=both), Taken(upright(PIXELS, 3)))
    bomb = zlib.compress(bytes(3_000_000))
    flawed = {
        "exif-garbled": chunk(b"eXIf", b"II*\0\xff\xff\xff\xff\x12\x01"),
        "exif-empty": chunk(b"eXIf"),
        "exif-crc": chunk(b"eXIf", exif(1), sound=False),
        "text-crc": chunk(b"tEXt", b"Comment\0made", sound=False),
        "iccp-crc": chunk(b"iCCP", b"p\0\0" + zlib.compress(b"profile"), sound=False),
        "iccp-garbled": chunk(b"iCCP", b"p\0\0garbage"),
        "iccp-bomb": chunk(b"iCCP", b"p\0\0" + bomb),
        "ztxt-bomb": chunk(b"zTXt", b"Comment\0\0" + bomb),
        "itxt-bomb": chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb),
        "ztxt-garbled": chunk(b"zTXt", b"Comment\0\0garbage"),
        "ztxt-method": chunk(b"zTXt", b"Comment\0\7" + zlib.compress(b"made")),
        "text-without-keyword": chunk(b"tEXt", b"\0\0\0"),
        "sbit-crc": chunk(b"sBIT", b"\x08\x08\x08", sound=False),
        "private-crc": chunk(b"prIv", b"private", sound=False),
        "private": chunk(b"prIv", bytes(200)),
        "chrm-short": chunk(b"cHRM", bytes(7)),
        "chrm-empty": chunk(b"cHRM"),
        "srgb-empty": chunk(b"sRGB"),
        "phys-short": chunk(b"pHYs", bytes(3)),
        "phys-empty": chunk(b"pHYs"),
        "gama-empty": chunk(b"gAMA"),
        "gama-zero": chunk(b"gAMA", bytes(4)),
        "time-short": chunk(b"tIME", bytes(2)),
        "trns-short": chunk(b"tRNS", b"\0"),
        "trns-empty": chunk(b"tRNS"),
        "bkgd-short": chunk(b"bKGD", b"\0"),
        "actl-empty": chunk(b"acTL"),
        "fctl-short": chunk(b"fcTL", bytes(3)),
        "cicp": chunk(b"cICP", bytes((9, 16, 0, 1))),
    }
    for name, block in flawed.items():
        yield Case(f"png-{name}", plain(before=block), stored)
    for name in ("text-crc", "exif-crc", "ztxt-bomb", "phys-short", "private-crc", "time-short"):
        yield Case(f"png-{name}-behind-idat", plain(after=flawed[name]), stored)
    yield Case("png-500-ztxt-bombs", plain(before=flawed["ztxt-bomb"] * 500), stored)
    yield Case("png-50000-chunks", plain(before=chunk(b"prIv") * 50_000), stored)
    yield Case("png-100-flawed", plain(before=flawed["text-crc"] * 100), stored)
    yield Case("png-trailing-bytes", plain() + b"PK\x03\x04" + bytes(100), stored)
    animated = chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(
        b"fcTL", struct.pack(">IIIIIHHBB", 0, *reversed(PIXELS.shape[:2]), 0, 0, 1, 10, 0, 0)
    )
    second = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 1, *reversed(PIXELS.shape[:2]), 0, 0, 1, 10, 0, 0))
    black = zlib.compress(scanlines(np.zeros_like(noise()), 8))
    frame = second + chunk(b"fdAT", struct.pack(">I", 2) + black)
    yield Case("png-animated", plain(before=animated, after=frame), stored)


def _refused() -> Iterator[Case]:
    """Critical chunks are strict; what unpacks to more than it should is refused before it is unpacked."""
    data = plain()
    broken = Refused("PNG.*(broken|truncated)")
    pixels = data.index(b"IDAT")
    for name, place in (("ihdr", 20), ("idat", pixels + 30)):
        yield Case(f"png-{name}-crc", data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :], broken)
    packed = zlib.compress(scanlines(noise(), 8))
    head = header(*reversed(PIXELS.shape[:2]))
    half = packed[: len(packed) // 2]
    cases: dict[str, tuple[bytes, Verdict]] = {
        "no-idat": (head + END, broken),
        "no-ihdr": (SIGNATURE + chunk(b"IDAT", packed) + END, broken),
        "signature-only": (SIGNATURE, broken),
        "half-idat": (head + chunk(b"IDAT", half) + END, broken),
        "too-few-passes": (
            header(*SIZE, interlaced=True) + chunk(b"IDAT", zlib.compress(scanlines(noise()[::8, ::8], 8))) + END,
            broken,
        ),
        "too-few-rows": (with_scanlines(SIZE, scanlines(noise()[:-3], 8)), broken),
        "too-few-bytes-in-a-row": (with_scanlines(SIZE, scanlines(noise(), 8)[:-1]), broken),
        "garbage-idat": (head + chunk(b"IDAT", bytes(range(256))) + END, broken),
        "unknown-critical": (plain(before=chunk(b"CRIT", b"x")), Refused("PNG")),
        "no-palette": (write(noise(channels=1), 8, PALETTE), Refused("PNG")),
        "0x10": (header(0, 10) + chunk(b"IDAT", packed) + END, Refused("PNG|0 x 10")),
        "depth-3": (header(5, 5, 3, GRAY) + chunk(b"IDAT", packed) + END, Refused("PNG")),
        "color-type-5": (header(5, 5, 8, 5) + chunk(b"IDAT", packed) + END, Refused("PNG")),
        "bomb": (header(50_000, 50_000) + chunk(b"IDAT", packed) + END, Refused("50000 x 50000 .* limit")),
        "sliver-bomb": (header(2**31 - 1, 1) + chunk(b"IDAT", packed) + END, Refused("2147483647 x 1 .* limit")),
    }
    for name, (made, verdict) in cases.items():
        yield Case(f"png-{name}", made, verdict)
    yield from truncated("png", data, "PNG", fractions=(0.2, 0.5, 0.75, 0.9))
    yield from truncated("png-interlaced", write(noise(), 8, RGB, interlaced=True), "PNG", fractions=(0.3, 0.7))


def cases() -> Iterator[Case]:
    """Return all PNG files."""
    yield from _modes()
    yield from _metadata()
    yield from _refused()
