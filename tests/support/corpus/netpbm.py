"""PBM, PGM and PPM files, after the pages pbm(5), pgm(5) and ppm(5) of Netpbm."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from corpus.case import Case, Refused, Taken, noise, to_rgb, truncated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corpus.case import Pixels, Samples

_BYTE = 255


def _samples(channels: int, maximum: int) -> Samples:
    samples = noise(channels=channels, depth=16) % (maximum + 1)
    samples[-1, -1] = maximum
    return samples


def write(samples: Samples, maximum: int, *, plain: bool = False, header: bytes = b"P%d\n%d %d\n%d\n") -> bytes:
    """Return a PGM or PPM of (H, W, 1 or 3) samples; two bytes each where the maximum asks for them."""
    height, width, channels = samples.shape
    start = header % ((2 if channels == 1 else 3) + (0 if plain else 3), width, height, maximum)
    if plain:
        return start + b"\n".join(b" ".join(b"%d" % sample for sample in row.reshape(-1)) for row in samples) + b"\n"
    return start + samples.astype(">u2" if maximum > _BYTE else np.uint8).tobytes()


def bitmap(bits: Samples) -> bytes:
    """Return a PBM of (H, W) bits; 1 is black."""
    height, width = bits.shape
    return b"P4\n%d %d\n" % (width, height) + b"".join(np.packbits(row.astype(np.uint8)).tobytes() for row in bits)


def _shown(samples: Samples, maximum: int) -> Taken:
    """Return samples as shown; decoders differ by 1 in rounding if the maximum is not 255."""
    if maximum == _BYTE:
        return Taken(to_rgb(samples))
    scaled = (samples * _BYTE / maximum).round().astype(np.int64)
    return Taken(to_rgb(scaled), tolerance=1, or_refused=f"maximum.*{maximum}")


def black_and_white(bits: Samples) -> Pixels:
    """Return (H, W) bits, of which 1 is black, as RGB."""
    return to_rgb((1 - bits[..., np.newaxis]) * _BYTE)


def cases() -> Iterator[Case]:
    """Return all of them."""
    for channels, kind in ((1, "pgm"), (3, "ppm")):
        for maximum in (1, 15, 100, 254, 255, 256, 1023, 4095, 65535):
            samples = _samples(channels, maximum)
            yield Case(f"{kind}-maximum-{maximum}", write(samples, maximum), _shown(samples, maximum))
    bits = noise(channels=1, depth=1)[..., 0]
    yield Case("pbm", bitmap(bits), Taken(black_and_white(bits)))
    samples = _samples(3, _BYTE)
    shown = _shown(samples, _BYTE)
    for name, header in (
        ("comments", b"P%d\n# made by hand\n%d # width\n%d\n#\n%d\n"),
        ("one-line", b"P%d %d %d %d "),
        ("tabs", b"P%d\t%d\t\t%d\r\n%d\n"),
        ("leading-zeros", b"P%d\n00%d 0%d\n0%d\n"),
    ):
        yield Case(f"ppm-{name}", write(samples, _BYTE, header=header), shown)
    yield Case("ppm-trailing-bytes", write(samples, _BYTE) + b"P6 1 1 255\n" + bytes(3), shown)
    for width, height in ((1, 1), (1, 50), (50, 1)):
        small = noise(width, height)
        yield Case(f"ppm-{width}x{height}", write(small, _BYTE), Taken(to_rgb(small)))

    plain = Refused("PPM.* slow")
    yield Case("ppm-plain", write(samples, _BYTE, plain=True), plain)
    yield Case("pgm-plain", write(samples[..., :1], _BYTE, plain=True), plain)
    yield Case("pbm-plain", b"P1\n3 2\n1 0 1\n010\n", plain)
    yield Case("pfm-gray", b"Pf\n37 23\n-1.0\n" + bytes(4 * 37 * 23), Refused("floating-point"))
    yield Case("pfm-color", b"PF\n37 23\n-1.0\n" + bytes(12 * 37 * 23), Refused("floating-point|PFM"))
    for name, data in (
        ("bomb", b"P6\n100000 100000\n255\n" + bytes(100)),
        ("long-number", b"P6\n" + b"9" * 1000 + b" 5\n255\n" + bytes(100)),
        ("negative", b"P6\n-37 23\n255\n" + bytes(100)),
        ("0-wide", b"P6\n0 23\n255\n" + bytes(100)),
        ("maximum-0", b"P6\n37 23\n0\n" + bytes(5000)),
        ("maximum-65536", b"P6\n37 23\n65536\n" + bytes(9000)),
        ("letters", b"P6\nab cd\n255\n" + bytes(100)),
        ("header-only", b"P6\n37 23\n255\n"),
        ("magic-only", b"P6"),
        ("endless-comment", b"P6\n#" + b"x" * 100_000),
    ):
        yield Case(f"ppm-{name}", data, Refused("limit" if name == "bomb" else "PPM|text"))
    yield from truncated("ppm", write(samples, _BYTE), "PPM")
    yield from truncated("pgm-65535", write(_samples(1, 65535), 65535), "PPM|PGM", fractions=(0.5,))
    yield from truncated("pbm", bitmap(bits), "PPM|PBM", fractions=(0.5,))
