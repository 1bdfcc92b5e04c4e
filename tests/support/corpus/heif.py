"""AVIF and HEIC files, with bitstreams by libaom and x265."""

from __future__ import annotations

import dataclasses
import functools
import io
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, cast

import av
import numpy as np
from PIL import Image

from corpus import reference
from corpus.case import Case, Judged, Refused, Taken, exif, smooth, truncated, upright, xmp
from corpus.heif_boxes import COLORS, Item, ispe, mirror, turn, write
from corpus.parts import box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from corpus.case import Pixels

WIDTH, HEIGHT = 72, 40  # 4:2:0 and x265's blocks of 8
_TILE = 64
_CANVAS = smooth(2 * _TILE - 18, 2 * _TILE - 10)
_START = 28  # bytes of the first box
_ABOUT: dict[bytes, tuple[int, ...]] = {b"cdsc": (1,)}
# Of a smooth picture: chroma is halved, and a matrix to and fro rounds.
_LOSS = 6
_LOSSY = 12


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


def heic_file(pixels: Pixels, *, bits: int = 8) -> bytes:
    """Return a picture of even sides as HEIC."""
    stream, config = hevc(pixels, bits=bits)
    return write(Item(b"hvc1", stream, (ispe(pixels.shape[1], len(pixels)), config, COLORS)), brands=HEIC.brands)


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
    """The differences between the two formats."""

    name: str
    brands: tuple[bytes, ...]
    kind: bytes
    encode: Callable[[Pixels], tuple[bytes, bytes]]


HEIC = Flavor("heic", (b"heic", b"mif1", b"miaf"), b"hvc1", hevc)
AVIF = Flavor("avif", (b"avif", b"mif1", b"miaf"), b"av01", av1)


@functools.cache
def _basic(flavor: Flavor) -> Item:
    """Return the item of smooth(WIDTH, HEIGHT)."""
    stream, config = flavor.encode(smooth(WIDTH, HEIGHT))
    return Item(flavor.kind, stream, (ispe(WIDTH, HEIGHT), config, COLORS))


def _file(flavor: Flavor, *properties: bytes, more: tuple[Item, ...] = ()) -> bytes:
    item = _basic(flavor)
    return write(dataclasses.replace(item, properties=(*item.properties, *properties)), *more, brands=flavor.brands)


def _shown(quarters: int = 0, axis: int | None = None) -> Taken:
    return Taken(transformed(smooth(WIDTH, HEIGHT), quarters, axis), tolerance=_LOSS)


def _orientations(flavor: Flavor) -> Iterator[Case]:
    """Return turns and mirrors, which are properties of the item: EXIF's orientation is not applied."""
    name = flavor.name
    yield Case(name, _file(flavor), _shown())
    for quarters in range(4):
        for axis in (None, 0, 1):
            properties = () if axis is None else (mirror(axis),)
            case = f"{name}-turn-{quarters}" + ("" if axis is None else f"-mirror-{axis}")
            yield Case(case, _file(flavor, turn(quarters), *properties), _shown(quarters, axis))
    for case, block in (
        ("exif-1", Item(b"Exif", bytes(4) + exif(1), references=_ABOUT)),
        ("exif-6", Item(b"Exif", bytes(4) + exif(6), references=_ABOUT)),
        ("xmp-6", Item(b"mime", xmp(6), references=_ABOUT)),
        ("exif-garbled", Item(b"Exif", b"\xff" * 20, references=_ABOUT)),
    ):
        yield Case(f"{name}-{case}", _file(flavor, more=(block,)), _shown())
        yield Case(f"{name}-turn-3-{case}", _file(flavor, turn(3), more=(block,)), _shown(3))


def _containers(flavor: Flavor) -> Iterator[Case]:
    """Return files with more than the picture in them."""
    name, basic = flavor.name, _basic(flavor)
    stream, config = flavor.encode(np.invert(smooth(WIDTH, HEIGHT)))
    second = Item(flavor.kind, stream, (ispe(WIDTH, HEIGHT), config, COLORS))
    for case, data in (
        ("thumbnail", _file(flavor, more=(dataclasses.replace(second, references={b"thmb": (1,)}),))),
        ("trailing-bytes", _file(flavor) + bytes(100)),
        ("unknown-property", _file(flavor, box(b"what", bytes(8)))),
        ("unknown-box", _file(flavor) + box(b"free", bytes(50))),
        ("2-pictures", _file(flavor, more=(second,))),
        ("second-is-primary", write(second, basic, brands=flavor.brands, primary=2)),
    ):
        yield Case(f"{name}-{case}", data, _shown())
    overlay = bytes(10) + struct.pack(">HH", WIDTH, HEIGHT) + bytes(8) * 1000
    first = Item(b"iovl", overlay, basic.properties[:1], {b"dimg": (2,) * 1000})
    data = write(first, dataclasses.replace(basic, hidden=True), brands=flavor.brands)
    yield Case(f"{name}-overlay-of-1000", data, Judged(""))


@functools.cache
def _tiles(flavor: Flavor) -> tuple[Item, ...]:
    """Return the four tiles of _CANVAS, which ends within them."""
    height, width = _CANVAS.shape[:2]
    whole = np.pad(_CANVAS, ((0, 2 * _TILE - height), (0, 2 * _TILE - width), (0, 0)), mode="edge")
    parts = [
        flavor.encode(np.ascontiguousarray(whole[top : top + _TILE, left : left + _TILE]))
        for top in (0, _TILE)
        for left in (0, _TILE)
    ]
    return tuple(Item(flavor.kind, part, (ispe(_TILE, _TILE), made, COLORS), hidden=True) for part, made in parts)


def _grid(
    flavor: Flavor, width: int, height: int, *properties: bytes, tiles: tuple[int, ...] = (2, 3, 4, 5), across: int = 2
) -> bytes:
    layout = struct.pack(">BBBBII", 0, 1, len(tiles) // across - 1, across - 1, width, height)
    first = Item(b"grid", layout, (ispe(width, height), COLORS, *properties), {b"dimg": tiles})
    return write(first, *_tiles(flavor), brands=flavor.brands)


def _grids(flavor: Flavor) -> Iterator[Case]:
    """Return pictures of tiles, as phones write them."""
    height, width = _CANVAS.shape[:2]
    yield Case(f"{flavor.name}-grid", _grid(flavor, width, height), Taken(_CANVAS, tolerance=_LOSS))
    turned = Taken(transformed(_CANVAS, 1, None), tolerance=_LOSS)
    yield Case(f"{flavor.name}-grid-turn-1", _grid(flavor, width, height, turn(1)), turned)


def _refused(flavor: Flavor) -> Iterator[Case]:
    label, basic, file = {"heic": "HEI[CF]", "avif": "AVIF"}[flavor.name], _basic(flavor), _file(flavor)
    broken = f"{label}.*(broken|truncated)"
    pair = struct.pack(">II", WIDTH, HEIGHT)
    bare = dataclasses.replace(basic, properties=basic.properties[:1])
    for case, made, message in (
        ("bomb", file.replace(pair, struct.pack(">II", 60_000, 60_000)), f"limit|{broken}"),
        ("grid-bomb", _grid(flavor, 16_000, 16_000), f"limit|{broken}"),
        ("garbage-for-pixels", file.replace(basic.data[:100], bytes(100)), broken),
        ("no-config", write(bare, brands=flavor.brands), label),
        ("no-meta", file[:_START] + box(b"mdat", basic.data), f"{label}|still picture"),
        ("brand-only", file[:_START], f"{label}|still picture"),
        ("grid-of-itself", _grid(flavor, 64, 64, across=1, tiles=(1,)), label),
        ("primary-nowhere", write(basic, brands=flavor.brands, primary=9), label),
    ):
        yield Case(f"{flavor.name}-{case}", made, Refused(message))
    yield from truncated(flavor.name, file, label, fractions=(0.1, 0.5, 0.9))


def _common(flavor: Flavor) -> Iterator[Case]:
    yield from _orientations(flavor)
    yield from _containers(flavor)
    yield from _grids(flavor)
    yield from _refused(flavor)


def heic() -> Iterator[Case]:
    """Return HEIC files."""
    yield from _common(HEIC)
    pixels = smooth(WIDTH, HEIGHT)
    yield Case("heic-10-bit", heic_file(pixels, bits=10), Taken(pixels, tolerance=_LOSS))


def avif() -> Iterator[Case]:
    """Return AVIF files."""
    yield from _common(AVIF)
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
