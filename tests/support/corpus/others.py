"""Files that are not pictures, or of unsupported formats; each is refused with its name and a remedy."""

from __future__ import annotations

import base64
import gzip
import io
import json
import struct
import tarfile
import zipfile
from typing import TYPE_CHECKING

import numpy as np

from corpus import jpeg, png, reference, tiff_layout
from corpus.case import ASCII, LONG, Case, Refused, noise
from corpus.tiff_layout import Layout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from corpus.tiff_layout import Entries


def _zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("picture.png", png.plain())
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("picture.png"))
    return buffer.getvalue()


_MOSAIC = 32_803
_DNG: Entries = {50_706: (1, [1, 4, 0, 0])}
# Most raw photos show a small preview first and keep the mosaic in a directory below it.
_PREVIEW: Entries = {254: (LONG, [1]), 330: (LONG, [8])}
_NIKON: Entries = {271: (ASCII, list(b"NIKON CORPORATION\0"))}


def cases() -> Iterator[Case]:
    """Return all of them."""
    picture = png.plain()
    web = b"<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
    drawing = b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><rect width="10" height="10"/></svg>'
    text = {
        "html": (b"<!DOCTYPE html>\n" + web, "HTML"),
        "html-lower-case": (b"<!doctype html>" + web, "HTML"),
        "html-bare": (web, "HTML"),
        "html-behind-space": (b"\r\n  \t" + web, "HTML"),
        "html-behind-byte-order-mark": (b"\xef\xbb\xbf<!DOCTYPE html>" + web, "HTML"),
        "svg": (drawing, "SVG"),
        "svg-behind-declaration": (b'<?xml version="1.0" encoding="UTF-8"?>\n<!-- made -->\n' + drawing, "SVG"),
        "json-object": (json.dumps({"error": "not found"}).encode(), "JSON"),
        "json-list": (b'[{"image": "cat.png"}]', "JSON"),
        "url": (b"https://example.com/cat.jpg", "URL"),
        "url-http": (b"http://example.com/cat.jpg?size=large\n", "URL"),
        "url-s3": (b"s3://bucket/cat.jpg", "URL"),
        "data-url": (b"data:image/png;base64," + base64.b64encode(picture), "data:|base64"),
        "path": (b"/photos/cow/cat.jpg", "path"),
        "path-relative": (b"pictures/cat.jpg", "path"),
        "path-of-windows": (rb"C:\Users\user\cat.jpg", "path"),
        "path-name-only": (b"cat.png", "path"),
        "base64-png": (base64.b64encode(picture), "base64"),
        "base64-jpeg": (base64.b64encode(jpeg.encode(noise())), "base64"),
        "base64-lines": (base64.encodebytes(picture), "base64"),
        "base64-url-safe": (base64.urlsafe_b64encode(jpeg.encode(noise())), "base64"),
        "repr-of-bytes": (repr(picture).encode(), ""),
        "hexadecimal": (picture.hex().encode(), ""),
        "text": (b"Dear Sir or Madam,\n", "text"),
        "text-utf-16": ("cat.png".encode("utf-16"), "text|path|UTF-16"),
    }
    mosaic = tiff_layout.write(noise(channels=1, depth=16), 16, _MOSAIC, Layout(entries=_DNG))
    dng, nef = (
        tiff_layout.write(noise(), 8, tiff_layout.RGB, Layout(entries=maker | _PREVIEW)) for maker in (_DNG, _NIKON)
    )
    numpy_file = io.BytesIO()
    np.save(numpy_file, noise().astype(np.uint8))
    film = b"\0\0\0\x18ftypisom\0\0\2\0isomiso2\0\0\0\x08free"
    binary = {
        "empty": (b"", "empty"),
        "one-zero": (b"\0", ""),
        "zeros": (bytes(10_000), ""),
        "newline": (b"\n", ""),
        "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n<<>>\nendobj\n", "PDF"),
        "mp4": (film + bytes(200), "MP4|video"),
        "mp4-mp42": (film.replace(b"isom", b"mp42") + bytes(200), "MP4|video"),
        "quicktime": (b"\0\0\0\x14ftypqt  \0\0\2\0qt  " + bytes(200), "MOV|QuickTime|video"),
        "webm": (
            b"\x1aE\xdf\xa3\x9fB\x86\x81\x01B\xf7\x81\x01B\xf2\x81\x04B\xf3\x81\x08B\x82\x84webm" + bytes(50),
            "video|WebM|Matroska",
        ),
        "avi": (b"RIFF\0\1\0\0AVI LIST" + bytes(200), "AVI|video"),
        "wav": (b"RIFF\0\1\0\0WAVEfmt " + bytes(200), ""),
        "zip": (_zip(), "ZIP"),
        "pgp": (b"-----BEGIN PGP MESSAGE-----\n\nhQEMA\n-----END PGP MESSAGE-----\n", "encrypted|PGP"),
        "openssl": (b"Salted__" + np.random.default_rng(7).bytes(500), "encrypted"),
        "gzip": (gzip.compress(picture, mtime=0), "gzip"),
        "tar": (_tar(), ""),
        "numpy": (numpy_file.getvalue(), "NumPy|npy"),
        "dng": (mosaic, "RAW|DNG"),
        "dng-preview-first": (dng, "RAW|DNG"),
        "nef-preview-first": (nef, "RAW|NEF"),
        "cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(100), "RAW|CR2"),
        "cr3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(100), "RAW|CR3"),
        "raf": (b"FUJIFILMCCD-RAW 0201" + bytes(100), "RAW|RAF"),
        "orf": (b"IIRO\x08\0\0\0" + bytes(100), "RAW|ORF"),
        "rw2": (b"IIU\0\x18\0\0\0" + bytes(100), "RAW|RW2"),
        "jpeg-2000": (reference.encoded("jpeg2k", noise()), "JPEG 2000|JP2"),
        "jpeg-xl": (reference.encoded("jpegxl", noise()), "JPEG XL|JXL"),
        "jpeg-ls": (reference.encoded("jpegls", noise()), "JPEG"),
        "photoshop": (b"8BPS\0\1" + bytes(100), "Photoshop|PSD"),
        "icon": (b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0" + bytes(100), ""),
        "pickle": (b"\x80\x04\x95\x0b\0\0\0\0\0\0\0\x8c\x07cat.png\x94.", ""),
        "random": (np.random.default_rng(13).bytes(1000), ""),
        "rgb-samples": (noise().astype(np.uint8).tobytes(), ""),
        "length-prefix-then-png": (struct.pack("<I", len(picture)) + picture, ""),
        "space-then-png": (b" " + picture, ""),
        "png-without-first-byte": (picture[1:], ""),
        "png-through-text-mode": (picture.replace(b"\r\n", b"\n"), ""),
    }
    for name, (data, message) in {**text, **binary}.items():
        yield Case(f"no-picture-{name}", data, Refused(message))
