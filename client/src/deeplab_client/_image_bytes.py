"""Encoded pictures as bytes: what a decoder needs of them, how they are turned, and how often a JPEG paints itself.

Decoders give up on metadata that no pixel needs: a text chunk with a wrong checksum, a profile of many megabytes, an
index of more pictures behind the first. Here these parts are left out before a decoder sees them, as viewers do.

Only the standard library is used: the client has a copy of this file, and a test compares the two.
"""

import re
import struct
import zlib

# EXIF tag 0x0112 (Exif 2.32, table 4): how the stored rows and columns become the picture as shown, as the name of a
# member of PIL.Image.Transpose; 1 is "as stored".
TRANSPOSE_BY_ORIENTATION = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_ORIENTATION_TAG = 0x0112
_UNSIGNED = {1: "B", 3: "H", 4: "I"}  # TIFF 6.0, page 15: BYTE, SHORT, LONG

# Chunks and segments of one file: walking through more takes longer than decoding.
_MAX_PARTS = 100_000

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_KIND = re.compile(rb"[A-Za-z]{4}")
_PNG_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})

_JPEG = b"\xff\xd8"
# FF 00 is a stuffed byte, FF before FF fills, and restart markers stand within a scan.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_JPEG_START_OF_IMAGE, _JPEG_END_OF_IMAGE, _JPEG_START_OF_SCAN = 0xD8, 0xD9, 0xDA
_JPEG_FIRST_WITH_LENGTH, _JPEG_EXIF = 0xC0, 0xE1
_JPEG_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})  # application data, comment
# Of these, what says how colors are stored, from the lengths on with which libjpeg believes it.
_JPEG_COLORS = re.compile(rb"\xe0..JFIF\0.{9}|\xee..Adobe.{7}", re.DOTALL)

_WEBP_EXIF_FLAG, _WEBP_METADATA_FLAGS = 0x08, 0x2C  # of VP8X: ICC profile, EXIF, XMP
_WEBP_PIXELS = frozenset({b"ALPH", b"ANIM", b"ANMF", b"VP8 ", b"VP8L"})


def without_metadata(data: bytes) -> tuple[bytes, int]:
    """Return a picture without the parts that no pixel needs, and its EXIF orientation, 1 to 8.

    The time is linear in the number of bytes. Bytes that are no well-formed picture come back as they are, for the
    decoder to refuse.

    Raises:
        ValueError: A part that the pixels need is certainly broken, or there are too many parts; the message says so.
    """
    if data.startswith(_PNG):
        return _png(data)
    if data.startswith(_JPEG):
        return _jpeg(data)
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return _webp(data)
    return data, 1


def _png(data: bytes) -> tuple[bytes, int]:
    """Keep the critical chunks, which libpng is strict about as well; frames after the first are none of them."""
    view = memoryview(data)
    kept, exif, position = [view[:8]], b"", 8
    for _ in range(_MAX_PARTS):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        end = position + 12 + length
        if not _PNG_KIND.fullmatch(kind) or (end > len(data) and kind[:1].isupper()):
            kept.append(view[position:])
            break
        sound = zlib.crc32(view[position + 4 : end - 4]).to_bytes(4, "big") == data[end - 4 : end]
        if kind[:1].isupper():
            if kind not in _PNG_CRITICAL:
                raise ValueError(f"the PNG image has a critical chunk {kind.decode()}, which is not in the standard")
            if not sound:
                raise ValueError(f"the PNG image is broken: a checksum is wrong, that of its chunk {kind.decode()}")
            kept.append(view[position:end])
        elif kind == b"eXIf" and sound and not exif:
            exif = data[position + 8 : end - 4]
        if kind == b"IEND":
            break
        position = end
    else:
        raise ValueError(f"the PNG image has more than {_MAX_PARTS} chunks")
    return b"".join(kept), _orientation(exif)


def _jpeg(data: bytes) -> tuple[bytes, int]:
    """Leave out, before the first scan, comments and application data; after it decoders skip them by themselves."""
    view = memoryview(data)
    kept, exif, position = [view[:2]], b"", 2
    for _ in range(_MAX_PARTS):
        match = _JPEG_MARKER.search(data, position)  # as libjpeg does, over what stands between two segments
        if match is None or data[match.end() - 1] == _JPEG_END_OF_IMAGE:
            break
        start, marker, position = match.start(), data[match.end() - 1], _end_of_segment(data, match.start())
        if marker == _JPEG_START_OF_SCAN or position > len(data):
            kept.append(view[start:])
            break
        body = data[start + 4 : position]
        if marker == _JPEG_EXIF and body.startswith(b"Exif\0"):
            exif = exif or body
        elif marker not in _JPEG_METADATA or _JPEG_COLORS.match(data, start + 1, position):
            kept.append(view[start:position])
    else:
        raise ValueError(f"the JPEG image has more than {_MAX_PARTS} segments")
    return b"".join(kept), _orientation(exif)


def _end_of_segment(data: bytes, start: int) -> int:
    """Return where the segment of the marker at `start` ends, which may be behind the end of the data."""
    marker = data[start + 1]
    # TEM and the reserved markers stand alone, the start and the end of the image too.
    if marker < _JPEG_FIRST_WITH_LENGTH or marker in {_JPEG_START_OF_IMAGE, _JPEG_END_OF_IMAGE}:
        return start + 2
    return start + 2 + max(int.from_bytes(data[start + 2 : start + 4], "big"), 2)


def jpeg_scans(data: bytes) -> int:
    """Return the number of scans of a JPEG, up to its end of image: what lies in segments or behind it is not counted.

    Each scan may cost a decoder as much as the whole picture. The time is linear in the number of bytes.

    Raises:
        ValueError: There are too many segments.
    """
    scans, position = 0, 2
    for _ in range(_MAX_PARTS):
        match = _JPEG_MARKER.search(data, position)
        if match is None:
            return scans
        marker, position = data[match.end() - 1], _end_of_segment(data, match.start())
        if marker == _JPEG_END_OF_IMAGE:
            return scans
        scans += marker == _JPEG_START_OF_SCAN
    raise ValueError(f"the JPEG image has more than {_MAX_PARTS} segments")


def _webp(data: bytes) -> tuple[bytes, int]:
    """Keep the chunks of the first frame."""
    view = memoryview(data)
    kept: list[bytes | memoryview] = []
    flags, exif, has_pixels, position = 0, b"", False, 12
    for _ in range(_MAX_PARTS):
        if position + 9 > len(data):
            break
        start, kind = position, data[position : position + 4]
        length = int.from_bytes(data[start + 4 : start + 8], "little")
        position = start + 8 + length + length % 2
        if kind == b"VP8X" and not kept:
            flags = data[start + 8]
            kept += [view[start : start + 8], bytes([flags & ~_WEBP_METADATA_FLAGS]), view[start + 9 : position]]
        elif kind == b"EXIF" and flags & _WEBP_EXIF_FLAG:
            exif = exif or data[start + 8 : start + 8 + length]
        elif kind in _WEBP_PIXELS and not has_pixels:
            has_pixels = kind not in {b"ALPH", b"ANIM"}
            kept.append(view[start:position])
    else:
        raise ValueError(f"the WebP image has more than {_MAX_PARTS} chunks")
    size = 4 + sum(len(part) for part in kept)
    return b"".join([b"RIFF", size.to_bytes(4, "little"), b"WEBP", *kept]), _orientation(exif)


def _orientation(exif: bytes) -> int:
    """Return the orientation that an EXIF block declares, 1 to 8; the rest of the block may be garbled."""
    tiff = exif[6:] if exif.startswith(b"Exif\0") else exif
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, start)
        for position in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, values = struct.unpack_from(order + "HHI", tiff, position)
            if tag == _ORIENTATION_TAG and kind in _UNSIGNED and values == 1:
                (orientation,) = struct.unpack_from(order + _UNSIGNED[kind], tiff, position + 8)
                return orientation if orientation in TRANSPOSE_BY_ORIENTATION else 1
    except struct.error:  # it ends too early
        pass
    return 1
