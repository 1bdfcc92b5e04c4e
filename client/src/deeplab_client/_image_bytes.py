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
ORIENTATION_TAG = 0x0112
_UNSIGNED = {1: "B", 3: "H", 4: "I"}  # TIFF 6.0, page 15: BYTE, SHORT, LONG

# Chunks, segments, blocks or values of one file: walking through more takes longer than decoding.
_MAX_PARTS = 100_000

_PNG_KIND = re.compile(rb"[A-Za-z]{4}")
_PNG_COLOR_TYPE, _PNG_PALETTE = 25, b"\3"  # where IHDR, the first chunk, has it
_PNG_CRITICAL = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})

# FF 00 is a stuffed byte, FF before FF fills, and restart markers stand within a scan.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_JPEG_START_OF_IMAGE, _JPEG_END_OF_IMAGE, _JPEG_START_OF_SCAN = 0xD8, 0xD9, 0xDA
_JPEG_FIRST_WITH_LENGTH, _JPEG_EXIF = 0xC0, 0xE1
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # without DHT, JPG and DAC
_JPEG_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})  # application data, comment
# Of these, what says how colors are stored, from the lengths on with which libjpeg believes it.
_JPEG_COLORS = re.compile(rb"\xe0..JFIF\0.{9}|\xee..Adobe.{7}", re.DOTALL)

_WEBP_EXIF_FLAG, _WEBP_METADATA_FLAGS = 0x08, 0x2C  # of VP8X: ICC profile, EXIF, XMP
_WEBP_PIXELS = frozenset({b"ALPH", b"ANIM", b"ANMF", b"VP8 ", b"VP8L"})

_GIF_BLOCK = re.compile(rb"[!,;]")
# The graphic control extension of a frame with a transparent color.
_GIF_TRANSPARENT = re.compile(rb"!\xf9\x04[\x01-\xff]..(.)", re.DOTALL)

# https://netpbm.sourceforge.net/doc/ppm.html; a thousand comments are enough.
_NETPBM_BLANK = rb"(?=[\s#])\s*(?:#[^\n\r]*[\n\r]\s*){0,1000}"
_NETPBM = re.compile(
    rb"(P[14])%b(\d+)%b(\d+)\s|(P[2356])%b(\d+)%b(\d+)%b(\d+)\s".replace(b"%b", _NETPBM_BLANK),
)

# TIFF 6.0, and BigTIFF. The order of bytes; the formats of an offset, a number of entries and an entry.
_TIFF = {
    b"II*\0": ("<", "I", "H", "HHI4s"),
    b"MM\0*": (">", "I", "H", "HHI4s"),
    b"II+\0": ("<", "Q", "Q", "HHQ8s"),
}
_TIFF_PIXELS = frozenset(
    # Size, samples, compression, colors; strips; fax options; predictor, color map; tiles; extra samples; JPEG; YCbCr.
    {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 338, 339, 347}
    | {529, 530, 531, 532}
)
_TIFF_SUBFILE_TYPE, _TIFF_COMPRESSION, _TIFF_PHOTOMETRIC, _TIFF_MAKER, _TIFF_DNG_VERSION = 254, 259, 262, 271, 50706
# None, three of fax machines, LZW, JPEG, Deflate, PackBits, the old number of Deflate, LZMA, Zstandard.
_TIFF_METHODS = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946, 34925, 50000})
_TIFF_SENSOR_DATA = frozenset({32803, 34892})  # photometric interpretations of RAW photos


_STARTS = {
    "JPEG": re.compile(rb"\xff\xd8"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "WEBP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "BMP": re.compile(rb"BM"),
    "PPM": _NETPBM,
    "GIF": re.compile(rb"GIF8[79]a.{7}", re.DOTALL),
    "TIFF": re.compile(rb"II[*+]\0|MM\0\*"),
    "HEIF": re.compile(rb".{4}ftyp(?:avi[fs]|he[iv][cx]|hei[ms]|mif[12]|msf1)", re.DOTALL),
}


def format_of(data: bytes) -> str | None:
    """Return the name that Pillow has for the format of a picture; "HEIF" stands for AVIF as well."""
    return next((name for name, start in _STARTS.items() if start.match(data)), None)


def without_metadata(data: bytes) -> tuple[bytes, int]:
    """Return a picture without the parts that no pixel needs, and its EXIF orientation, 1 to 8.

    The time is linear in the number of bytes. Bytes that are no well-formed picture may come back as they are, for the
    decoder to refuse.

    Raises:
        ValueError: A part that the pixels need is certainly broken, or there are too many parts; the message says so.
    """
    read = _READERS.get(format_of(data) or "")
    return (data, 1) if read is None else read(data)


def _png(data: bytes) -> tuple[bytes, int]:
    """Keep the critical chunks, which libpng is strict about as well; frames after the first are none of them."""
    view = memoryview(data)
    kept, exif, position = [view[:8]], b"", 8
    has_colors = data[_PNG_COLOR_TYPE : _PNG_COLOR_TYPE + 1] != _PNG_PALETTE
    for _ in range(_MAX_PARTS):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        end = position + 12 + length
        if not _PNG_KIND.fullmatch(kind) or (end > len(data) and kind[:1].isupper()):
            kept.append(view[position:])
            break
        sound = zlib.crc32(view[position + 4 : end - 4]).to_bytes(4, "big") == data[end - 4 : end]
        if kind[:1].isupper():
            if kind not in _PNG_CRITICAL:
                raise ValueError(
                    f"the PNG image has a critical chunk {kind.decode()}, which no standard defines; save it again"
                )
            if not sound:
                raise ValueError(
                    f"the PNG image is broken: its chunk {kind.decode()} has a wrong checksum; copy it again"
                )
            if kind == b"IDAT" and not has_colors:
                raise ValueError("the PNG image is broken: it has a palette without colors; save it again")
            has_colors = has_colors or kind == b"PLTE"
            kept.append(view[position:end])
        elif kind == b"eXIf" and sound and not exif:
            exif = data[position + 8 : end - 4]
        if kind == b"IEND":
            break
        position = end
    else:
        raise ValueError(f"the PNG image has more than {_MAX_PARTS} chunks; save it again")
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
        raise ValueError(f"the JPEG image has more than {_MAX_PARTS} segments; save it again")
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
    raise ValueError(f"the JPEG image has more than {_MAX_PARTS} segments; save it again")


def jpeg_frame(data: bytes) -> int:
    """Return the marker of a JPEG's first frame, which says how it is coded (T.81, table B.1); 0 if there is none."""
    position = 2
    for _ in range(_MAX_PARTS):
        match = _JPEG_MARKER.search(data, position)
        if match is None:
            break
        marker, position = data[match.end() - 1], _end_of_segment(data, match.start())
        if marker in _JPEG_FRAMES:
            return marker
        if marker in {_JPEG_START_OF_SCAN, _JPEG_END_OF_IMAGE}:
            break
    return 0


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
            if position == len(data) + 1:
                kept.append(b"\0")  # the padding, which is no pixel
    else:
        raise ValueError(f"the WebP image has more than {_MAX_PARTS} chunks; save it again")
    size = 4 + sum(len(part) for part in kept)
    return b"".join([b"RIFF", size.to_bytes(4, "little"), b"WEBP", *kept]), _orientation(exif)


def _gif(data: bytes) -> tuple[bytes, int]:
    """Leave out, before the first frame, all but which color is transparent."""
    view = memoryview(data)
    palette_end = 13 + (6 << (data[10] & 7) if data[10] & 0x80 else 0)
    kept, position, in_extension = [view[:palette_end]], palette_end, False
    for _ in range(_MAX_PARTS):
        if in_extension:
            length = data[position] if position < len(data) else 0
            position += length + 1
            in_extension = length > 0
            continue
        block = _GIF_BLOCK.search(data, position)
        if block is None or block.group() == b";":
            break
        position = block.start()
        if block.group() == b",":
            kept.append(view[position:])
            break
        transparent = _GIF_TRANSPARENT.match(data, position)
        if transparent is not None and data[position + 3] & 1:
            # Without what is to be done after the frame.
            kept.append(memoryview(b"!\xf9\x04\x01\0\0" + transparent.group(1) + b"\0"))
        position += 2
        in_extension = True
    else:
        raise ValueError(f"the GIF image has more than {_MAX_PARTS} blocks before its first frame; save it again")
    return b"".join(kept), 1


def _netpbm(data: bytes) -> tuple[bytes, int]:
    """Leave out comments."""
    header = _NETPBM.match(data)
    if header is None:
        return data, 1
    plain = b" ".join(group for group in header.groups() if group is not None) + b"\n"
    if data.startswith(plain):
        return data, 1  # as arrays are sent, which are large
    return plain + memoryview(data)[header.end() :], 1


def _tiff(data: bytes) -> tuple[bytes, int]:
    """Leave in the directory of the first page the tags that its pixels need, and no next page."""
    order, offset, number, entry = _TIFF[data[:4]]
    directory = _directory(data)
    if not directory:
        return data, 1
    if (
        _TIFF_DNG_VERSION in directory
        or (_TIFF_MAKER in directory and (_value(order, directory, _TIFF_SUBFILE_TYPE) or 0) & 1)
        or _value(order, directory, _TIFF_PHOTOMETRIC) in _TIFF_SENSOR_DATA
    ):
        raise ValueError("the image is a RAW photo (DNG, NEF or alike); develop it and save it as JPEG or TIFF")
    method = _value(order, directory, _TIFF_COMPRESSION)
    if method is not None and method not in _TIFF_METHODS:
        raise ValueError(
            f"the TIFF image is compressed by method {method}, which is not accepted; save it with LZW or Deflate"
        )
    kept = [(tag, *directory[tag]) for tag in sorted(_TIFF_PIXELS & directory.keys())]
    for tag, _, values, _ in kept:
        if values > _MAX_PARTS:
            raise ValueError(
                f"the TIFF image has {values} values in its tag {tag}, more than {_MAX_PARTS}; save it again"
            )
    (start,) = struct.unpack_from(order + offset, data, struct.calcsize(offset))
    written = struct.pack(order + number, len(kept)) + b"".join(struct.pack(order + entry, *values) for values in kept)
    written += bytes(struct.calcsize(offset))  # no other page
    # In the place of the old one, which is no smaller: behind the end it would stand in for pixels that are not there.
    parts = [memoryview(data)[:start], written, memoryview(data)[start + len(written) :]]
    return b"".join(parts), _upright(_value(order, directory, ORIENTATION_TAG))


def _directory(tiff: bytes) -> dict[int, tuple[int, int, bytes]]:
    """Return the entries of the first directory by tag, as far as it goes: type, number of values, value or offset."""
    order, offset, number, entry = _TIFF[tiff[:4]]
    entries: dict[int, tuple[int, int, bytes]] = {}
    try:
        (start,) = struct.unpack_from(order + offset, tiff, struct.calcsize(offset))
        (count,) = struct.unpack_from(order + number, tiff, start)
        start += struct.calcsize(number)
        for position in range(min(count, _MAX_PARTS)):
            tag, *values = struct.unpack_from(order + entry, tiff, start + position * struct.calcsize("=" + entry))
            entries.setdefault(tag, tuple(values))
    except (struct.error, OverflowError):  # it ends too early
        pass
    return entries


def _value(order: str, directory: dict[int, tuple[int, int, bytes]], tag: int) -> int | None:
    """Return the number that a tag holds; None if it is not there or holds something else."""
    kind, values, content = directory.get(tag, (0, 0, b""))
    return struct.unpack_from(order + _UNSIGNED[kind], content)[0] if kind in _UNSIGNED and values == 1 else None


def _orientation(exif: bytes) -> int:
    """Return the orientation that an EXIF block declares, 1 to 8; the rest of the block may be garbled."""
    tiff = exif[6:] if exif.startswith(b"Exif\0") else exif
    if tiff[:4] not in _TIFF:
        return 1
    return _upright(_value(_TIFF[tiff[:4]][0], _directory(tiff), ORIENTATION_TAG))


def _upright(orientation: int | None) -> int:
    return orientation if orientation in TRANSPOSE_BY_ORIENTATION else 1


_READERS = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp, "GIF": _gif, "PPM": _netpbm, "TIFF": _tiff}
