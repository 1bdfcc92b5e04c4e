"""Encoded pictures for the tests: one photograph, and what is made of it."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

CAT = Path(__file__).parents[1] / "assets" / "cat.png"

_EXIF_ORIENTATION = 0x0112


def cat(size: tuple[int, int] | None = None) -> Image.Image:
    """Return the photograph, RGB, resized to (width, height) where a size is given."""
    image = Image.open(CAT).convert("RGB")
    return image if size is None else image.resize(size, Image.Resampling.LANCZOS)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """Encode an image with Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def jpeg(size: tuple[int, int], *, orientation: int = 1) -> bytes:
    """Return the photograph as a JPEG of (width, height) as stored, with an EXIF orientation."""
    exif = Image.Exif()
    exif[_EXIF_ORIENTATION] = orientation
    return encoded(cat(size), "JPEG", quality=92, exif=exif)


def landscape() -> bytes:
    """Return a 1280 x 853 JPEG."""
    return jpeg((1280, 853))


def portrait() -> bytes:
    """Return a 600 x 900 JPEG."""
    return encoded(cat().crop((130, 0, 330, 300)).resize((600, 900), Image.Resampling.LANCZOS), "JPEG", quality=92)


def exif_rotated() -> bytes:
    """Return a JPEG stored as 800 x 533 whose EXIF says that it is shown as 533 x 800."""
    return jpeg((800, 533), orientation=6)


def small() -> bytes:
    """Return the photograph itself: a PNG of 451 x 300."""
    return CAT.read_bytes()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that declares a size and holds next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(64))) + chunk(b"IEND", b"")
    )


def run_length_bmp(width: int, height: int) -> bytes:
    """Return an RLE-compressed BMP of next to no bytes."""
    data = bytes([1, 1, 0, 0, 0, 1])
    palette = bytes(4 * 256)
    offset = 14 + 40 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + info + palette + data


def many_scans_jpeg() -> bytes:
    """Return a progressive JPEG whose last scan stands in it 200 times."""
    data = encoded(cat(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 200 + data[-2:]


def gray_column(height: int) -> bytes:
    """Return a gray PNG of one column."""
    return encoded(Image.new("L", (1, height), 77), "PNG")


def gif_bomb() -> bytes:
    """Return a GIF that declares 65535 x 65535 pixels."""
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
        + b"\x2c"
        + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0)
    )


def gray_png() -> bytes:
    return encoded(cat().convert("L"), "PNG")


def palette_png() -> bytes:
    return encoded(cat().quantize(64), "PNG")


def rgba_png() -> bytes:
    image = cat().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return encoded(image, "PNG")


def cmyk_jpeg() -> bytes:
    return encoded(cat().convert("CMYK"), "JPEG", quality=95)


def animated_webp() -> bytes:
    """Return a WebP whose first frame is the photograph and whose second is black."""
    return encoded(cat(), "WEBP", save_all=True, append_images=[Image.new("RGB", (451, 300))], lossless=True)


def bmp() -> bytes:
    return encoded(cat(), "BMP")


def ppm() -> bytes:
    return encoded(cat(), "PPM")


def sixteen_bit_png() -> tuple[bytes, npt.NDArray[np.uint16]]:
    """Return a 16-bit grayscale PNG, and the samples that it holds: (300, 451) uint16."""
    high = np.asarray(cat().convert("L")).astype(np.uint16) << 8
    low = (np.arange(high.size) % 256).astype(np.uint16).reshape(high.shape)
    samples = (high | low).astype(np.uint16)
    return encoded(Image.fromarray(samples), "PNG"), samples


def opened(path: Path) -> Image.Image:
    """Open a picture that a test has made, to be used in a with block."""
    return Image.open(path)
