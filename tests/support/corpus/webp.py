"""WebP files: the bitstreams come from libwebp, the container is written here after Google's specification."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from corpus import reference
from corpus.case import SIZE, Case, Refused, Taken, exif, noise, smooth, to_rgb, truncated, upright, xmp
from corpus.parts import riff_chunk as chunk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corpus.case import Samples

_ANIMATION, _XMP, _EXIF, _ALPHA, _PROFILE = 0x02, 0x04, 0x08, 0x10, 0x20


def encode(samples: Samples, **options: object) -> bytes:
    """Return a WebP of (H, W, 3 or 4) samples."""
    buffer = io.BytesIO()
    Image.fromarray(samples.astype(np.uint8)).save(buffer, "WEBP", **options)
    return buffer.getvalue()


def file(*chunks: bytes) -> bytes:
    """Return a WebP of chunks."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _number(value: int) -> bytes:
    return value.to_bytes(3, "little")


def extended(flags: int, size: tuple[int, int] = SIZE) -> bytes:
    """Return the VP8X chunk."""
    return chunk(b"VP8X", bytes([flags, 0, 0, 0]) + _number(size[0] - 1) + _number(size[1] - 1))


def _bitstream(data: bytes) -> bytes:
    """Return the chunks of pixels of a WebP that Pillow wrote."""
    at, kept = 12, b""
    while at < len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        if data[at : at + 4] in {b"VP8 ", b"VP8L", b"ALPH"}:
            kept += data[at:end]
        at = end
    return kept


def frame(pixels: bytes, size: tuple[int, int], *, left: int = 0, top: int = 0) -> bytes:
    """Return a frame of an animation; left and top are even."""
    place = _number(left // 2) + _number(top // 2) + _number(size[0] - 1) + _number(size[1] - 1)
    return chunk(b"ANMF", place + _number(100) + b"\x02" + pixels)


_LOOP = chunk(b"ANIM", bytes(6))


def _modes() -> Iterator[Case]:
    samples, alpha = noise(), noise(channels=4)
    yield Case("webp-lossless", encode(samples, lossless=True), Taken(to_rgb(samples)))
    data = encode(alpha, lossless=True, exact=True)
    yield Case("webp-lossless-alpha", data, Taken(to_rgb(alpha)))
    few = (samples // 128) * 255
    yield Case("webp-lossless-palette", encode(few, lossless=True), Taken(to_rgb(few)))
    for width, height in ((1, 1), (1, 40), (40, 1), (16, 16)):
        small = noise(width, height)
        yield Case(f"webp-{width}x{height}-lossless", encode(small, lossless=True), Taken(to_rgb(small)))
        data = encode(small, quality=80)
        yield Case(f"webp-{width}x{height}-lossy", data, Taken(reference.decode("webp", data)))
    for quality in (10, 80, 100):
        data = encode(samples, quality=quality)
        yield Case(f"webp-lossy-{quality}", data, Taken(reference.decode("webp", data)))
    data = encode(alpha, quality=80)
    yield Case("webp-lossy-alpha", data, Taken(reference.decode("webp", data)))
    near = encode(smooth(), quality=90)
    yield Case("webp-lossy-smooth", near, Taken(smooth(), tolerance=12))


def _metadata() -> Iterator[Case]:
    pixels, lossless = to_rgb(noise()), _bitstream(encode(noise(), lossless=True))
    lossy = encode(noise(), quality=80)
    for orientation in range(1, 9):
        for kind, stored, stream in (
            ("lossless", pixels, lossless),
            ("lossy", reference.decode("webp", lossy), _bitstream(lossy)),
        ):
            block = chunk(b"EXIF", exif(orientation, order="<" if orientation % 2 else ">"))
            data = file(extended(_EXIF), stream, block)
            yield Case(f"webp-{kind}-exif-{orientation}", data, Taken(upright(stored, orientation)))
    turned = chunk(b"EXIF", b"Exif\0\0" + exif(6))
    shown = Taken(pixels)
    yield Case("webp-exif-6-with-prefix", file(extended(_EXIF), lossless, turned), Taken(upright(pixels, 6)))
    claim = chunk(b"XMP ", xmp(6))
    yield Case("webp-xmp-6", file(extended(_XMP), lossless, claim), shown)
    both = file(extended(_XMP | _EXIF), lossless, chunk(b"EXIF", exif(3)), claim)
    yield Case("webp-xmp-6-exif-3", both, Taken(upright(pixels, 3)))
    for name, data in (
        ("exif-garbled", file(extended(_EXIF), lossless, chunk(b"EXIF", b"II*\0\xff\xff\xff\xff\x12\x01"))),
        ("exif-empty", file(extended(_EXIF), lossless, chunk(b"EXIF", b""))),
        ("icc-garbled", file(extended(_PROFILE), chunk(b"ICCP", b"garbage"), lossless)),
        ("unknown-chunk", file(extended(0), lossless, chunk(b"WHAT", bytes(33)))),
        ("20000-chunks", file(extended(0), lossless, chunk(b"WHAT", b"") * 20_000)),
        ("extended", file(extended(0), lossless)),
        ("trailing-bytes", file(lossless) + bytes(100)),
    ):
        yield Case(f"webp-{name}", data, shown)


def _animations() -> Iterator[Case]:
    pixels, stream = to_rgb(noise()), _bitstream(encode(noise(), lossless=True))
    black = _bitstream(encode(np.zeros_like(noise()), lossless=True))
    two = frame(stream, SIZE) + frame(black, SIZE)
    data = file(extended(_ANIMATION), _LOOP, two)
    yield Case("webp-animated", data, Taken(pixels))
    data = file(extended(_ANIMATION | _EXIF), _LOOP, two, chunk(b"EXIF", exif(6)))
    yield Case("webp-animated-exif-6", data, Taken(upright(pixels, 6)))
    yield Case("webp-animated-100", file(extended(_ANIMATION), _LOOP, two * 50), Taken(pixels))
    canvas, drawn = np.zeros((40, 60, 3), np.uint8), np.zeros((40, 60), np.bool_)
    canvas[8 : 8 + SIZE[1], 6 : 6 + SIZE[0]] = pixels
    drawn[8 : 8 + SIZE[1], 6 : 6 + SIZE[0]] = True
    inside = frame(stream, SIZE, left=6, top=8) + frame(black, SIZE)
    data = file(extended(_ANIMATION | _ALPHA, (60, 40)), _LOOP, inside)
    yield Case("webp-animated-frame-inside-of-canvas", data, Taken(canvas, where=drawn))


def _refused() -> Iterator[Case]:
    lossless, lossy = encode(noise(), lossless=True), encode(noise(), quality=80)
    broken = "WebP.*(broken|truncated)"
    for name, data, message in (
        ("header-only", lossless[:12], broken),
        ("no-pixels", file(extended(0)), broken),
        (
            "canvas-bomb",
            file(extended(_ANIMATION, (16_384, 16_384)), _LOOP, frame(b"", SIZE)),
            "WebP|16384 x 16384 .* limit",
        ),
        ("lossless-bomb", file(chunk(b"VP8L", b"\x2f\xff\xff\xff\x0f" + bytes(20))), "16384 x 16384 .* limit"),
        ("no-bitstream", file(chunk(b"VP8 ", b"")), broken),
        ("lossy-signature", lossy[:23] + b"\0\0\0" + lossy[26:], broken),
    ):
        yield Case(f"webp-{name}", data, Refused(message))
    yield from truncated("webp-lossless", lossless, "WebP")
    yield from truncated("webp-lossy", lossy, "WebP")


def cases() -> Iterator[Case]:
    """Return all WebP files."""
    yield from _modes()
    yield from _metadata()
    yield from _animations()
    yield from _refused()
