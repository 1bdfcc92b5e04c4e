"""The record in each output file of how it was made.

The record is JSON: in a text chunk of a PNG, in the first line of a JSON file, and in each image of a COCO file. It
moves with the file, and a complete file has a complete record.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from deeplab_client._cli.formats import Format
    from deeplab_client._cli.settings import Settings
    from deeplab_client._cli.sources import Source

KEY = "deeplab segment"
SOURCE = "source"
WEIGHTS = "weights"

# https://www.w3.org/TR/png-3/: a signature, then the chunk IHDR. A chunk is the length of its data, its type, its data
# and a checksum; the data of a text chunk is a keyword, a zero and Latin-1.
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_BEFORE = 8 + 4 + 4 + 13 + 4
_CHUNK = f"tEXt{KEY}\0".encode()
_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_OBJECT = f'{{"{KEY}": '.encode()
_NEXT, _CLOSE = b",\n", b"}\n"  # there are no other line breaks in the file
_LONGEST = 1 << 16  # bytes of a record; another program's file may have a line of any length


def identity(place: Path) -> str:
    """Return a hash of a picture's path, because outputs are shared with people who need not know the path."""
    return hashlib.sha256(os.fsencode(place)).hexdigest()


def about(source: Source, settings: Settings, kind: Format, *, weights: str | None) -> dict[str, Any]:
    """Return the record of an output; outputs made from the same picture in the same way have equal records."""
    return {
        SOURCE: identity(source.place),
        "size": source.size,
        "modified": source.modified,
        WEIGHTS: weights,
        **settings.about(kind),
    }


def add(data: bytes, made: Mapping[str, Any]) -> bytes:
    """Return a PNG, or a JSON object on one line, with a record."""
    text = json.dumps(made).encode()
    if not data.startswith(_SIGNATURE):
        return b"".join((_OBJECT, text, _NEXT, data[1:], b"\n"))
    chunk = _CHUNK + text
    length, checksum = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
    return b"".join((data[:_BEFORE], length, chunk, checksum, data[_BEFORE:]))


def read(path: Path) -> dict[str, Any] | None:
    """Return the record of a file, marked if the end of the file is missing; None if it has no record.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_BEFORE + _LONGEST)
            file.seek(max(0, file.seek(0, os.SEEK_END) - len(_END)))
            end = file.read()
    except IsADirectoryError:
        return None
    except FileNotFoundError:
        if os.path.lexists(path):  # a broken link
            return None
        raise
    text = _of_png(start) if start.startswith(_SIGNATURE) else _of_object(start)
    if text is None:
        return None
    made: dict[str, Any] = json.loads(text)
    return made if end == _END or end.endswith(_CLOSE) else {**made, "cut off": True}


def _of_png(start: bytes) -> bytes | None:
    after = start[_BEFORE:]
    chunk, rest = after[4:][: int.from_bytes(after[:4], "big") + 4], after[int.from_bytes(after[:4], "big") + 8 :]
    is_whole = chunk.startswith(_CHUNK) and zlib.crc32(chunk) == int.from_bytes(rest[:4], "big")
    return chunk[len(_CHUNK) :] if is_whole else None


def _of_object(start: bytes) -> bytes | None:
    line, following, _ = start.partition(_NEXT)
    return line[len(_OBJECT) :] if following and line.startswith(_OBJECT) else None
