"""The pictures that users send: the repository's photograph in many sizes and formats, or a folder's."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import ExifTags, Image, ImageOps

if TYPE_CHECKING:
    from collections.abc import Iterable

PHOTOGRAPH = Path(__file__).resolve().parents[1] / "tests" / "assets" / "cat.png"

# Kinds of pictures, and the largest number of pixels of each.
KINDS = {"thumbnail": 100_000, "web": 1_000_000, "photo": 4_000_000, "large": 50_000_000}

_ROTATED = 6  # EXIF orientation of a phone held upright: width and height are swapped when shown
# Standard deviation of the added noise, in gray levels. Without noise, an enlarged JPEG has a tenth of a camera's size.
_GRAIN = 5.0
_TILE = 512  # columns and rows after which the noise repeats, too far apart to help JPEG or WebP
# Stored columns and rows, the format, and whether the picture is shown rotated.
_MADE: tuple[tuple[int, int, str, bool], ...] = (
    (160, 120, "JPEG", False),
    (120, 160, "WEBP", False),
    (200, 133, "PNG", False),
    (320, 240, "JPEG", True),
    (451, 300, "PNG", False),
    (500, 375, "JPEG", False),
    (480, 640, "WEBP", False),
    (640, 480, "JPEG", False),
    (853, 1024, "JPEG", False),
    (1024, 768, "JPEG", True),
    (1280, 853, "JPEG", False),
    (1080, 1920, "JPEG", False),
    (1600, 1200, "WEBP", False),
    (1920, 1080, "JPEG", True),
    (4000, 3000, "JPEG", False),
    (4000, 3000, "JPEG", True),
    (3000, 4000, "JPEG", False),
)


class PicturesError(Exception):
    """There are no pictures to send; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One encoded picture.

    Attributes:
        name: Unique in its set. It contains a digest, so that workers with different pictures do not share replies.
        kind: One of KINDS.
        data: The encoded bytes.
        width: Columns as shown, after the EXIF orientation is applied.
        height: Rows as shown.
    """

    name: str
    kind: str
    data: bytes
    width: int
    height: int


def made(kinds: Iterable[str], *, seed: int) -> list[Picture]:
    """Return pictures made from the repository's photograph; the same seed and Pillow give the same pictures.

    Each picture is a part of the photograph, enlarged, with noise like that of a camera. One in four is stored sideways
    with an EXIF orientation.
    """
    photograph = Image.open(PHOTOGRAPH).convert("RGB")
    wanted = set(kinds)
    return [
        _picture(
            f"{columns}x{rows}{'-rotated' if rotated else ''}.{form.lower()}",
            data,
            (rows, columns) if rotated else (columns, rows),
        )
        for number, (columns, rows, form, rotated) in enumerate(_MADE)
        if kind_of(columns * rows) in wanted
        for data in (_encoded(photograph, (columns, rows), form, rotated=rotated, seed=(seed, number)),)
    ]


def from_folder(folder: Path) -> list[Picture]:
    """Return all pictures of a folder, in the order of their names.

    Raises:
        PicturesError: There are none, or one cannot be read.
    """
    if not folder.is_dir():
        raise PicturesError(f"{folder} is not a folder")
    pictures: list[Picture] = []
    paths = sorted(path for path in folder.glob("*") if path.is_file() and not path.name.startswith("."))
    for path in paths:
        data = path.read_bytes()
        try:
            shown = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
            shown.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            said = "it is empty" if not data else str(error)
            raise PicturesError(f"{path} cannot be read as a picture: {said}") from error
        pictures.append(_picture(path.name, data, shown.size))
    if not pictures:
        raise PicturesError(f"{folder} has no pictures; use a folder with at least one")
    return pictures


def kind_of(pixels: int) -> str:
    """Return the kind of a picture by its number of pixels."""
    return next((kind for kind, most in KINDS.items() if pixels <= most), "large")


def _picture(name: str, data: bytes, size: tuple[int, int]) -> Picture:
    digest = hashlib.blake2b(data, digest_size=6).hexdigest()
    return Picture(f"{name}#{digest}", kind_of(size[0] * size[1]), data, *size)


def _encoded(
    photograph: Image.Image, size: tuple[int, int], form: str, *, rotated: bool, seed: tuple[int, int]
) -> bytes:
    random = np.random.default_rng(seed)
    share = random.uniform(0.7, 1.0)  # of the photograph, around the cat
    columns, rows = photograph.width * share, photograph.height * share
    left, top = random.uniform(0, photograph.width - columns), random.uniform(0, photograph.height - rows)
    # Cropped to the wanted proportions, not stretched.
    part = ImageOps.fit(photograph.crop((int(left), int(top), int(left + columns), int(top + rows))), size)
    tile = np.rint(random.standard_normal((_TILE, _TILE, 1)) * _GRAIN).astype(np.int16)
    grain = np.tile(tile, (size[1] // _TILE + 1, size[0] // _TILE + 1, 1))[: size[1], : size[0]]
    pixels = np.clip(np.asarray(part, np.int16) + grain, 0, 255).astype(np.uint8)
    exif = Image.Exif()
    if rotated:
        exif[ExifTags.Base.Orientation] = _ROTATED
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form, exif=exif, **({} if form == "PNG" else {"quality": 88}))
    return buffer.getvalue()
