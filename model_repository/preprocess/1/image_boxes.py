"""AVIF and HEIC files as boxes: the still picture in them, and how many pixels a decoder would decode for it.

Such a file declares sizes in several places, and a decoder may believe the largest: a few kilobytes can take gigabytes.
ISO/IEC 14496-12 describes the boxes, ISO/IEC 23008-12 (HEIF) the items, section 5.5 of the AV1 specification the header
of a sequence.

Only the standard library is used: the client has a copy of this file, and a test compares the two.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

_MAX_PARTS = 20_000  # boxes, references or units of AV1 in one place: real files have hundreds
_CODECS = {b"av01": "AVIF", b"hvc1": "HEIF"}
_SEQUENCE_BRANDS = {b"avis": b"avif", b"hevc": b"heic", b"hevx": b"heix", b"msf1": b"mif1"}
_DERIVED = frozenset({b"grid", b"iden", b"iovl"})
_MAX_SHARED = 4  # how often, on average, a byte of the file may belong to a tile
_TOP_LEVEL = frozenset({b"ftyp", b"meta", b"mdat", b"moov", b"free", b"skip", b"uuid"})
_HEVC_MARGIN = 64  # libheif takes a picture that is larger than declared by this at most, in each direction
_AV1_SEQUENCE_HEADER = 1
_LARGEST_LEVEL_WITHOUT_TIER = 7
_VERSION_WITH_SHORT_IDS = 2  # of an infe box


@dataclass(frozen=True, slots=True)
class Still:
    """The still picture of a file.

    Attributes:
        data: the file without the references to EXIF and XMP, whose flaws may cost the picture and end the process, and
            without its sequence.
        codec: "AVIF" or "HEIF", which is Pillow's name of the format.
        coded_pixels: how many pixels are decoded for it at most, in all tiles and the alpha plane.
    """

    data: bytes
    codec: str
    coded_pixels: int


@dataclass(slots=True)
class _Meta:
    """What the `meta` box says about the items, by their ids."""

    primary: int = 0
    kinds: dict[int, bytes] = field(default_factory=dict[int, bytes])
    descriptions_at: list[int] = field(default_factory=list[int])  # where the kinds of references to metadata stand
    tiles: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    alphas: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    sizes: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict[int, list[tuple[int, int]]])


def still(data: bytes) -> Still:
    """Return the still picture of an AVIF or HEIC file.

    Raises:
        ValueError: The file has none, or one of a kind that is not taken; the message says why.
    """
    meta, end = None, 0
    patches: list[tuple[int, bytes]] = []
    for kind, start, stop in _boxes(data, 0, len(data)):
        if stop > len(data) and kind not in _TOP_LEVEL:
            break  # no box, but what others have appended
        end = min(stop, len(data))
        if kind == b"ftyp":
            brands = (position for position in range(start, end, 4) if position != start + 4)
            patches += [
                (at, _SEQUENCE_BRANDS[data[at : at + 4]]) for at in brands if data[at : at + 4] in _SEQUENCE_BRANDS
            ]
        elif kind == b"moov":
            patches.append((start - 4, b"free"))
        elif kind == b"meta":
            if meta is not None:
                raise ValueError("the AVIF or HEIC file has two boxes of the kind 'meta'; save it anew")
            meta = _read_meta(data, start + 4, end)
    if meta is None:
        raise ValueError("the AVIF or HEIC file has no still picture; send the whole file, or a frame of it as JPEG")
    patches += [(at, b"skip") for at in meta.descriptions_at]
    codec, coded_pixels = _codec_and_pixels(data, meta)
    if not patches and end == len(data):
        return Still(data, codec, coded_pixels)
    changed = bytearray(data[:end])
    for at, new in patches:
        changed[at : at + 4] = new
    return Still(bytes(changed), codec, coded_pixels)


def _codec_and_pixels(data: bytes, meta: _Meta) -> tuple[str, int]:
    """Return which codec decodes the primary item, and the pixels of all that is decoded with it."""
    pictures = meta.tiles.get(meta.primary, []) if meta.kinds.get(meta.primary) == b"grid" else [meta.primary]
    planes: list[int] = []
    for alpha in (alpha for item in dict.fromkeys([meta.primary, *pictures]) for alpha in meta.alphas.get(item, [])):
        planes += meta.tiles.get(alpha, []) if meta.kinds.get(alpha) == b"grid" else [alpha]
    kinds = [meta.kinds.get(item, b"") for item in pictures]
    # Derived pictures can be made of derived ones, which a few bytes let grow without bounds.
    kinds += [kind for kind in (meta.kinds.get(item, b"") for item in planes) if kind in _DERIVED]
    unknown = next((kind for kind in kinds if kind not in _CODECS), None)
    if unknown == b"":  # the file does not say what the item is
        raise ValueError("the AVIF or HEIC file is broken or truncated; send the whole file, or save it anew")
    if not kinds or unknown is not None:
        name = (unknown or b"grid").decode("ascii", "backslashreplace")
        raise ValueError(
            f"the picture in the AVIF or HEIC file is of the kind {name!r}; save it without layers, or as JPEG"
        )
    pixels = examined = 0
    for item in pictures + planes:
        width, height = meta.sizes.get(item, (0, 0))
        if meta.kinds.get(item) == b"hvc1":
            pixels += (width + _HEVC_MARGIN) * (height + _HEVC_MARGIN)
            continue
        parts = [data[start:end] for start, end in meta.extents.get(item, [])]
        examined += sum(len(part) for part in parts)
        if examined > _MAX_SHARED * len(data):
            raise ValueError("the tiles of the picture share their bytes; save it anew")
        pixels += max(width * height, _av1_pixels(b"".join(parts)))
    return _CODECS[kinds[0]], pixels


def _number(data: bytes, start: int, size: int) -> int:
    if start + size > len(data):
        raise ValueError("the AVIF or HEIC file ends too early; send the whole file")
    return int.from_bytes(data[start : start + size], "big")


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the boxes from `start` on: kind, and where the content starts and ends, which may be behind `end`."""
    for _ in range(_MAX_PARTS):
        if start + 8 > end:
            return
        size, content = _number(data, start, 4), start + 8
        if size == 1:
            size, content = _number(data, start + 8, 8), start + 16
        elif size == 0:  # to the end
            size = end - start
        if size < content - start:
            return
        yield data[start + 4 : start + 8], content, start + size
        start += size
    raise ValueError(f"the AVIF or HEIC file has more than {_MAX_PARTS} boxes; save it anew")


def _distinct(data: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Return where the content of each box starts and ends, by kind; a kind must not be there twice."""
    found: dict[bytes, tuple[int, int]] = {}
    for kind, content, stop in _boxes(data, start, end):
        if kind in found:
            name = kind.decode("ascii", "backslashreplace")
            raise ValueError(f"the AVIF or HEIC file has two boxes of the kind {name!r}; save it anew")
        found[kind] = content, min(stop, end)
    return found


def _read_meta(data: bytes, start: int, end: int) -> _Meta:
    meta = _Meta()
    inner = _distinct(data, start, end)
    if b"pitm" in inner:
        at = inner[b"pitm"][0]
        meta.primary = _number(data, at + 4, 4 if _number(data, at, 1) else 2)
    if b"iinf" in inner:
        _read_kinds(data, *inner[b"iinf"], meta)
    if b"iref" in inner:
        _read_references(data, *inner[b"iref"], meta)
    if b"iprp" in inner:
        _read_sizes(data, *inner[b"iprp"], meta)
    if b"iloc" in inner:
        _read_extents(data, inner[b"iloc"][0], inner.get(b"idat", (0, 0))[0], meta)
    return meta


def _read_kinds(data: bytes, start: int, end: int, meta: _Meta) -> None:
    for kind, at, _ in _boxes(data, start + (8 if _number(data, start, 1) else 6), end):
        if kind == b"infe":
            id_size = 4 if _number(data, at, 1) > _VERSION_WITH_SHORT_IDS else 2
            kind_at = at + 4 + id_size + 2
            item, item_kind = _number(data, at + 4, id_size), data[kind_at : kind_at + 4]
            if item in meta.kinds:
                raise ValueError(f"the AVIF or HEIC file describes its item {item} twice; save it anew")
            meta.kinds[item] = item_kind


def _read_references(data: bytes, start: int, end: int, meta: _Meta) -> None:
    id_size = 4 if _number(data, start, 1) else 2
    total = 0
    for kind, at, _ in _boxes(data, start + 4, end):
        source, count = _number(data, at, id_size), _number(data, at + id_size, 2)
        total += count
        if total > _MAX_PARTS:
            raise ValueError(f"the AVIF or HEIC file has more than {_MAX_PARTS} references; save it anew")
        first = at + id_size + 2
        targets = [_number(data, first + index * id_size, id_size) for index in range(count)]
        if kind == b"cdsc":
            meta.descriptions_at.append(at - 4)
        elif kind == b"dimg":
            meta.tiles.setdefault(source, []).extend(targets)
        elif kind == b"auxl":
            for target in targets:
                meta.alphas.setdefault(target, []).append(source)


def _read_sizes(data: bytes, start: int, end: int, meta: _Meta) -> None:
    properties: list[tuple[bytes, int, int]] = []
    for kind, at, stop in _boxes(data, start, end):
        if kind == b"ipco":
            properties += _boxes(data, at, min(stop, end))
        elif kind == b"ipma":
            _associate(data, at, properties, meta)


def _associate(data: bytes, at: int, properties: list[tuple[bytes, int, int]], meta: _Meta) -> None:
    id_size, index_size = (4 if _number(data, at, 1) else 2), (2 if _number(data, at + 3, 1) & 1 else 1)
    position = at + 8
    for _ in range(_number(data, at + 4, 4)):
        item, count = _number(data, position, id_size), _number(data, position + id_size, 1)
        position += id_size + 1
        for _ in range(count):
            index = _number(data, position, index_size) & (0x7FFF if index_size > 1 else 0x7F)
            position += index_size
            if 0 < index <= len(properties) and properties[index - 1][0] == b"ispe":
                size_at = properties[index - 1][1] + 4
                size = _number(data, size_at, 4), _number(data, size_at + 4, 4)
                meta.sizes[item] = max(size, meta.sizes.get(item, size), key=math.prod)


def _read_extents(data: bytes, at: int, idat: int, meta: _Meta) -> None:
    version, sizes = _number(data, at, 1), _number(data, at + 4, 2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 0xF for shift in (12, 8, 4, 0))
    id_size = 4 if version > 1 else 2
    position, total = at + 6 + id_size, 0
    for _ in range(_number(data, at + 6, id_size)):
        item = _number(data, position, id_size)
        position += id_size
        in_idat = version > 0 and _number(data, position, 2) & 0xF == 1
        position += (2 if version else 0) + 2
        base = _number(data, position, base_size) + (idat if in_idat else 0)
        count = _number(data, position + base_size, 2)
        position += base_size + 2
        total += count
        if total > _MAX_PARTS:
            raise ValueError(f"the AVIF or HEIC file lies in more than {_MAX_PARTS} pieces; save it anew")
        for _ in range(count):
            position += index_size if version else 0
            start = base + _number(data, position, offset_size)
            length = _number(data, position + offset_size, length_size) or len(data)
            position += offset_size + length_size
            meta.extents.setdefault(item, []).append((start, start + length))


def _av1_pixels(units: bytes) -> int:
    """Return how many pixels a frame has at most, by the headers of sequences among the units (OBUs) of AV1."""
    pixels = position = 0
    for _ in range(_MAX_PARTS):
        if position >= len(units):
            return pixels
        header = units[position]
        position += 2 if header & 4 else 1
        size = len(units) - position
        if header & 2:
            size = shift = 0
            while position < len(units):
                byte, position = units[position], position + 1
                size |= (byte & 0x7F) << shift
                shift += 7
                if byte < 0x80:  # noqa: PLR2004 - LEB128: the last byte
                    break
        if header >> 3 & 0xF == _AV1_SEQUENCE_HEADER:
            pixels = max(pixels, _frame_pixels(_Bits(units[position : position + size])))
        position += size
    raise ValueError(f"the AVIF file has more than {_MAX_PARTS} units; save it anew")


class _Bits:
    """Unsigned numbers of so many bits, one behind the other; zeros behind the end."""

    def __init__(self, data: bytes) -> None:
        self._left = 8 * min(len(data), 4096)
        self._value = int.from_bytes(data[:4096], "big")

    def take(self, bits: int) -> int:
        self._left -= bits
        shifted = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return shifted & ((1 << bits) - 1)


def _frame_pixels(bits: _Bits) -> int:
    """Read the header of a sequence (5.5.1) up to the size of its frames."""
    bits.take(4)
    reduced = bits.take(1)
    if reduced:
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(width_bits) + 1, bits.take(height_bits) + 1
    # Frames of a sequence that is none of a still picture may have a size of their own. Of the largest that these bits
    # hold half is counted: the honest ones are then below what is allowed.
    return width * height if reduced else max(width * height, 1 << width_bits + height_bits - 1)


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):  # timing
        bits.take(64)
        if bits.take(1):
            zeros = 0
            while zeros < 32 and not bits.take(1):  # noqa: PLR2004 - uvlc() ends there
                zeros += 1
            bits.take(zeros)
        if bits.take(1):  # decoder model
            delay_bits = bits.take(5) + 1
            bits.take(42)
    has_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > _LARGEST_LEVEL_WITHOUT_TIER:
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if has_delay and bits.take(1):
            bits.take(4)
