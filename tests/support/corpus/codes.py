"""Packing that several formats share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from corpus.case import Samples


def packed_rows(samples: Samples, depth: int) -> list[bytes]:
    """Return (H, W, channels) samples of up to 8 bits as rows of whole bytes, the first sample in the highest bits."""
    bits = (samples.reshape(len(samples), -1, 1) >> np.arange(depth)[::-1]) & 1
    return [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in bits]


def lzw(data: bytes, *, bits: int = 8, order: Literal["lsb", "msb"], early: int = 0) -> bytes:
    """Return data as LZW codes.

    Args:
        data: Symbols below 2**bits.
        bits: Of a symbol.
        order: "lsb" of GIF, "msb" of TIFF.
        early: 1 in TIFF, where a code grows one entry before it must.
    """
    clear, end = 1 << bits, (1 << bits) + 1
    codes: list[tuple[int, int]] = []
    table: dict[bytes, int] = {}
    width = bits + 1

    def start_over() -> None:
        nonlocal width
        codes.append((clear, width))
        table.clear()
        table.update({bytes([symbol]): symbol for symbol in range(clear)})
        width = bits + 1

    start_over()
    prefix = b""
    for symbol in data:
        longer = prefix + bytes([symbol])
        if longer in table:
            prefix = longer
            continue
        codes.append((table[prefix], width))
        table[longer] = len(table) + 2
        if len(table) + 2 + early > 1 << width:
            width += 1
        if width > 12:
            width = 12
            start_over()
        prefix = bytes([symbol])
    if prefix:
        codes.append((table[prefix], width))
        if len(table) + 3 + early > 1 << width:
            width = min(width + 1, 12)
    codes.append((end, width))
    digits = (format(code, f"0{length}b") for code, length in codes)
    if order == "msb":
        text = "".join(digits)
        text += "0" * (-len(text) % 8)
        return bytes(int(text[at : at + 8], 2) for at in range(0, len(text), 8))
    text = "".join(number[::-1] for number in digits)
    text += "0" * (-len(text) % 8)
    return bytes(int(text[at : at + 8][::-1], 2) for at in range(0, len(text), 8))


def pack_bits(row: bytes) -> bytes:
    """Return a row in the PackBits code of TIFF and the Macintosh: runs of equal bytes, and the rest as it is."""
    packed, at = b"", 0
    while at < len(row):
        run = 1
        while run < 128 and row[at : at + run + 1] == row[at : at + 1] * (run + 1):
            run += 1
        if run > 1:
            packed += bytes([257 - run]) + row[at : at + 1]
            at += run
            continue
        literal = 1
        while literal < 128 and at + literal < len(row) and row[at + literal] != row[at + literal - 1]:
            literal += 1
        packed += bytes([literal - 1]) + row[at : at + literal]
        at += literal
    return packed
