"""AVIF and HEIC files as boxes, and the still picture in them as a file of its own.

ISO/IEC 14496-12 describes the boxes, ISO/IEC 23008-12 (HEIF) the items. What decoders find in such a file besides the
picture costs it, or their process, where it is flawed: so the picture alone is written anew.

Only the standard library is used: the client has a copy of this file, and a test compares the two.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

_MAX_PARTS = 20_000  # boxes, references or units of AV1 in one place: real files have hundreds
_MAX_SHARED = 4  # how often, on average, a byte of the file may belong to a tile
_TOP_LEVEL = frozenset({b"ftyp", b"meta", b"mdat", b"moov", b"free", b"skip", b"uuid"})
_CODECS = {b"av01": "AVIF", b"hvc1": "HEIF"}
_BRANDS = {"AVIF": (b"avif", b"mif1", b"miaf"), "HEIF": (b"heic", b"mif1")}
# What the pixels need, and whether a reader must understand it. Of color profiles only `nclx`, which says how YCbCr is
# made; of the rest nothing, in particular no EXIF and no XMP, whose flaws end a process in pi-heif 1.4.0.
_PROPERTIES = {
    b"av1C": 0x80,
    b"hvcC": 0x80,
    b"ispe": 0,
    b"pixi": 0,
    b"colr": 0,
    b"clap": 0x80,
    b"irot": 0x80,
    b"imir": 0x80,
}
_LONGEST_PROPERTY = 1 << 16
_TRUNCATED = "the AVIF or HEIC image is broken or truncated: it ends too early; send the whole file, or save it again"
_VERSION_WITH_SHORT_IDS = 2  # of an infe box


@dataclass(frozen=True, slots=True)
class Item:
    """A coded picture, or a grid of such.

    Attributes:
        kind: b"av01", b"hvc1" or b"grid".
        properties: what the boxes hold that describe it, by their kind.
        data: the coded pixels.
    """

    kind: bytes
    properties: dict[bytes, bytes]
    data: bytes


@dataclass(frozen=True, slots=True)
class Still:
    """The still picture of a file.

    Attributes:
        data: a file that holds it and nothing else: no alpha, no metadata, no other pictures, no sequence.
        codec: "AVIF" or "HEIF", which is Pillow's name of the format.
        tiles: what is decoded for it, one after another: itself, or the tiles of a grid.
    """

    data: bytes
    codec: str
    tiles: Sequence[Item]


@dataclass(slots=True)
class _Meta:
    """What the `meta` box says about the items, by their ids."""

    primary: int = 0
    kinds: dict[int, bytes] = field(default_factory=dict[int, bytes])
    tiles: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    properties: dict[int, dict[bytes, bytes]] = field(default_factory=dict[int, dict[bytes, bytes]])
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict[int, list[tuple[int, int]]])


def still(data: bytes) -> Still:
    """Return the still picture of an AVIF or HEIC file.

    Raises:
        ValueError: The file has none, or one of a kind that is not taken; the message says why.
    """
    for kind, start, stop in _boxes(data, 0, len(data)):
        if kind == b"meta":
            return _still(data, _read_meta(data, start + 4, min(stop, len(data))))
        if stop > len(data) and kind not in _TOP_LEVEL:
            break
    raise ValueError("the AVIF or HEIC file has no still picture; send the whole file, or a frame of it as JPEG")


def _still(data: bytes, meta: _Meta) -> Still:
    is_grid = meta.kinds.get(meta.primary) == b"grid"
    tiles = meta.tiles.get(meta.primary, []) if is_grid else [meta.primary]
    kinds = {meta.kinds.get(item, b"") for item in tiles}
    if not tiles or b"" in kinds:
        raise ValueError(
            "the AVIF or HEIC image is broken or truncated: it does not say where its picture is; send the whole file"
        )
    # One kind of codec; what is derived could be made of what is derived, which a few bytes let grow without bounds.
    if len(kinds) != 1 or not kinds <= _CODECS.keys():
        names = ", ".join(sorted(kind.decode("ascii", "backslashreplace") for kind in kinds))
        raise ValueError(
            f"the picture in the AVIF or HEIC file is of the kind {names!r}; save it without layers, or as JPEG"
        )
    items: dict[int, Item] = {}
    length = 0
    for item in dict.fromkeys([meta.primary, *tiles]):
        extents = meta.extents.get(item, [])
        if any(end > len(data) for _, end in extents):
            raise ValueError(_TRUNCATED)
        length += sum(max(0, end - start) for start, end in extents)
        if length > _MAX_SHARED * len(data):
            raise ValueError("the tiles of the AVIF or HEIC picture share their bytes; save it again")
        content = b"".join(data[start:end] for start, end in extents)
        items[item] = Item(meta.kinds[item], meta.properties.get(item, {}), content)
    codec = _CODECS[kinds.pop()]
    numbers = {item: number for number, item in enumerate(items, 1)}
    references = [numbers[item] for item in tiles] if is_grid else []
    return Still(_written(list(items.values()), references, _BRANDS[codec]), codec, [items[item] for item in tiles])


def _written(items: Sequence[Item], tiles: Sequence[int], brands: Sequence[bytes]) -> bytes:
    """Return a file of items, of which the first is the primary one, and `tiles` the numbers of what it is made of."""
    properties = list(dict.fromkeys(each for item in items for each in item.properties.items()))
    if len(properties) > _MAX_PARTS:
        raise ValueError(f"the AVIF or HEIC file has more than {_MAX_PARTS} properties; save it again")
    index = {each: number for number, each in enumerate(properties, 1)}
    associations = b"".join(
        struct.pack(">HB", number, len(item.properties))
        + b"".join(struct.pack(">H", _PROPERTIES[each[0]] << 8 | index[each]) for each in item.properties.items())
        for number, item in enumerate(items, 1)
    )
    infos = [
        _full_box(b"infe", struct.pack(">HH", number, 0), item.kind, b"\0", version=2)
        for number, item in enumerate(items, 1)
    ]
    start = _box(b"ftyp", brands[0], bytes(4), *brands)

    def meta(offset: int) -> bytes:
        places = b""
        for number, item in enumerate(items, 1):
            places += struct.pack(">HHHII", number, 0, 1, offset, len(item.data))
            offset += len(item.data)
        return _full_box(
            b"meta",
            _full_box(b"hdlr", bytes(4), b"pict", bytes(13)),
            _full_box(b"pitm", b"\0\1"),
            _full_box(b"iloc", b"\x44\0", struct.pack(">H", len(items)), places),
            _full_box(b"iinf", struct.pack(">H", len(items)), *infos),
            _full_box(b"iref", _box(b"dimg", struct.pack(f">HH{len(tiles)}H", 1, len(tiles), *tiles)))
            if tiles
            else b"",
            _box(
                b"iprp",
                _box(b"ipco", *(_box(kind, content) for kind, content in properties)),
                _full_box(b"ipma", struct.pack(">I", len(items)), associations, flags=1),
            ),
        )

    return start + meta(len(start) + len(meta(0)) + 8) + _box(b"mdat", *(item.data for item in items))


def _box(kind: bytes, *content: bytes) -> bytes:
    return struct.pack(">I", 8 + sum(map(len, content))) + kind + b"".join(content)


def _full_box(kind: bytes, *content: bytes, version: int = 0, flags: int = 0) -> bytes:
    return _box(kind, struct.pack(">I", version << 24 | flags), *content)


def _number(data: bytes, start: int, size: int) -> int:
    if start + size > len(data):
        raise ValueError(_TRUNCATED)
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
    raise ValueError(f"the AVIF or HEIC file has more than {_MAX_PARTS} boxes; save it again")


def _distinct(data: bytes, start: int, end: int) -> dict[bytes, tuple[int, int]]:
    """Return where the content of each box starts and ends, by kind; a kind must not be there twice."""
    found: dict[bytes, tuple[int, int]] = {}
    for kind, content, stop in _boxes(data, start, end):
        if kind in found:
            name = kind.decode("ascii", "backslashreplace")
            raise ValueError(f"the AVIF or HEIC file has two boxes of the kind {name!r}; save it again")
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
        _read_properties(data, *inner[b"iprp"], meta)
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
                raise ValueError(f"the AVIF or HEIC file describes its item {item} twice; save it again")
            meta.kinds[item] = item_kind


def _read_references(data: bytes, start: int, end: int, meta: _Meta) -> None:
    id_size = 4 if _number(data, start, 1) else 2
    total = 0
    for kind, at, _ in _boxes(data, start + 4, end):
        source, count = _number(data, at, id_size), _number(data, at + id_size, 2)
        total += count
        if total > _MAX_PARTS:
            raise ValueError(f"the AVIF or HEIC file has more than {_MAX_PARTS} references; save it again")
        first = at + id_size + 2
        targets = [_number(data, first + index * id_size, id_size) for index in range(count)]
        if kind == b"dimg":
            meta.tiles.setdefault(source, []).extend(targets)


def _read_properties(data: bytes, start: int, end: int, meta: _Meta) -> None:
    properties: list[tuple[bytes, bytes]] = []
    for kind, at, stop in _boxes(data, start, end):
        if kind == b"ipco":
            for name, first, last in _boxes(data, at, min(stop, end)):
                content = (
                    data[first : min(last, end)] if name in _PROPERTIES and last - first < _LONGEST_PROPERTY else b""
                )
                properties.append((name, content))
        elif kind == b"ipma":
            _associate(data, at, min(stop, end), properties, meta)


def _associate(data: bytes, at: int, end: int, properties: Sequence[tuple[bytes, bytes]], meta: _Meta) -> None:
    id_size, index_size = (4 if _number(data, at, 1) else 2), (2 if _number(data, at + 3, 1) & 1 else 1)
    position, left = at + 8, _MAX_PARTS
    for _ in range(_number(data, at + 4, 4)):
        if position >= end:
            return
        item, count = _number(data, position, id_size), _number(data, position + id_size, 1)
        position += id_size + 1
        left -= 1 + count
        if left < 0:
            raise ValueError(f"the AVIF or HEIC file has more than {_MAX_PARTS} properties; save it again")
        for _ in range(count):
            index = _number(data, position, index_size) & (0x7FFF if index_size > 1 else 0x7F)
            position += index_size
            kind, content = properties[index - 1] if 0 < index <= len(properties) else (b"", b"")
            if content and (kind != b"colr" or content.startswith(b"nclx")):
                meta.properties.setdefault(item, {}).setdefault(kind, content)


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
            raise ValueError(f"the AVIF or HEIC file lies in more than {_MAX_PARTS} pieces; save it again")
        for _ in range(count):
            position += index_size if version else 0
            start = base + _number(data, position, offset_size)
            length = _number(data, position + offset_size, length_size)
            position += offset_size + length_size
            meta.extents.setdefault(item, []).append((start, start + length if length else len(data)))
