"""The container of AVIF and HEIC files, written after ISO/IEC 23008-12."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from corpus.parts import box, full_box

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Item:
    """An item of the file: number N is the N-th, from 1.

    Attributes:
        kind: "hvc1", "av01", "grid", "Exif", "mime".
        data: Its bytes.
        properties: Boxes; those of irot, imir, hvcC and av1C are essential.
        references: {kind: numbers of other items}.
        hidden: Not to be shown by itself, as tiles are.
    """

    kind: bytes
    data: bytes
    properties: tuple[bytes, ...] = ()
    references: dict[bytes, tuple[int, ...]] = field(default_factory=dict)
    hidden: bool = False


def write(*items: Item, brands: Sequence[bytes], primary: int = 1, between: bytes = b"") -> bytes:
    """Return a file of items.

    Args:
        items: The items.
        brands: The major brand, and the others that it is compatible with.
        primary: The number of the picture.
        between: Boxes before the data.
    """
    start = box(b"ftyp", brands[0], bytes(4), *brands)
    boxes = list(dict.fromkeys(one for item in items for one in item.properties))
    entries = [
        full_box(b"infe", 2, item.hidden, struct.pack(">HH4s", number, 0, item.kind), b"\0", *_mime(item.kind))
        for number, item in enumerate(items, 1)
    ]
    essential = {b"irot", b"imir", b"hvcC", b"av1C", b"clap"}
    associations = b"".join(
        struct.pack(">HB", number, len(item.properties))
        + bytes(boxes.index(one) + 1 | 0x80 * (one[4:8] in essential) for one in item.properties)
        for number, item in enumerate(items, 1)
    )
    references = b"".join(
        box(kind, struct.pack(f">HH{len(targets)}H", number, len(targets), *targets))
        for number, item in enumerate(items, 1)
        for kind, targets in item.references.items()
    )

    def meta(first: int) -> bytes:
        offsets = [first + sum(len(item.data) for item in items[:number]) for number in range(len(items))]
        locations = b"".join(
            struct.pack(">HHHII", number, 0, 1, offset, len(item.data))
            for number, (item, offset) in enumerate(zip(items, offsets, strict=True), 1)
        )
        return full_box(
            b"meta",
            0,
            0,
            full_box(b"hdlr", 0, 0, struct.pack(">I4s12x", 0, b"pict"), b"\0"),
            full_box(b"pitm", 0, 0, struct.pack(">H", primary)),
            full_box(b"iloc", 0, 0, b"\x44\0", struct.pack(">H", len(items)), locations),
            full_box(b"iinf", 0, 0, struct.pack(">H", len(items)), *entries),
            full_box(b"iref", 0, 0, references) if references else b"",
            box(
                b"iprp",
                box(b"ipco", *boxes),
                full_box(b"ipma", 0, 0, struct.pack(">I", len(items)), associations),
            ),
        )

    return (
        start
        + meta(len(start) + len(meta(0)) + len(between) + 8)
        + between
        + box(b"mdat", *(item.data for item in items))
    )


def _mime(kind: bytes) -> tuple[bytes, ...]:
    return (b"application/rdf+xml\0",) if kind == b"mime" else ()


def ispe(width: int, height: int) -> bytes:
    """Return the property of an item's size."""
    return full_box(b"ispe", 0, 0, struct.pack(">II", width, height))


COLORS = box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 6, 0x80))  # BT.601's matrix, full range


def turn(quarters: int) -> bytes:
    """Return the property that turns an item against the clock."""
    return box(b"irot", bytes([quarters]))


def mirror(axis: int) -> bytes:
    """Return the property that exchanges top and bottom (0), or left and right (1)."""
    return box(b"imir", bytes([axis]))
