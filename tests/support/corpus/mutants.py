"""Valid files with seeded damage: flipped bits, lost, doubled or overwritten bytes, the tail of another file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from corpus import bmp, gif, heif, jpeg, netpbm, png, tiff_layout, webp
from corpus.case import SIZE, Case, Judged, noise, smooth, to_rgb
from corpus.tiff_layout import DEFLATE, LZW, Layout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_SEED = 13
_EACH = 12


def _flip(data: bytes, generator: np.random.Generator, _: bytes) -> bytes:
    changed = bytearray(data)
    for place in generator.integers(0, len(data), generator.integers(1, 5)):
        changed[place] ^= 1 << int(generator.integers(0, 8))
    return bytes(changed)


def _flip_in_header(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    return _flip(data[:64], generator, other) + data[64:]


def _lose(data: bytes, generator: np.random.Generator, _: bytes) -> bytes:
    place, count = int(generator.integers(0, len(data))), int(generator.integers(1, 9))
    return data[:place] + data[place + count :]


def _insert(data: bytes, generator: np.random.Generator, _: bytes) -> bytes:
    place = int(generator.integers(0, len(data)))
    return data[:place] + generator.bytes(int(generator.integers(1, 9))) + data[place:]


def _overwrite(data: bytes, generator: np.random.Generator, _: bytes) -> bytes:
    place, count = int(generator.integers(0, len(data))), int(generator.integers(1, 33))
    return data[:place] + bytes([int(generator.choice([0, 255]))]) * count + data[place + count :]


def _repeat(data: bytes, generator: np.random.Generator, _: bytes) -> bytes:
    start, end = sorted(int(place) for place in generator.integers(0, len(data), 2))
    return data[:end] + data[start:]


def _splice(data: bytes, generator: np.random.Generator, other: bytes) -> bytes:
    place = float(generator.uniform(0.1, 0.9))
    return data[: int(place * len(data))] + other[int(place * len(other)) :]


_DAMAGES = {
    "flip": _flip,
    "flip-in-header": _flip_in_header,
    "lose": _lose,
    "insert": _insert,
    "overwrite": _overwrite,
    "repeat": _repeat,
    "splice": _splice,
}


def _files() -> dict[str, tuple[bytes, Judged]]:
    """Return the damaged part, a file or the rows of a file, and the reference decoder."""
    samples, other = noise(), smooth()
    palette, indices = noise(16, 1)[0], noise(channels=1, depth=4)
    colors = png.chunk(b"PLTE", palette.astype(np.uint8).tobytes())

    def rgb_tiff(layout: Layout) -> bytes:
        return tiff_layout.write(samples, 8, tiff_layout.RGB, layout)

    of_png = Judged("png", undamaged=to_rgb(samples))
    of_palette = Judged("png", undamaged=to_rgb(palette[indices[..., 0]]))
    return {
        "png": (png.plain(), of_png),
        "png-palette": (png.write(indices, 4, png.PALETTE, before=colors), of_palette),
        "png-repaired": (png.plain(), Judged("png")),
        "png-rows": (png.scanlines(samples, 8), Judged("png")),
        "jpeg": (jpeg.encode(other, quality=90), Judged("jpeg8")),
        "jpeg-progressive": (jpeg.encode(other, quality=90, progressive=True), Judged("jpeg8")),
        "webp-lossless": (webp.encode(samples, lossless=True), Judged("webp")),
        "webp-lossy": (webp.encode(other, quality=80), Judged("webp")),
        "bmp": (bmp.write(bmp.bgr(samples), samples.shape[1], 24), Judged("bmp")),
        "gif": (gif.write(gif.Frame(indices[..., 0]), palette=palette), Judged("gif")),
        "tiff": (rgb_tiff(Layout(rows=7)), Judged("tiff")),
        "tiff-lzw": (rgb_tiff(Layout(LZW)), Judged("tiff")),
        "tiff-deflate": (rgb_tiff(Layout(DEFLATE)), Judged("tiff")),
        "ppm": (netpbm.write(samples, 255), Judged("netpbm")),
        "heic": (heif.heic_file(smooth(heif.WIDTH, heif.HEIGHT)), Judged("")),
        "avif": (heif.avif_file(other), Judged("avif", tolerance=2)),
    }


# Functions that make a file of damaged bytes, so that checksums do not reveal the damage.
_FINISH: dict[str, Callable[[bytes], bytes]] = {
    "png-repaired": png.repaired,
    "png-rows": lambda data: png.with_scanlines(SIZE, data),
}
FAMILIES = (
    "png",
    "png-palette",
    "png-repaired",
    "png-rows",
    "jpeg",
    "jpeg-progressive",
    "webp-lossless",
    "webp-lossy",
    "bmp",
    "gif",
    "tiff",
    "tiff-lzw",
    "tiff-deflate",
    "ppm",
    "heic",
    "avif",
)


def cases(family: str) -> Iterator[Case]:
    """Return the mutants of a family."""
    files = _files()
    number = FAMILIES.index(family)
    data, verdict = files[family]
    other, _ = files[FAMILIES[(number + 1) % len(FAMILIES)]]
    for kind, (damage, make) in enumerate(_DAMAGES.items()):
        generator = np.random.default_rng((_SEED, number, kind))
        for mutant in range(_EACH):
            changed = make(data, generator, other)
            finish = _FINISH.get(family)
            yield Case(f"{family}-{damage}-{mutant}", finish(changed) if finish else changed, verdict)
