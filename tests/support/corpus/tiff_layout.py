"""A writer of TIFF files, after Adobe's TIFF 6.0, its supplements and the design of BigTIFF."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from corpus.case import ASCII, LONG, SHORT
from corpus.codes import lzw, pack_bits, packed_rows

if TYPE_CHECKING:
    from corpus.case import Samples

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK = 0, 1, 2, 3, 5
NONE, LZW, DEFLATE, ADOBE_DEFLATE, PACK_BITS = 1, 5, 32946, 8, 32773
BYTE, UNDEFINED, _LONG8 = 1, 7, 16

Entries: TypeAlias = dict[int, tuple[int, list[int]]]
"""Of a directory, by tag: the type and the values."""

_LETTERS = {BYTE: "B", ASCII: "B", UNDEFINED: "B", SHORT: "H", LONG: "I", _LONG8: "Q"}


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
