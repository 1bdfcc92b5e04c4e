"""BMP files, after Microsoft's documentation of BITMAPINFOHEADER and its kin."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from corpus.case import Case, Refused, Taken, noise, to_rgb, truncated
from corpus.codes import packed_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corpus.case import Pixels, Samples

_RGB, _BITFIELDS = 0, 3
_CORE, _INFO, _V4, _V5 = 12, 40, 108, 124  # bytes of the headers


def write(
    rows: list[bytes],
    width: int,
    bits: int,
    *,
    header: int = _INFO,
    top_down: bool = False,
    palette: bytes = b"",
    masks: tuple[int, ...] = (),
    gap: int = 0,
) -> bytes:
    """Return a BMP of rows from top to bottom, which are padded here.

    Args:
        rows: The packed rows.
        width: Pixels.
        bits: Of a pixel.
        header: Bytes of the information header.
        top_down: The height is negative and the first row the top.
        palette: Its bytes, as they stand in the file.
        masks: Of red, green, blue (and alpha), for BITFIELDS.
        gap: Unused bytes in front of the pixels.
    """
    padded = [row + bytes(-len(row) % 4) for row in rows]
    pixels = b"".join(padded if top_down else padded[::-1])
    height = -len(rows) if top_down else len(rows)
    if header == _CORE:
        info = struct.pack("<IHHHH", header, width, len(rows), 1, bits)
    else:
        compression = _BITFIELDS if masks else _RGB
        colors = len(palette) // 4
        info = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(pixels), 0, 0, colors, 0)
        packed_masks = struct.pack(f"<{len(masks)}I", *masks)
        info += packed_masks if header == _INFO else packed_masks.ljust(header - _INFO, b"\0")
    offset = 14 + len(info) + len(palette) + gap
    return struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset) + info + palette + bytes(gap) + pixels


def bgr(samples: Samples) -> list[bytes]:
    return [row[:, ::-1].astype(np.uint8).tobytes() for row in samples]


def _scaled(fields: Samples, depths: tuple[int, int, int]) -> Pixels:
    """Return samples of 5 or 6 bits as 8 bits; decoders round them apart by 1."""
    return (fields * 255 / (2 ** np.array(depths) - 1)).round().astype(np.uint8)


def _modes() -> Iterator[Case]:
    for bits in (1, 4, 8):
        colors = noise(2**bits, 1)[0]
        indices = noise(channels=1, depth=bits)
        rows, shown = packed_rows(indices, bits), Taken(to_rgb(colors[indices[..., 0]]))
        padded = np.pad(colors[:, ::-1], ((0, 0), (0, 1))).astype(np.uint8).tobytes()
        for top_down in (False, True):
            data = write(rows, 37, bits, palette=padded, top_down=top_down)
            yield Case(f"bmp-{bits}" + ("-top-down" if top_down else ""), data, shown)
        tight = colors[:, ::-1].astype(np.uint8).tobytes()
        yield Case(f"bmp-{bits}-os2", write(rows, 37, bits, palette=tight, header=_CORE), shown)
        few = padded[: 4 * (2**bits // 2 + 1)]
        half = indices % (2**bits // 2 + 1)
        data = write(packed_rows(half, bits), 37, bits, palette=few)
        yield Case(f"bmp-{bits}-fewer-colors", data, Taken(to_rgb(colors[half[..., 0]])))
    samples = noise()
    pixels = Taken(to_rgb(samples))
    for width in (33, 34, 35, 36):  # every padding of a row
        narrow = samples[:, :width]
        yield Case(f"bmp-24-{width}-wide", write(bgr(narrow), width, 24), Taken(to_rgb(narrow)))
    yield Case("bmp-24-top-down", write(bgr(samples), 37, 24, top_down=True), pixels)
    yield Case("bmp-24-os2", write(bgr(samples), 37, 24, header=_CORE), pixels)
    yield Case("bmp-24-gap", write(bgr(samples), 37, 24, gap=57), pixels)
    for header in (_V4, _V5):
        yield Case(f"bmp-24-header-{header}", write(bgr(samples), 37, 24, header=header), pixels)
    with_fourth = np.concatenate([samples[..., ::-1], noise(channels=1, depth=8)], axis=2).astype(np.uint8)
    rows = [row.tobytes() for row in with_fourth]
    for top_down in (False, True):
        name = "bmp-32" + ("-top-down" if top_down else "")
        yield Case(name, write(rows, 37, 32, top_down=top_down), pixels)
    zero_fourth = [np.where(np.arange(4) == 3, 0, row).astype(np.uint8).tobytes() for row in with_fourth]
    yield Case("bmp-32-fourth-byte-0", write(zero_fourth, 37, 32), pixels)
    alpha = (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    for header in (_INFO, _V4, _V5):
        masks = alpha[:3] if header == _INFO else alpha
        data = write(rows, 37, 32, header=header, masks=masks)
        yield Case(f"bmp-32-bitfields-{header}", data, pixels)
    swapped = [row[:, [2, 1, 0, 3]].tobytes() for row in with_fourth]
    data = write(swapped, 37, 32, masks=(0xFF, 0xFF00, 0xFF0000))
    yield Case("bmp-32-bitfields-red-last", data, Taken(pixels.pixels, or_refused="BMP"))
    five = noise(depth=5)
    rows = [(row @ np.array([1 << 10, 1 << 5, 1])).astype("<u2").tobytes() for row in five]
    shown = Taken(_scaled(five, (5, 5, 5)), tolerance=1)
    yield Case("bmp-16", write(rows, 37, 16), shown)
    yield Case("bmp-16-bitfields-555", write(rows, 37, 16, masks=(0x7C00, 0x3E0, 0x1F)), shown)
    six = five * np.array([1, 2, 1])
    rows = [(row @ np.array([1 << 11, 1 << 5, 1])).astype("<u2").tobytes() for row in six]
    data = write(rows, 37, 16, masks=(0xF800, 0x7E0, 0x1F))
    yield Case("bmp-16-bitfields-565", data, Taken(_scaled(six, (5, 6, 5)), tolerance=1))
    yield Case("bmp-trailing-bytes", write(bgr(samples), 37, 24) + bytes(100), pixels)


def _refused() -> Iterator[Case]:
    data = write(bgr(noise()), 37, 24)

    def at(place: int, value: int, form: str = "<i") -> bytes:
        packed = struct.pack(form, value)
        return data[:place] + packed + data[place + len(packed) :]

    for name, made, message in (
        ("bomb", at(18, 60_000)[:22] + struct.pack("<i", 60_000) + data[26:], "60000 x 60000 .* limit"),
        ("most-negative-height", at(22, -(2**31)), "BMP|limit"),
        ("negative-width", at(18, -37), "BMP|limit"),
        ("0-wide", at(18, 0), "BMP|0 x"),
        ("3-bits", at(28, 3, "<H"), "BMP"),
        ("compression-7", at(30, 7), "BMP"),
        ("header-17", at(14, 17), "BMP"),
        ("offset-behind-end", at(10, 10**6), "BMP.*(broken|truncated)"),
        ("header-only", data[:54], "BMP.*truncated"),
    ):
        yield Case(f"bmp-{name}", made, Refused(message))
    yield from truncated("bmp", data, "BMP")


def cases() -> Iterator[Case]:
    """Return all BMP files."""
    yield from _modes()
    yield from _refused()
