"""AVIF and HEIC files: the bitstreams are libaom's and x265's, the container is written after ISO/IEC 23008-12."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
from PIL import Image

from corpus import reference
from corpus.case import Case, Refused, Taken, exif, smooth, truncated, upright, xmp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from corpus.case import Pixels

WIDTH, HEIGHT = 72, 40  # 4:2:0 and x265's blocks of 8
_TILE = 64
# Of a smooth picture: chroma is halved, and a matrix to and fro rounds.
_LOSS = 6
_LOSSY = 12


def box(kind: bytes, *parts: bytes) -> bytes:
    """Return a box."""
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """Return a box with a version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the file: number N is the N-th, from 1.

    Attributes:
        kind: "hvc1", "av01", "grid", "Exif", "mime".
        data: Its bytes.
        properties: Boxes; those of irot, imir, hvcC and av1C are essential.
        references: {kind: numbers of other items}.
        hidden: Not to be shown by itself, as tiles are.
    """

    kind: bytes
    data: bytes
    properties: tuple[bytes, ...] = ()
    references: dict[bytes, tuple[int, ...]] = field(default_factory=dict)
    hidden: bool = False


def write(*items: Item, brand: bytes, primary: int = 1) -> bytes:
    """Return a file of items."""
    start = box(b"ftyp", brand, bytes(4), brand, b"mif1miaf")
    boxes = list(dict.fromkeys(one for item in items for one in item.properties))
    entries = [
        full(b"infe", 2, item.hidden, struct.pack(">HH4s", number, 0, item.kind), b"\0", *_mime(item.kind))
        for number, item in enumerate(items, 1)
    ]
    essential = {b"irot", b"imir", b"hvcC", b"av1C", b"clap"}
    associations = b"".join(
        struct.pack(">HB", number, len(item.properties))
        + bytes(boxes.index(one) + 1 | 0x80 * (one[4:8] in essential) for one in item.properties)
        for number, item in enumerate(items, 1)
    )
    references = b"".join(
        box(kind, struct.pack(f">HH{len(targets)}H", number, len(targets), *targets))
        for number, item in enumerate(items, 1)
        for kind, targets in item.references.items()
    )

    def meta(first: int) -> bytes:
        offsets = [first + sum(len(item.data) for item in items[:number]) for number in range(len(items))]
        locations = b"".join(
            struct.pack(">HHHII", number, 0, 1, offset, len(item.data))
            for number, (item, offset) in enumerate(zip(items, offsets, strict=True), 1)
        )
        return full(
            b"meta",
            0,
            0,
            full(b"hdlr", 0, 0, struct.pack(">I4s12x", 0, b"pict"), b"\0"),
            full(b"pitm", 0, 0, struct.pack(">H", primary)),
            full(b"iloc", 0, 0, b"\x44\0", struct.pack(">H", len(items)), locations),
            full(b"iinf", 0, 0, struct.pack(">H", len(items)), *entries),
            full(b"iref", 0, 0, references) if references else b"",
            box(
                b"iprp",
                box(b"ipco", *boxes),
                full(b"ipma", 0, 0, struct.pack(">I", len(items)), associations),
            ),
        )

    return start + meta(len(start) + len(meta(0)) + 8) + box(b"mdat", *(item.data for item in items))


def _mime(kind: bytes) -> tuple[bytes, ...]:
    return (b"application/rdf+xml\0",) if kind == b"mime" else ()


def size(width: int, height: int) -> bytes:
    """Return the property of an item's size."""
    return full(b"ispe", 0, 0, struct.pack(">II", width, height))


_COLORS = box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 6, 0x80))  # BT.601's matrix, full range


def turn(quarters: int) -> bytes:
    """Return the property that turns an item against the clock."""
    return box(b"irot", bytes([quarters]))


def mirror(axis: int) -> bytes:
    """Return the property that exchanges top and bottom (0), or left and right (1)."""
    return box(b"imir", bytes([axis]))


def transformed(pixels: Pixels, quarters: int, axis: int | None) -> Pixels:
    """Return what a turn and then a mirror make of pixels."""
    turned = np.rot90(pixels, quarters)
    return np.ascontiguousarray(turned if axis is None else np.flip(turned, axis))


def planes(pixels: Pixels, *, bits: int = 8) -> list[np.ndarray[Any, Any]]:
    """Return Y, Cb and Cr of a picture of even sides, 4:2:0, BT.601, full range."""
    red, green, blue = (pixels[..., channel].astype(np.float64) for channel in range(3))
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    chroma = [128 + (blue - luma) / 1.772, 128 + (red - luma) / 1.402]
    height, width = luma.shape
    halved = [plane.reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for plane in chroma]
    scale = (2**bits - 1) / 255
    return [
        (plane * scale).round().clip(0, 2**bits - 1).astype(np.uint8 if bits == 8 else np.uint16)
        for plane in (luma, *halved)
    ]


def hevc(pixels: Pixels, *, bits: int = 8) -> tuple[bytes, bytes]:
    """Return a picture as HEVC: the bitstream with lengths before its units, and the hvcC property."""
    height, width = pixels.shape[:2]
    encoder = cast("Any", av.CodecContext.create("libx265", "w"))
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p" if bits == 8 else "yuv420p10le"
    encoder.time_base = Fraction(1, 25)
    settings = "log-level=none:info=0:lossless=1:keyint=1:pools=none:frame-threads=1:range=full:colormatrix=smpte170m"
    encoder.options = {"preset": "ultrafast", "x265-params": settings}
    frame = cast("Any", av.VideoFrame)(width, height, encoder.pix_fmt)
    for plane, samples in zip(frame.planes, planes(pixels, bits=bits), strict=True):
        rows = samples.view(np.uint8).reshape(len(samples), -1)
        plane.update(np.pad(rows, ((0, 0), (0, plane.line_size - rows.shape[1]))).tobytes())
    stream = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])
    units = [unit.rstrip(b"\0") for unit in stream.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1") if unit]
    kinds: dict[int, bytes] = {unit[0] >> 1 & 0x3F: unit for unit in units}
    video, sequence, picture = (kinds.pop(kind) for kind in (32, 33, 34))
    profile = sequence.replace(b"\0\0\3", b"\0\0")[3:15]
    depth = 0xF8 | (bits - 8)
    sets = b"".join(
        bytes([0x80 | kind]) + struct.pack(">HH", 1, len(unit)) + unit
        for kind, unit in ((32, video), (33, sequence), (34, picture))
    )
    config = b"\1" + profile + bytes([0xF0, 0, 0xFC, 0xFD, depth, depth, 0, 0, 0x0F, 3]) + sets
    pictures = b"".join(struct.pack(">I", len(unit)) + unit for unit in kinds.values() if unit[0] >> 1 & 0x3F < 32)
    return pictures, box(b"hvcC", config)


def avif_file(pixels: Pixels, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "AVIF", **({"quality": 90, "speed": 8, "max_threads": 1} | options))
    return buffer.getvalue()


def av1(pixels: Pixels, **options: object) -> tuple[bytes, bytes]:
    """Return a picture as AV1: the bitstream, and the av1C property."""
    data = avif_file(pixels, **options)
    place = data.index(b"av1C") - 4
    return data[data.rindex(b"mdat") + 4 :], data[place : place + int.from_bytes(data[place : place + 4], "big")]


@dataclass(frozen=True, slots=True)
class Flavor:
    """What tells the two formats apart."""

    name: str
    brand: bytes
    kind: bytes
    encode: Callable[[Pixels], tuple[bytes, bytes]]


_HEIC = Flavor("heic", b"heic", b"hvc1", hevc)
_AVIF = Flavor("avif", b"avif", b"av01", av1)


def _common(flavor: Flavor) -> Iterator[Case]:
    """What both formats have: the container."""
    pixels = smooth(WIDTH, HEIGHT)
    stream, config = flavor.encode(pixels)
    basic = (size(WIDTH, HEIGHT), config, _COLORS)

    def file(*properties: bytes, more: tuple[Item, ...] = (), **references: tuple[int, ...]) -> bytes:
        named = {kind.encode(): targets for kind, targets in references.items()}
        return write(Item(flavor.kind, stream, (*basic, *properties), named), *more, brand=flavor.brand)

    def shown(quarters: int = 0, axis: int | None = None) -> Taken:
        return Taken(transformed(pixels, quarters, axis), tolerance=_LOSS)

    name = flavor.name
    yield Case(name, file(), shown())
    for quarters in range(4):
        for axis in (None, 0, 1):
            properties = () if axis is None else (mirror(axis),)
            case = f"{name}-turn-{quarters}" + ("" if axis is None else f"-mirror-{axis}")
            yield Case(case, file(turn(quarters), *properties), shown(quarters, axis))
    # ISO/IEC 23008-12: turns and mirrors are properties of the item, and EXIF's orientation is not applied.
    about: dict[bytes, tuple[int, ...]] = {b"cdsc": (1,)}
    for orientation in (1, 6):
        block = Item(b"Exif", bytes(4) + exif(orientation), references=about)
        yield Case(f"{name}-exif-{orientation}", file(more=(block,)), shown())
        yield Case(f"{name}-turn-3-exif-{orientation}", file(turn(3), more=(block,)), shown(3))
    claim = Item(b"mime", xmp(6), references=about)
    yield Case(f"{name}-xmp-6", file(more=(claim,)), shown())
    garbled = Item(b"Exif", b"\xff" * 20, references=about)
    yield Case(f"{name}-exif-garbled", file(more=(garbled,)), shown())
    thumbnail = Item(flavor.kind, stream, basic, {b"thmb": (1,)})
    yield Case(f"{name}-thumbnail", file(more=(thumbnail,)), shown())
    yield Case(f"{name}-trailing-bytes", file() + bytes(100), shown())
    unknown = box(b"what", bytes(8))
    yield Case(f"{name}-unknown-property", file(unknown), shown())
    yield Case(f"{name}-unknown-box", file() + box(b"free", bytes(50)), shown())
    other = flavor.encode(np.invert(pixels))
    second = Item(flavor.kind, other[0], (basic[0], other[1], _COLORS))
    yield Case(f"{name}-2-pictures", file(more=(second,)), shown())
    data = write(second, Item(flavor.kind, stream, basic), brand=flavor.brand, primary=2)
    yield Case(f"{name}-second-is-primary", data, shown())

    canvas = smooth(2 * _TILE - 18, 2 * _TILE - 10)
    whole = np.pad(canvas, ((0, 10), (0, 18), (0, 0)), mode="edge")
    tiles = [
        flavor.encode(np.ascontiguousarray(whole[top : top + _TILE, left : left + _TILE]))
        for top in (0, _TILE)
        for left in (0, _TILE)
    ]
    items = [Item(flavor.kind, tile, (size(_TILE, _TILE), made, _COLORS), hidden=True) for tile, made in tiles]

    def grid(
        width: int, height: int, *properties: bytes, across: int = 2, tiles: tuple[int, ...] = (2, 3, 4, 5)
    ) -> bytes:
        layout = struct.pack(">BBBBII", 0, 1, len(tiles) // across - 1, across - 1, width, height)
        first = Item(b"grid", layout, (size(width, height), _COLORS, *properties), {b"dimg": tiles})
        return write(first, *items, brand=flavor.brand)

    width, height = canvas.shape[1], canvas.shape[0]
    yield Case(f"{name}-grid", grid(width, height), Taken(canvas, tolerance=_LOSS))
    turned = Taken(transformed(canvas, 1, None), tolerance=_LOSS)
    yield Case(f"{name}-grid-turn-1", grid(width, height, turn(1)), turned)

    label = name.upper()
    broken = f"{label}.*(broken|truncated)"
    pair = struct.pack(">II", WIDTH, HEIGHT)
    for case, made, message in (
        ("bomb", file().replace(pair, struct.pack(">II", 60_000, 60_000)), f"60000 x 60000 .* limit|{broken}"),
        ("grid-bomb", grid(16_000, 16_000, across=2, tiles=(2, 3, 4, 5)), f"16000 x 16000 .* limit|{broken}"),
        ("garbage-for-pixels", file().replace(stream[:100], bytes(100)), broken),
        ("no-config", write(Item(flavor.kind, stream, (basic[0],)), brand=flavor.brand), label),
        ("no-meta", file()[:28] + box(b"mdat", stream), label),
        ("brand-only", file()[:28], label),
        ("grid-of-itself", grid(64, 64, across=1, tiles=(1,)), label),
        ("primary-nowhere", write(Item(flavor.kind, stream, basic), brand=flavor.brand, primary=9), label),
    ):
        yield Case(f"{name}-{case}", made, Refused(message))
    yield from truncated(name, file(), label, fractions=(0.1, 0.5, 0.9))


def heic() -> Iterator[Case]:
    """Return HEIC files."""
    yield from _common(_HEIC)
    pixels = smooth(WIDTH, HEIGHT)
    stream, config = hevc(pixels, bits=10)
    data = write(Item(b"hvc1", stream, (size(WIDTH, HEIGHT), config, _COLORS)), brand=b"heic")
    yield Case("heic-10-bit", data, Taken(pixels, tolerance=_LOSS))


def avif() -> Iterator[Case]:
    """Return AVIF files."""
    yield from _common(_AVIF)
    pixels = smooth()
    for subsampling in ("4:2:0", "4:2:2", "4:4:4"):
        data = avif_file(pixels, subsampling=subsampling)
        shown = Taken(reference.decode("avif", data), tolerance=2)  # two versions of dav1d and libyuv
        yield Case(f"avif-{subsampling.replace(':', '')}", data, shown)
    for width, height in ((1, 1), (1, 30), (30, 1)):
        small = smooth(width, height)
        yield Case(f"avif-{width}x{height}", avif_file(small), Taken(small, tolerance=_LOSSY))
    with_alpha = np.dstack([pixels, np.full(pixels.shape[:2], 90, np.uint8)])
    yield Case("avif-alpha", avif_file(with_alpha), Taken(pixels, tolerance=_LOSSY))
    for orientation in range(1, 9):
        block = Image.Exif()
        block[0x0112] = orientation
        data = avif_file(pixels, exif=block)
        yield Case(f"avif-by-pillow-{orientation}", data, Taken(upright(pixels, orientation), tolerance=_LOSSY))
    buffer = io.BytesIO()
    frames = [Image.fromarray(picture) for picture in (pixels, 255 - pixels)]
    frames[0].save(buffer, "AVIF", save_all=True, append_images=frames[1:], quality=90, speed=8)
    yield Case("avif-animated", buffer.getvalue(), Taken(pixels, tolerance=_LOSSY))


def cases() -> Iterator[Case]:
    """Return the files of both formats."""
    yield from heic()
    yield from avif()
