"""What is left of files before they are decoded."""

import ast
import contextlib
import io
import random
import struct
import sys
from pathlib import Path
from types import ModuleType

import image_boxes
import image_bytes
import image_kinds
import numpy as np
import picture_files as files
import pytest
from PIL import Image

pytestmark = pytest.mark.unit

RGB = files.quadrants()


def encoded(kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, kind, **options)
    return buffer.getvalue()


BASELINE, PROGRESSIVE = encoded("JPEG", quality=95), encoded("JPEG", quality=95, progressive=True)


@pytest.mark.parametrize("module", [image_bytes, image_boxes])
def test_the_standard_library_is_enough(module: ModuleType) -> None:
    """The client has copies of these files."""
    tree = ast.parse(Path(str(module.__file__)).read_text())
    names = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
    names += [str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert {name.partition(".")[0] for name in names} <= set(sys.stdlib_module_names)


def _scans(data: bytes) -> int:
    """Count by the structure of what Pillow's encoder writes, which has no restart markers and no fill bytes."""
    return sum(data[at : at + 2] == b"\xff\xda" for at in range(len(data)))


@pytest.mark.parametrize("jpeg", [BASELINE, PROGRESSIVE, encoded("JPEG", restart_marker_blocks=1)])
def test_scans_are_counted_to_the_end_of_the_image(jpeg: bytes) -> None:
    scans = _scans(jpeg)
    assert scans == (1 if jpeg is not PROGRESSIVE else 10)
    hidden = b"\xff\xda\0\x02" * 1000
    segments = [files.jpeg_segment(0xFE, hidden), files.jpeg_segment(0xE3, hidden), b"\xff" * 9, b"\xff\0junk"]
    assert image_bytes.jpeg_scans(files.with_segments(jpeg, *segments)) == scans
    assert image_bytes.jpeg_scans(jpeg + jpeg + hidden) == scans
    assert image_bytes.jpeg_scans(jpeg[:-2]) == scans


def test_the_frame_of_a_jpeg_is_the_one_that_a_decoder_meets_first() -> None:
    lossless = files.lossless_jpeg(RGB[..., 0])
    for jpeg, marker in ((BASELINE, 0xC0), (PROGRESSIVE, 0xC2), (lossless, 0xC3)):
        hidden = (
            files.jpeg_segment(0xFE, b"\xff\xc1" * 9),
            b"\xff" * 9,
            b"\xff\0junk",
            files.jpeg_segment(0xCC, b"\xff\xc1"),
        )
        assert image_bytes.jpeg_frame(files.with_segments(jpeg, *hidden)) == marker
        assert image_bytes.jpeg_frame(jpeg + lossless) == marker
    assert image_bytes.jpeg_frame(b"\xff\xd8" + BASELINE[BASELINE.index(b"\xff\xda") :]) == 0
    assert image_bytes.jpeg_frame(b"\xff\xd8") == 0


def test_every_scan_that_a_decoder_meets_is_counted() -> None:
    last = PROGRESSIVE.rindex(b"\xff\xda")
    scan = PROGRESSIVE[last:-2]
    for between in (
        b"",
        b"\xff\xff\xff",
        b"\xff\xd0",
        b"\xff\x01",
        b"\xff\x02\xff\xff",
        files.jpeg_segment(0xFE, scan),
    ):
        assert image_bytes.jpeg_scans(PROGRESSIVE[:-2] + (between + scan) * 200 + b"\xff\xd9") == 210


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("kind", "letter"), [(1, "B"), (3, "H"), (4, "I")])
def test_orientations_of_any_width_are_read(kind: int, letter: str, order: str) -> None:
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, 8)
    value = struct.pack(order + letter, 6).ljust(4, b"\0")
    exif = head + struct.pack(order + "HHHI", 1, 0x0112, kind, 1) + value
    png = files.png(RGB, before=files.png_chunk(b"eXIf", exif))
    assert image_bytes.without_metadata(png) == (files.png(RGB), 6)


def test_the_first_sound_exif_block_counts() -> None:
    blocks = [
        files.png_chunk(b"eXIf", files.exif(3), sound=False),
        files.png_chunk(b"eXIf", files.exif(6)),
        files.png_chunk(b"eXIf", files.exif(8)),
    ]
    assert image_bytes.without_metadata(files.png(RGB, before=b"".join(blocks))) == (files.png(RGB), 6)


def test_files_without_metadata_are_unchanged() -> None:
    bare = BASELINE[:2] + BASELINE[2:]
    for data in (files.png(RGB), bare, encoded("WEBP"), encoded("BMP"), b"", b"text", b"\xff\xd8", b"RIFF\4\0\0\0WEBP"):
        assert image_bytes.without_metadata(data) == (data, 1)


SEEDS = [
    files.png(RGB, before=files.png_chunk(b"eXIf", files.exif(6)), after=files.png_chunk(b"tEXt", b"a\0b")),
    files.with_segments(BASELINE, files.jpeg_segment(0xE1, b"Exif\0\0" + files.exif(6))),
    files.webp(encoded("WEBP")[12:], size=(64, 64), flags=8, metadata=files.riff_chunk(b"EXIF", files.exif(6))),
    files.gif(RGB[..., 0] >> np.uint8(1), bytes(384), before=b"!\xfe\x03abc\0!\xf9\x04\x01\0\0\1\0"),
    files.rgb_tiff(RGB[:8, :8], extra={274: ("H", [6])}),
    files.rgb_tiff(RGB[:8, :8], big=True),
    b"P6 # comment\n8 8 255\n" + bytes(192),
    files.heif({1: files.hevc_item(), 2: (b"Exif", bytes(9), ())}, references=[(b"cdsc", 2, [1])]),
    encoded("AVIF"),
]


@pytest.mark.parametrize("seed", SEEDS, ids=lambda data: image_bytes.format_of(data) or "")
def test_garbage_raises_nothing_else_than_value_errors(seed: bytes) -> None:
    dice = random.Random(13)  # noqa: S311 - mutations that are the same each time
    for _ in range(2000):
        data = bytearray(seed)
        for _ in range(dice.randint(1, 6)):
            at = dice.randrange(min(len(data), 700))
            data[at : at + dice.randint(1, 4)] = dice.randbytes(dice.randint(0, 4))
        for read in (image_bytes.without_metadata, image_boxes.still, image_bytes.jpeg_scans, image_kinds.found):
            with contextlib.suppress(ValueError):
                read(bytes(data[: dice.randrange(len(data)) if dice.random() < 0.3 else None]))
