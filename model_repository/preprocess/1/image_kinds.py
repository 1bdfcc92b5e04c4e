"""Recognize bytes that cannot be decoded as a picture, and say what to send instead."""

import codecs
import re

ACCEPTED = "JPEG, PNG, WebP, BMP, PPM, GIF, TIFF, AVIF or HEIC"

_EXAMINED = 4096  # bytes
_QUOTED = 60  # characters of a text that a message quotes

_SEND = f"send a {ACCEPTED} picture"
_CONVERT = f"convert it to {ACCEPTED}"
_EXTRACT = "unpack it and send the pictures one by one"
_VIDEO = "extract a frame and send that, as JPEG for example"
_RENDER = "render the page and send that, as PNG for example"
_DEVELOP = f"develop it and save it as {ACCEPTED}"
_ANEW = "save it as a baseline or progressive JPEG with 8 bits per sample"
_AGAIN = "send the whole file, or save it again"
_BINARY = "open files with mode 'rb', and do not turn their bytes into text"

_PFM = "a picture with floating-point samples (PFM)"
_NETPBM = "a PBM, PGM or PPM picture that is broken or truncated"

# Offset, bytes, the kind of file, and the remedy. The first match counts.
_SIGNATURES = (
    (0, b"\xff\xd8", "a JPEG picture that is broken or truncated", _AGAIN),
    (0, b"\x89PNG\r\n\x1a\n", "a PNG picture that is broken or truncated", _AGAIN),
    (0, b"\x89PNG\n\x1a\n", "a PNG picture whose line ends were changed", _BINARY),
    (0, b"\x89PNG\r\r\n", "a PNG picture whose line ends were changed", _BINARY),
    (0, b"\x89PNG", "a PNG picture that is broken or truncated", _AGAIN),
    (0, b"\xc2\x89PNG", "a PNG picture that was written as text", _BINARY),
    (0, b"\xef\xbf\xbdPNG", "a PNG picture that was decoded as text, which lost some of it", _BINARY),
    (0, b"\xc3\xbf\xc3\x98\xc3\xbf", "a JPEG picture that was written as text", _BINARY),
    (0, b"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd", "a picture that was decoded as text, which lost some of it", _BINARY),
    (0, b"GIF8", "a GIF picture that is broken or truncated", _AGAIN),
    (0, b"BM", "a BMP picture that is broken or truncated", _AGAIN),
    (8, b"WEBP", "a WebP picture that is broken or truncated", _AGAIN),
    # RAW photos, of which some are TIFF files.
    (8, b"CR\x02", "a RAW photo (CR2)", _DEVELOP),
    (4, b"ftypcrx ", "a RAW photo (CR3)", _DEVELOP),
    (0, b"FUJIFILMCCD-RAW", "a RAW photo (RAF)", _DEVELOP),
    (0, b"IIRO", "a RAW photo (ORF)", _DEVELOP),
    (0, b"IIRS", "a RAW photo (ORF)", _DEVELOP),
    (0, b"MMOR", "a RAW photo (ORF)", _DEVELOP),
    (0, b"IIU\0", "a RAW photo (RW2)", _DEVELOP),
    (0, b"\0MRM", "a RAW photo (MRW)", _DEVELOP),
    (0, b"FOVb", "a RAW photo (X3F)", _DEVELOP),
    (6, b"HEAPCCDR", "a RAW photo (CRW)", _DEVELOP),
    (0, b"II\xbc\x01", "a JPEG XR picture", _CONVERT),
    (0, b"II*\0", "a TIFF picture that is broken or truncated", _AGAIN),
    (0, b"MM\0*", "a TIFF picture that is broken or truncated", _AGAIN),
    (0, b"II+\0", "a BigTIFF picture that is broken or truncated", _AGAIN),
    (0, b"MM\0+", "a BigTIFF picture in big-endian order", _CONVERT),
    # Pictures in formats that are not accepted.
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL picture", _CONVERT),
    (0, b"\xff\x0a", "a JPEG XL picture", _CONVERT),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture", _CONVERT),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture", _CONVERT),
    (0, b"8BPS", "a Photoshop document (PSD)", _CONVERT),
    (0, b"\0\0\1\0", "an icon (ICO)", _CONVERT),
    (0, b"\0\0\2\0", "a mouse pointer (CUR)", _CONVERT),
    (0, b"icns", "an icon (ICNS)", _CONVERT),
    (0, b"gimp xcf", "a GIMP picture (XCF)", _CONVERT),
    (0, b"qoif", "a QOI picture", _CONVERT),
    (0, b"BPG\xfb", "a BPG picture", _CONVERT),
    (0, b"v/1\x01", "an OpenEXR picture", _CONVERT),
    (0, b"#?RADIANCE", "a Radiance HDR picture", _CONVERT),
    (0, b"DDS ", "a DDS texture", _CONVERT),
    (0, b"SIMPLE  =", "a FITS picture", _CONVERT),
    (128, b"DICM", "a DICOM file", _CONVERT),
    (0, b"\xd7\xcd\xc6\x9a", "a drawing (WMF)", _CONVERT),
    (0, b"AT&TFORM", "a DjVu document", _RENDER),
    # Videos and sound.
    (0, b"\x1aE\xdf\xa3", "a WebM or Matroska video", _VIDEO),
    (8, b"AVI ", "an AVI video", _VIDEO),
    (8, b"WAVE", "sound (WAV)", _SEND),
    (0, b"FLV\x01", "a Flash video", _VIDEO),
    (0, b"\0\0\1\xba", "an MPEG video", _VIDEO),
    (0, b"\0\0\1\xb3", "an MPEG video", _VIDEO),
    (0, b"OggS", "an Ogg video or sound", _VIDEO),
    (0, b"ID3", "sound (MP3)", _SEND),
    # Archives and data.
    (0, b"PK\x05\x06", "an empty ZIP archive", _SEND),
    (0, b"\x1f\x8b", "a gzip file", _EXTRACT),
    (0, b"BZh", "a bzip2 file", _EXTRACT),
    (0, b"\xfd7zXZ\0", "an xz file", _EXTRACT),
    (0, b"\x28\xb5\x2f\xfd", "a Zstandard file", _EXTRACT),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", _EXTRACT),
    (0, b"Rar!\x1a\x07", "a RAR archive", _EXTRACT),
    (257, b"ustar", "a tar archive", _EXTRACT),
    (0, b"\x93NUMPY", "a NumPy array (.npy)", "encode its pixels as PNG, or pass the array itself to deeplab_client"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "encode its pixels as PNG"),
    (0, b"PAR1", "a Parquet file", "send the bytes of one picture from it"),
    (0, b"SQLite format 3\0", "an SQLite database", _SEND),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", "send the pictures in it one by one"),
    (0, b"\x7fELF", "a program", _SEND),
    (0, b"MZ", "a program", _SEND),
    (0, b"Salted__", "an encrypted file", "decrypt it first"),
    (0, b"age-encryption.org", "an encrypted file", "decrypt it first"),
)
# The brand of an ISO base media file, at byte 8 (ISO/IEC 14496-12 and 23008-12).
_STILL_BRANDS = {
    b"avif": "an AVIF",
    b"avis": "an AVIF",
    b"heic": "a HEIC",
    b"heix": "a HEIC",
    b"heim": "a HEIC",
    b"heis": "a HEIC",
    b"hevc": "a HEIC",
    b"hevx": "a HEIC",
    b"mif1": "a HEIF",
    b"mif2": "a HEIF",
    b"msf1": "a HEIF",
}
_MEDIA_BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot"})
_PATTERNS = (
    # The start of frame of a JPEG, which follows the remaining metadata: kind, bits per sample, channels.
    (
        re.compile(rb"\xff\xd8.*?\xff[\xc3\xc7\xcb\xcf]\0[\x08-\x20][\2-\x10]", re.DOTALL),
        "a lossless JPEG picture",
        _ANEW,
    ),
    (
        re.compile(rb"\xff\xd8.*?\xff[\xc5-\xc7\xcd-\xcf]\0[\x08-\x20]\x08", re.DOTALL),
        "a hierarchical JPEG picture",
        _ANEW,
    ),
    (
        re.compile(rb"\xff\xd8.*?\xff[\xc0-\xc2\xc9\xca]\0[\x08-\x20]\x0c", re.DOTALL),
        "a JPEG picture with 12 bits per sample",
        _ANEW,
    ),
    (
        re.compile(rb"\xff\xd8.*?\xff[\xc0-\xc2\xc9\xca]\0[\x08-\x20]\x08.{4}[^\1\3\4]", re.DOTALL),
        "a JPEG picture with a number of channels other than 1, 3 and 4",
        _ANEW,
    ),
    (re.compile(rb"\xff\xd8.*?\xff\xf7\0", re.DOTALL), "a JPEG-LS picture", _CONVERT),
    (
        re.compile(rb"PK\x03\x04.*(?:\[Content_Types\]\.xml|word/|xl/|ppt/|mimetypeapplication/vnd\.oasis)", re.DOTALL),
        "an Office document",
        "send the pictures in it one by one",
    ),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive", _EXTRACT),
    (re.compile(rb".{0,1019}%PDF-", re.DOTALL), "a PDF document", _RENDER),
    (re.compile(rb"\x80[\x02-\x05]"), "a pickled Python object", "send the bytes of the encoded picture"),
    (re.compile(rb"P[fF]\s"), _PFM, "send 8 or 16 bits per sample"),
    (re.compile(rb"P7\s"), "a PAM picture", _CONVERT),
    (re.compile(rb"P[1-6][\s#]"), _NETPBM, _AGAIN),
)
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")

# Kinds of text; the first match counts.
_HTML = re.compile(r"<!doctype html|<(?:html|head|body|title|script|style|div|meta)\b", re.IGNORECASE)
_XML_PROLOG = re.compile(r"(?:\s+|<\?.*?\?>|<!--.*?-->|<!doctype(?! html)[^>]*>)*", re.IGNORECASE | re.DOTALL)
_JSON = re.compile(r"\{\s*[\"}]|\[\s*[-\"{\[\]\dtfn]")
_TEXTS = (
    (re.compile(r"version https://git-lfs"), "a Git LFS pointer instead of the file", "run `git lfs pull`"),
    (re.compile(r"HTTP/\d"), "an HTTP response with its headers", "send only its body"),
    (re.compile(r"--\S+\s+content-", re.IGNORECASE), "a multipart form", "send only the bytes of its file"),
    (re.compile(r"-----BEGIN PGP|age-encryption\.org"), "an encrypted file", "decrypt it first"),
    (re.compile(r"-----BEGIN "), "a certificate or key (PEM)", _SEND),
    (re.compile(r"%!PS"), "a PostScript document", _RENDER),
    (re.compile(r"%PDF-"), "a PDF document", _RENDER),
    (re.compile(r"P[fF]\s"), _PFM, "send 8 or 16 bits per sample"),
    (re.compile(r"P7\s"), "a PAM picture", _CONVERT),
    (re.compile(r"P[1-6][\s#]"), _NETPBM, _AGAIN),
    (_JSON, "JSON text", "check it: it may be an error message of a server, or contain the picture in base64"),
    (re.compile(r"data:[^,\s]*,"), "a data: URL", "decode the part after the comma with base64.b64decode"),
    (re.compile(r"b['\"]"), "the text of a Python bytes object", "send the bytes themselves, not str() of them"),
    (
        re.compile(r"(?:0x)?(?:[0-9a-f]{2}[\s:]?){16,}$", re.IGNORECASE),
        "hexadecimal text",
        "decode it with bytes.fromhex",
    ),
    (
        re.compile(r"(?:[a-z0-9+/\r\n]{40,}|[a-z0-9_\r\n-]{40,})={0,2}$", re.IGNORECASE),
        "base64 text",
        "decode it with base64.b64decode",
    ),
)
_URL = re.compile(r"[\"']?[a-z][a-z0-9+.-]+://\S.*", re.IGNORECASE | re.DOTALL)
_PATH = re.compile(r"(?:[a-z]:|~|\.{1,2})?(?:[\\/][^\\/\n]+)+$|[^\n]+\.[a-z0-9]{2,5}$", re.IGNORECASE)


def found(data: bytes) -> tuple[str, str]:
    """Return the kind of bytes that cannot be decoded as a picture, and the remedy.

    The first completes "they are ...", the second is an instruction: "a PDF document", "render the page ...". Only the
    first 4096 bytes are examined.
    """
    if not data:
        return "empty", "send the bytes of one encoded picture"
    head = data[:_EXAMINED]
    if not head.strip(b"\0"):
        return "zeros", "copy the file again, because it was not written completely"
    text = _text(head)
    known = _by_signature(head, len(data)) if text is None else _by_text(text)
    return known or (f"of no known format and begin with {head[:8].hex(' ')}", _SEND)


def _by_signature(head: bytes, length: int) -> tuple[str, str] | None:
    for pattern, what, remedy in _PATTERNS:
        if pattern.match(head):
            return what, remedy
    for offset, signature, what, remedy in _SIGNATURES:
        if head.startswith(signature, offset):
            return what, remedy
    # Triton's own encoding of strings.
    if int.from_bytes(head[:4], "little") == length - 4 and head[4:].startswith(_PICTURES):
        return (
            "a picture with its length in four bytes in front",
            "send the picture alone, because the request encoder adds the length itself",
        )
    return _by_box(head)


def _by_box(head: bytes) -> tuple[str, str] | None:
    """Recognize ISO base media files, which are pictures or videos."""
    kind, brand = head[4:8], head[8:12]
    if kind not in _MEDIA_BOXES:
        return None
    if kind == b"ftyp":
        end = min(int.from_bytes(head[:4], "big"), len(head))
        for position in (8, *range(16, end, 4)):
            name = _STILL_BRANDS.get(head[position : position + 4])
            if name is not None:
                return f"{name} picture that is broken or truncated", _AGAIN
        if brand != b"qt  ":
            return "a video (MP4)", _VIDEO
    return "a QuickTime video (MOV)", _VIDEO


def _text(head: bytes) -> str | None:
    """Return the start of a file as text, stripped; None if it is not text."""
    wide = head.startswith((b"\xff\xfe", b"\xfe\xff"))
    decoder = codecs.getincrementaldecoder("utf-16" if wide else "utf-8-sig")()
    try:
        text = decoder.decode(head)
    except UnicodeDecodeError:
        return None
    return text.strip() if all(character.isprintable() or character in "\t\n\f\r" for character in text) else None


def _by_text(text: str) -> tuple[str, str]:
    if text.startswith("<"):
        return _by_element(_XML_PROLOG.sub("", text, count=1))
    for pattern, what, remedy in _TEXTS:
        if pattern.match(text):
            return what, remedy
    if _URL.match(text):
        # The parts before an @ and after a question mark may contain a password.
        shown = re.sub(r"//[^/]*@", "//", text.partition("?")[0])
        return f"the URL {_quoted(shown)}", "download it and send its content"
    if _PATH.match(text):
        return f"the file path {_quoted(text)}", "read the file and send its content"
    return (f"the text {_quoted(text)}" if text else "blank text"), _SEND


def _by_element(text: str) -> tuple[str, str]:
    if _HTML.match(text):
        return "an HTML page", "check where it comes from: it may be an error or login page of a website"
    if text.lower().startswith("<svg"):
        return "an SVG drawing", "render it and send that, as PNG for example"
    return "an XML document", "check it: it may be an error message of a server"


def _quoted(text: str) -> str:
    return repr(text) if len(text) <= _QUOTED else f"{text[:_QUOTED]!r}..."
