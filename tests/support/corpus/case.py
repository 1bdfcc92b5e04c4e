"""A file of the corpus, what must become of it, and the pictures that files are made from."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Samples = npt.NDArray[np.integer[Any]]
    Pixels = npt.NDArray[np.uint8]

SIZE = (37, 23)  # width, height: odd and prime, so that no row, block or byte boundary meets the edge
SHORT, LONG, ASCII = 3, 4, 2
_TYPE_LETTERS = {SHORT: "H", LONG: "I"}
_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Taken:
    """The file must be taken with these pixels.

    Attributes:
        pixels: (H, W, 3), as shown.
        tolerance: The largest difference of a sample.
        where: (H, W) of the pixels that are defined; all where it is left out.
        or_refused: The file is rare enough to be refused with a message that this expression finds.
    """

    pixels: Pixels
    tolerance: int = 0
    where: npt.NDArray[np.bool_] | None = None
    or_refused: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """The file must be refused with a message that this expression finds."""

    message: str


@dataclass(frozen=True, slots=True)
class Judged:
    """A damaged file: it must be refused, or taken with the pixels that the reference finds.

    Attributes:
        reference: The decoder of reference.py to ask; "" where there is none.
        tolerance: The largest difference of a sample.
        undamaged: (H, W, 3), the pixels of a file with checksums: what the reference refuses has these or none.
    """

    reference: str
    tolerance: int = 0
    undamaged: Pixels | None = None


Verdict = Taken | Refused | Judged


@dataclass(frozen=True, slots=True)
class Case:
    """One file, named after its recipe."""

    name: str
    data: bytes = field(repr=False)
    verdict: Verdict = field(repr=False)


def noise(width: int = SIZE[0], height: int = SIZE[1], *, channels: int = 3, depth: int = 8) -> Samples:
    """Return samples of all values, (H, W, channels), that no flip or turn maps to themselves."""
    generator = np.random.default_rng((width, height, channels, depth))
    samples = generator.integers(0, 2**depth, (height, width, channels))
    samples[0, 0], samples[-1, -1] = 0, 2**depth - 1
    return samples


def smooth(width: int = SIZE[0], height: int = SIZE[1]) -> Pixels:
    """Return a picture, (H, W, 3), that survives lossy encoding: each channel has another slope."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    return (255 * np.stack([0.1 + 0.8 * x, 0.9 - 0.7 * y, 0.2 + 0.3 * x + 0.3 * y], axis=2)).round().astype(np.uint8)


def to_rgb(samples: Samples, *, depth: int = 8) -> Pixels:
    """Return gray, gray and alpha, RGB or RGBA samples as RGB: alpha is dropped, 16 bits keep the high byte."""
    samples = samples >> 8 if depth == 16 else samples * 255 // (2**depth - 1)
    colors = samples[..., :3] if samples.shape[2] >= 3 else np.repeat(samples[..., :1], 3, axis=2)
    return colors.astype(np.uint8)


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """Return stored pixels as shown, after the table of the tag Orientation in TIFF 6.0."""
    turned = pixels.transpose(1, 0, 2)
    return np.ascontiguousarray(
        {
            1: pixels,  # the first row is the top, the first column the left-hand side
            2: pixels[:, ::-1],  # top, right
            3: pixels[::-1, ::-1],  # bottom, right
            4: pixels[::-1],  # bottom, left
            5: turned,  # left, top
            6: turned[:, ::-1],  # right, top
            7: turned[::-1, ::-1],  # right, bottom
            8: turned[::-1],  # left, bottom
        }[orientation]
    )


def exif(
    orientation: int, *, order: Literal["<", ">"] = "<", kind: int = SHORT, thumbnail_orientation: int | None = None
) -> bytes:
    """Return an EXIF block, from the TIFF header on, that holds an orientation, also that of a thumbnail."""

    def directory(value: int, following: int) -> bytes:
        packed = f"{value}\0".encode() if kind == ASCII else struct.pack(order + _TYPE_LETTERS[kind], value)
        entry = struct.pack(order + "HHI4s", _ORIENTATION, kind, len(packed) if kind == ASCII else 1, packed)
        return struct.pack(order + "H", 1) + entry + struct.pack(order + "I", following)

    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    if thumbnail_orientation is None:
        return header + directory(orientation, 0)
    return header + directory(orientation, 26) + directory(thumbnail_orientation, 0)


def xmp(orientation: int) -> bytes:
    """Return an XMP packet that claims an orientation."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        f'tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def truncated(name: str, data: bytes, kind: str, *, fractions: tuple[float, ...] = (0.4, 0.6, 0.8, 0.95)) -> list[Case]:
    """Return the file cut at fractions of its length, all of which lie in its pixels."""
    return [
        Case(f"{name}-cut-at-{fraction:.0%}", data[: int(len(data) * fraction)], Refused(f"{kind}.*truncated"))
        for fraction in fractions
    ]
