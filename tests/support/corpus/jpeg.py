"""JPEG files: encoded by libjpeg-turbo, and rearranged into forms that cameras and phones write but it does not."""

from __future__ import annotations

import base64
import io
import itertools
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from corpus import reference
from corpus.case import ASCII, LONG, Case, Refused, Taken, exif, noise, smooth, truncated, upright, xmp
from corpus.parts import jpeg_segment as segment
from corpus.parts import with_segments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corpus.case import Samples

START, END = b"\xff\xd8", b"\xff\xd9"
_APP0, _APP1, _APP2, _APP3, _APP14, _COMMENT, _FRAME, _SCAN = 0xE0, 0xE1, 0xE2, 0xE3, 0xEE, 0xFE, 0xC0, 0xDA

# smooth() with arithmetic coding, which no encoder of the tests has: `jpegtran -arithmetic` of libjpeg-turbo wrote it.
_ARITHMETIC = base64.b64decode(
    b"/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsjHBYWICwgIyYn"
    b"KSopGR8tMC0oMCUoKSj/2wBDAQcHBwoIChMKChMoGhYaKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo"
    b"KCgoKCgoKCj/yQARCAAXACUDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwDRDEuCjcPnzjKcMrXPTfKPW6WIepEU"
    b"qnOHtoGhlYgN4ts2G9ehJmmsueAyQccLNCcz98IxFl31uzuE7bn6uBFzLoQRC3zfyUBrUPePL4zGNZDYa0e5CaOAxEkn2viW1vLU"
    b"irKwpC9sV0giUde09bgBLKKA/9k="
)


def encode(samples: Samples, **options: object) -> bytes:
    """Return a JPEG of (H, W), (H, W, 3) or (H, W, 4) samples: gray, RGB or CMYK."""
    buffer = io.BytesIO()
    image = Image.fromarray(samples.astype(np.uint8))
    if samples.shape[2:] == (4,):
        image = Image.frombytes("CMYK", image.size, image.tobytes())
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _place(data: bytes, marker: int) -> tuple[int, int]:
    """Return where the first segment of a kind starts and ends."""
    at = 2
    while data[at + 1] != marker:
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return at, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _without(data: bytes, marker: int) -> bytes:
    start, end = _place(data, marker)
    return data[:start] + data[end:]


def _adobe(transform: int) -> bytes:
    return segment(_APP14, b"Adobe\0\x64\0\0\0\0" + bytes([transform]))


def _shown(data: bytes, *, orientation: int = 1, tolerance: int = 0) -> Taken:
    return Taken(upright(reference.decode("jpeg8", data), orientation), tolerance=tolerance)


def _modes() -> Iterator[Case]:
    """Subsampling, progressive scans, restarts, sizes."""
    for quality, subsampling, progressive in itertools.product((95, 40), ("4:4:4", "4:2:2", "4:2:0"), (False, True)):
        data = encode(noise(), quality=quality, subsampling=subsampling, progressive=progressive)
        name = f"jpeg-{subsampling.replace(':', '')}-{quality}" + ("-progressive" if progressive else "")
        yield Case(name, data, _shown(data))
    for subsampling in ("440", "411"):
        data = reference.jpeg(noise(), subsampling=subsampling)
        yield Case(f"jpeg-{subsampling}", data, _shown(data))
    options: dict[str, dict[str, object]] = {
        "optimized": {"optimize": True},
        "quality-100": {"quality": 100},
        "quality-1": {"quality": 1},
        "restart-every-block": {"restart_marker_blocks": 1},
        "restart-every-row-420": {"restart_marker_rows": 1, "subsampling": "4:2:0"},
        "restart-progressive": {"restart_marker_blocks": 3, "progressive": True},
        "stored-as-rgb": {"keep_rgb": True},
        "dpi": {"dpi": (300, 300)},
        "icc-garbled": {"icc_profile": b"garbage" * 20_000},  # of several segments
    }
    for name, values in options.items():
        data = encode(noise(), **values)
        yield Case(f"jpeg-{name}", data, _shown(data))
    for width, height in ((1, 1), (1, 30), (30, 1), (8, 8), (16, 16), (17, 9), (15, 33)):
        for subsampling in ("4:4:4", "4:2:0"):
            data = encode(noise(width, height), subsampling=subsampling)
            yield Case(f"jpeg-{width}x{height}-{subsampling.replace(':', '')}", data, _shown(data))


def _colors() -> Iterator[Case]:
    """Gray, CMYK, and the markers that define the colors of components."""
    for progressive in (False, True):
        name = "-progressive" if progressive else ""
        data = encode(noise(channels=1)[..., 0], progressive=progressive)
        yield Case("jpeg-gray" + name, data, _shown(data))
        inks = encode(noise(channels=4), quality=95, progressive=progressive)
        bare = _without(inks, _APP14)
        for kind, data in (
            ("cmyk", inks),
            ("ycck", with_segments(bare, _adobe(2))),
            ("cmyk-no-adobe", bare),
        ):
            # Decoders round the product of two inks apart by 1.
            yield Case(f"jpeg-{kind}{name}", data, _shown(data, tolerance=1))
    bare = _without(encode(noise()), _APP0)
    for name, data in (
        ("no-jfif", bare),
        ("adobe-ycc", with_segments(bare, _adobe(1))),
        ("adobe-rgb", with_segments(bare, _adobe(0))),
        ("arithmetic", _ARITHMETIC),
    ):
        yield Case(f"jpeg-{name}", data, _shown(data))
    data = reference.jpeg(noise(), lossless=True)
    yield Case("jpeg-lossless", data, Taken(reference.decode("jpeg8", data), or_refused="JPEG.*lossless"))


def _exif(block: bytes) -> bytes:
    return segment(_APP1, b"Exif\0\0" + block)


def _xmp(orientation: int) -> bytes:
    return segment(_APP1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(orientation))


def _orientations() -> Iterator[Case]:
    data = encode(noise())
    for orientation in range(1, 9):
        shown = _shown(data, orientation=orientation)
        for name, block in (("", exif(orientation)), ("-big-endian", exif(orientation, order=">"))):
            yield Case(f"jpeg-exif-{orientation}{name}", with_segments(data, _exif(block)), shown)
    progressive = encode(noise(), progressive=True, subsampling="4:2:0")
    turned = with_segments(progressive, _exif(exif(6)))
    yield Case("jpeg-progressive-exif-6", turned, _shown(progressive, orientation=6))
    gray = encode(noise(channels=1)[..., 0])
    yield Case("jpeg-gray-exif-5", with_segments(gray, _exif(exif(5))), _shown(gray, orientation=5))
    for name, block, orientation in (
        ("xmp-6", _xmp(6), 1),
        ("xmp-6-exif-3", _xmp(6) + _exif(exif(3)), 3),
        ("exif-3-xmp-6", _exif(exif(3)) + _xmp(6), 3),
        ("exif-1-xmp-6", _exif(exif(1)) + _xmp(6), 1),
        ("exif-0", _exif(exif(0)), 1),
        ("exif-9", _exif(exif(9)), 1),
        ("exif-65535", _exif(exif(65535)), 1),
        ("exif-6-as-long", _exif(exif(6, kind=LONG)), 6),
        ("exif-6-as-text", _exif(exif(6, kind=ASCII)), 1),
        ("exif-of-the-thumbnail-only", _exif(exif(1, thumbnail_orientation=6)), 1),
        ("exif-6-thumbnail-1", _exif(exif(6, thumbnail_orientation=1)), 6),
        ("exif-behind-comment", segment(_COMMENT, b"hello") + _exif(exif(8)), 8),
    ):
        yield Case(f"jpeg-{name}", with_segments(data, block), _shown(data, orientation=orientation))


def _mpo() -> bytes:
    buffer = io.BytesIO()
    first, second = (Image.fromarray(picture.astype(np.uint8)) for picture in (noise(), 255 - noise()))
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    return buffer.getvalue()


def _metadata() -> Iterator[Case]:
    """Data that phones and cameras write around the picture; none of it changes a pixel."""
    data = encode(noise())
    shown = _shown(data)
    scans = b"\xff\xda" * 300
    film = b"\0\0\0\x18ftypmp42\0\0\0\0isommp42\0\0\x08\0mdat" + (scans + bytes(50)) * 4
    size = len(film)
    motion = _xmp(1).replace(
        b"tiff:Orientation", b'GCamera:MicroVideo="1" GCamera:MicroVideoOffset="%d" tiff:Orientation' % size
    )
    motion = segment(_APP1, motion[4:])
    index = b"MPF\0II*\0\x08\0\0\0\x03\0" + b"\xff" * 40
    for name, made in (
        ("motion-photo", with_segments(data, _exif(exif(1)), motion) + film),
        ("film-behind", data + film),
        ("200-scan-markers-behind", data + b"\xff\xda" * 200),
        ("scan-markers-in-comment", with_segments(data, segment(_COMMENT, scans * 50))),
        ("scan-markers-in-app3", with_segments(data, *(segment(_APP3, scans) for _ in range(20)))),
        ("end-marker-in-comment", with_segments(data, segment(_COMMENT, END + START))),
        ("thumbnail-in-exif", with_segments(data, segment(_APP1, b"Exif\0\0" + exif(1) + encode(smooth(16, 12))))),
        ("mpf-garbled", with_segments(data, segment(_APP2, index))),
        ("mpf-empty", with_segments(data, segment(_APP2, b"MPF\0"))),
        ("exif-garbled", with_segments(data, segment(_APP1, b"Exif\0\0II*\0\xff\xff\xff\xff\x12\x01"))),
        ("exif-empty", with_segments(data, segment(_APP1, b"Exif\0\0"))),
        ("jfif-short", with_segments(_without(data, _APP0), segment(_APP0, b"JFIF\0"))),
        ("adobe-short", with_segments(data, segment(_APP14, b"Adobe"))),
        ("photoshop-garbled", with_segments(data, segment(0xED, b"Photoshop 3.0\0" + b"\xff" * 30))),
        ("all-app-segments", with_segments(data, *(segment(0xE1 + n, bytes(10)) for n in range(13)))),
        ("comment-of-64k", with_segments(data, segment(_COMMENT, bytes(65_533)))),
        ("50000-comments", with_segments(data, segment(_COMMENT) * 50_000)),
        ("300-comments", with_segments(data, segment(_COMMENT, b"line") * 300)),
        ("fill-bytes", START + b"\xff" * 7 + data[2:]),
        ("icc-piece-missing", with_segments(data, segment(_APP2, b"ICC_PROFILE\0\x02\x03" + bytes(50)))),
        ("icc-short", with_segments(data, segment(_APP2, b"ICC_PROFILE\0"))),
    ):
        yield Case(f"jpeg-{name}", made, shown)
    several = _mpo()
    yield Case("jpeg-mpo", several, _shown(several))
    turned = with_segments(several, _exif(exif(6)))
    yield Case("jpeg-mpo-exif-6", turned, _shown(several, orientation=6))


def _refused() -> Iterator[Case]:
    data = encode(noise())
    progressive = encode(noise(), progressive=True)
    start, end = _place(data, _FRAME)
    last = progressive.rindex(b"\xff\xda")
    huge = data[: start + 5] + b"\xff\xff\xff\xff" + data[start + 9 :]
    for name, made, message in (
        ("12-bit", reference.jpeg(noise(depth=12), bitspersample=12), "JPEG.*12"),
        ("bomb", huge, "65535 x 65535 .* limit"),
        ("200-scans", progressive[:last] + progressive[last:-2] * 200 + END, "scans.* limit"),
        ("no-frame", data[:start] + data[end:], "JPEG"),
        ("no-scan", data[: _place(data, _SCAN)[0]] + END, "JPEG.*(broken|truncated)"),
        ("0-high", data[: start + 5] + bytes(2) + data[start + 7 :], "JPEG"),
        ("hierarchical", data[: start + 1] + b"\xc5" + data[start + 2 :], "JPEG"),
        ("start-only", START + b"\xff", "JPEG"),
        ("start-and-end", START + END, "JPEG"),
        ("5-components", data[: start + 9] + b"\5" + data[start + 10 :], "JPEG"),
    ):
        yield Case(f"jpeg-{name}", made, Refused(message))
    large, many = encode(noise(60, 50)), encode(noise(60, 50), progressive=True)
    yield from truncated("jpeg", large, "JPEG", fractions=(0.3, 0.5, 0.7, 0.9))
    yield from truncated("jpeg-progressive", many, "JPEG", fractions=(0.3, 0.5, 0.7, 0.9))
    in_tables = large[: _place(large, _FRAME)[0] + 6]
    yield Case("jpeg-cut-in-header", in_tables, Refused("JPEG.*(broken|truncated)"))


def cases() -> Iterator[Case]:
    """Return all JPEG files."""
    yield from _modes()
    yield from _colors()
    yield from _orientations()
    yield from _metadata()
    yield from _refused()
