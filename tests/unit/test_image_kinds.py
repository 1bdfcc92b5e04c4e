"""The messages about bytes that are not a picture."""

import base64
import gzip
import io
import json
import pickle
import tarfile
import zipfile

import image_decoding
import image_kinds
import numpy as np
import picture_files as files
import pytest

pytestmark = pytest.mark.unit

PNG = files.png(files.quadrants())


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, PNG)
    return buffer.getvalue()


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("picture.png"))
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, files.quadrants())
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "empty"),
        (bytes(10_000), "zeros"),
        (b"<!DOCTYPE html>\n<html><head>", "an HTML page"),
        (b"\xef\xbb\xbf\r\n <!-- a comment -->\n<HTML lang=en>", "an HTML page"),
        (b"<?xml version='1.0'?><!DOCTYPE html PUBLIC '-//W3C//DTD XHTML 1.0'><html>", "an HTML page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"<?xml version='1.0'?>\n<!-- drawn -->\n<!DOCTYPE svg PUBLIC 'x'>\n<svg>", "an SVG drawing"),
        (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "an XML document"),
        (json.dumps({"error": "not found"}, indent=1).encode(), "JSON text"),
        (json.dumps({"image": "x"}).encode("utf-16"), "JSON text"),
        (b"[1, 2]", "JSON text"),
        (b"https://example.com/cat.jpg\n", "the URL 'https://example.com/cat.jpg'"),
        (b"s3://bucket/a/b.png", "the URL 's3://bucket/a/b.png'"),
        (b"https://me:secret@example.com/cat.jpg?token=secret", "the URL 'https://example.com/cat.jpg'"),
        (b"data:image/png;base64," + base64.b64encode(PNG), "a data: URL"),
        (b"/data/cats/cat 1.jpg", "the file path '/data/cats/cat 1.jpg'"),
        (b"C:\\Users\\me\\cat.png", r"the file path 'C:\\Users\\me\\cat.png'"),
        ("bücher/straße.jpeg".encode(), "the file path 'bücher/straße.jpeg'"),
        (b"cat.jpg", "the file path 'cat.jpg'"),
        (base64.b64encode(PNG), "base64 text"),
        (base64.encodebytes(PNG), "base64 text"),
        (base64.urlsafe_b64encode(bytes(range(256)) * 9), "base64 text"),
        (PNG.hex().encode(), "hexadecimal text"),
        (PNG.hex(" ").encode(), "hexadecimal text"),
        (repr(PNG).encode(), "the text of a Python bytes object"),
        (b"a word", "the text 'a word'"),
        (b"word " * 100, f"the text {'word ' * 12!r}..."),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
        (b"%PDF-1.7\n1 0 obj", "a PDF document"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a PostScript document"),
        (b"\0\0\0\x20ftypisom\0\0\x02\0isomiso2avc1mp41\0\0\0\x08free", "a video (MP4)"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "a QuickTime video (MOV)"),
        (b"\0\0\x10\0moov\0\0\0\x6cmvhd", "a QuickTime video (MOV)"),
        (b"\x1aE\xdf\xa3\x01\0\0\0\0\0\0\x1f", "a WebM or Matroska video"),
        (b"RIFF\0\0\0\0AVI LIST", "an AVI video"),
        (_zip("picture.png"), "a ZIP archive"),
        (_zip("[Content_Types].xml", "word/document.xml"), "an Office document"),
        (_zip(), "an empty ZIP archive"),
        (gzip.compress(PNG, mtime=0), "a gzip file"),
        (_tar(), "a tar archive"),
        (b"II*\0\x10\0\0\0CR\x02\0", "a RAW photo (CR2)"),
        (b"\0\0\0\x18ftypcrx \0\0\0\x01crx isom", "a RAW photo (CR3)"),
        (b"FUJIFILMCCD-RAW 0201FF383501\0\0", "a RAW photo (RAF)"),
        (b"IIRO\x08\0\0\0", "a RAW photo (ORF)"),
        (b"8BPS\0\1\0\0\0\0\0\0", "a Photoshop document (PSD)"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
        (b"\xff\x0a\xfa\x1f\x01\x80", "a JPEG XL picture"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "a JPEG 2000 picture"),
        (b"\0\0\1\0\1\0\x10\x10", "an icon (ICO)"),
        (_npy(), "a NumPy array (.npy)"),
        (pickle.dumps(files.quadrants()), "a pickled Python object"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer"),
        (b"Salted__\x8c\xe1\x02\x9f\x11\x12\xf0\x81", "an encrypted file"),
        (b"-----BEGIN PGP MESSAGE-----\n", "an encrypted file"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n", "an HTTP response with its headers"),
        (b'--x1\r\nContent-Disposition: form-data; name="image"\r\n\r\n', "a multipart form"),
        (len(PNG).to_bytes(4, "little") + PNG, "a picture with its length in four bytes in front"),
        (PNG.decode("latin-1").encode(), "a PNG picture that was written as text"),
        (PNG.decode("utf-8", "replace").encode(), "a PNG picture that was decoded as text"),
        (PNG.replace(b"\r\n", b"\n"), "a PNG picture whose line ends were changed"),
        (PNG[:6], "a PNG picture that is broken or truncated"),
        (b"\xff\xd8", "a JPEG picture that is broken or truncated"),
        (b"RIFF\x10\0\0\0WEBP", "a WebP picture that is broken or truncated"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "a HEIC picture that is broken or truncated"),
        (b"\x8c\xe1\x02\x9f\x11\x12\xf0\x81\x00\x99", "of no known format and begin with 8c e1 02 9f 11 12 f0 81"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_was_sent_is_named_with_a_remedy(data: bytes, what: str) -> None:
    named, remedy = image_kinds.found(data)
    assert named.startswith(what)
    assert "secret" not in named
    with pytest.raises(image_decoding.InvalidImageError) as caught:
        image_decoding.decode(data, max_pixels=1)
    message = str(caught.value)
    if "HEIC" not in what and "WebP" not in what:
        begin = (
            f"the {len(data)} bytes cannot be opened as an image: they are" if data else "the image is empty (0 bytes"
        )
        assert message == (f"{begin} {named}; {remedy}" if data else f"{begin}); {remedy}")
    assert not message.endswith((":", ": ", "; "))


@pytest.mark.parametrize(
    "text", ["BMW.jpg", "BM", "MZ", "ID3.png", "GIF89a", "RIFF", "PAR1.png", "II", "P5", "Pyramid"]
)
def test_text_that_begins_like_a_file_is_text(text: str) -> None:
    named, _ = image_kinds.found(text.encode())
    assert named == (f"the file path {text!r}" if "." in text else f"the text {text!r}")


def test_only_the_beginning_is_examined() -> None:
    assert image_kinds.found(b"A" * 5000 + b"\0" * 10) == image_kinds.found(b"A" * 5000)
