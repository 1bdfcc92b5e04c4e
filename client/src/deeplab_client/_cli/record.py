"""What an output says about its own making: JSON in a text chunk of the PNG.

It travels with the file, and a file that is whole under its name has a record that is whole.
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

# https://www.w3.org/TR/png-3/: a signature, then the chunk IHDR. A chunk is the length of its data, its type, its data
# and a checksum; the data of a text chunk is a keyword, a zero and Latin-1.
_BEFORE = 8 + 4 + 4 + 13 + 4
_START = b"tEXtdeeplab segment\0"
_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_LONGEST = 1 << 16  # bytes; another program's chunk may be of any length

SOURCE = "source"


def identity(place: Path) -> str:
    """Return what stands for a picture's path: a hash, because outputs are shown to people who need not know it."""
    return hashlib.sha256(os.fsencode(place)).hexdigest()


def add(png: bytes, about: Mapping[str, Any]) -> bytes:
    """Return a PNG with a record."""
    chunk = _START + json.dumps(about).encode()
    length, checksum = struct.pack(">I", len(chunk) - 4), struct.pack(">I", zlib.crc32(chunk))
    return b"".join((png[:_BEFORE], length, chunk, checksum, png[_BEFORE:]))


def read(path: Path) -> dict[str, Any] | None:
    """Return the record of a file, marked if the file's end is missing; None if it has no record.

    Raises:
        FileNotFoundError: There is nothing of that name.
        OSError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            file.seek(_BEFORE)
            length = int.from_bytes(file.read(4), "big")
            chunk = file.read(min(length, _LONGEST) + 4)
            checksum = int.from_bytes(file.read(4), "big")
            if not chunk.startswith(_START) or zlib.crc32(chunk) != checksum:
                return None
            file.seek(-len(_END), os.SEEK_END)
            is_whole = file.read() == _END
    except IsADirectoryError:
        return None
    except FileNotFoundError:
        if os.path.lexists(path):  # a link that leads nowhere
            return None
        raise
    about: dict[str, Any] = json.loads(chunk[len(_START) :])
    return about if is_whole else {**about, "cut off": True}
