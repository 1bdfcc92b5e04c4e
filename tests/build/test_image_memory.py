"""How much memory a picture takes until it is resized; docs/serving.md, "Memory", has these bounds."""

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import image_ops
import numpy as np
import picture_files as files
import pictures
import pytest
from PIL import Image

pytestmark = pytest.mark.build

WIDTH, HEIGHT = 2400, 1800


@functools.cache
def _cat() -> Image.Image:
    return pictures.cat((WIDTH, HEIGHT))


def _photograph(kind: str, *, mode: str = "RGB", **options: object) -> bytes:
    image = _cat().convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    return pictures.encoded(image, kind, **options)


def _sixteen_bits() -> np.ndarray[tuple[int, ...], np.dtype[np.uint16]]:
    return np.asarray(_cat()).astype(np.uint16) * np.uint16(257)


EXIF = b"Exif\0\0" + files.exif(6)
# The most that a format takes, in bytes a pixel.
BOUNDS = {"JPEG": 11, "PNG": 10, "WebP": 18, "BMP": 9, "PPM": 11, "GIF": 9, "TIFF": 15, "AVIF": 14, "HEIC": 16}
FILES: dict[str, Callable[[], bytes]] = {
    "JPEG, baseline": lambda: _photograph("JPEG"),
    "JPEG, progressive, 4:4:4, turned": lambda: _photograph("JPEG", progressive=True, subsampling=0, exif=EXIF),
    "JPEG, CMYK": lambda: _photograph("JPEG", mode="CMYK"),
    "PNG, RGB": lambda: _photograph("PNG", compress_level=1),
    "PNG, RGBA, turned": lambda: _photograph("PNG", mode="RGBA", compress_level=1, exif=EXIF),
    "PNG, 16 bits": lambda: files.png(_sixteen_bits()[..., 0]),
    "WebP, lossy": lambda: _photograph("WEBP", method=0),
    "WebP, lossy, alpha, turned": lambda: _photograph("WEBP", mode="RGBA", method=0, exif=EXIF),
    "WebP, lossless": lambda: _photograph("WEBP", lossless=True, method=0),
    "BMP, RGB": lambda: _photograph("BMP"),
    "PPM, RGB": lambda: _photograph("PPM"),
    "PPM, maximum of 1023": lambda: b"P6 2000 1500 1023\n" + (_sixteen_bits() >> 6).astype(">u2").tobytes(),
    "GIF, palette": lambda: _photograph("GIF"),
    "TIFF, RGB": lambda: _photograph("TIFF"),
    "TIFF, RGBA, LZW": lambda: _photograph("TIFF", mode="RGBA", compression="tiff_lzw"),
    "TIFF, CMYK": lambda: _photograph("TIFF", mode="CMYK"),
    "TIFF, 16 bits, turned": lambda: files.rgb_tiff(_sixteen_bits(), extra={274: ("H", [6])}),
    "AVIF, 4:2:0": lambda: _photograph("AVIF", speed=10),
    "AVIF, 4:4:4, alpha, turned": lambda: _photograph("AVIF", mode="RGBA", speed=10, subsampling="4:4:4", exif=EXIF),
    "HEIC, 4:2:0": lambda: _heic("4:2:0, 8 bits"),
    "HEIC, 4:4:4, 10 bits, turned": lambda: _heic("4:4:4, 10 bits", files.box(b"irot", b"\1")),
}


def _heic(content: str, *properties: bytes) -> bytes:
    return files.heif({1: files.hevc_item(*properties, size=files.HEVC_SIZE, content=content)})


# In a separate process, in which malloc keeps no free memory.
CHILD = """
import pathlib, sys
import image_ops
settings = image_ops.Settings.from_parameters(eval(sys.argv[1]))
def status(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024
for number in range(int(sys.argv[3])):
    data = pathlib.Path(sys.argv[2], str(number)).read_bytes()
    for _ in range(2):  # the first loads what the decoder needs
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        _, size = image_ops.preprocess([data], settings)
    print((status("VmHWM") - before) / size.prod())
"""


def test_what_a_pixel_takes_is_bounded_in_every_format(tmp_path: Path) -> None:
    for number, make in enumerate(FILES.values()):
        (tmp_path / str(number)).write_bytes(make())
    parameters = {
        "mean": "0, 0, 0",
        "std": "1, 1, 1",
        "resize_mode": "fixed",
        "resize_size": "64",  # what is made of it is small
        "max_pixels": "50000000",
        "max_resized_pixels": "2163200",
        "scaled_decoding": "false",  # with it a JPEG takes less
    }
    done = subprocess.run(
        [sys.executable, "-c", CHILD, repr(parameters), str(tmp_path), str(len(FILES))],
        env=os.environ
        | {
            "PYTHONPATH": str(Path(image_ops.__file__).parent),
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    taken = dict(zip(FILES, map(float, done.stdout.split()), strict=True))
    for name, bytes_a_pixel in taken.items():
        print(f"{bytes_a_pixel:5.1f} bytes a pixel: {name}")  # noqa: T201
    above = {name: taken[name] for name in FILES if not 3 < taken[name] < BOUNDS[name.partition(",")[0]]}
    assert not above
