"""The number of pixels that a decoder may allocate for a file.

An AVIF or HEIC file declares sizes in several places, and its decoder may use the largest, so a few kilobytes can take
gigabytes. Section 5.5 of the AV1 specification describes the sequence header.
"""

import struct
from collections.abc import Sequence

from image_boxes import Item

# libheif accepts pictures that exceed the declared size by at most this, in each direction.
_HEVC_MARGIN = 64
_MAX_AV1_UNITS = 20_000
_AV1_SEQUENCE_HEADER = 1
_LONGEST_LEB128 = 8  # bytes, by section 4.10.5 of the AV1 specification
_LARGEST_LEVEL_WITHOUT_TIER = 7


def webp_canvas(data: bytes) -> tuple[int, int]:
    """Return the width and height of the canvas of a WebP from its first chunk (RFC 9649)."""
    kind, numbers = data[12:16], int.from_bytes(data[:32], "little")
    if kind == b"VP8X":  # from byte 24 on
        return (numbers >> 192 & 0xFFFFFF) + 1, (numbers >> 216 & 0xFFFFFF) + 1
    if kind == b"VP8L":  # from byte 21 on
        return (numbers >> 168 & 0x3FFF) + 1, (numbers >> 182 & 0x3FFF) + 1
    return numbers >> 208 & 0x3FFF, numbers >> 224 & 0x3FFF


def coded_pixels(tiles: Sequence[Item]) -> int:
    """Return the largest number of pixels that may be decoded for the tiles of an AVIF or HEIC picture.

    Raises:
        ValueError: A tile is in too many parts.
    """
    by_content = {id(tile): _pixels(tile) for tile in tiles}  # a grid may repeat a tile
    return sum(by_content[id(tile)] for tile in tiles)


def _pixels(tile: Item) -> int:
    width, height = struct.unpack_from(">II", tile.properties.get(b"ispe", b"").ljust(12, b"\0"), 4)
    if tile.kind == b"hvc1":
        return (width + _HEVC_MARGIN) * (height + _HEVC_MARGIN)
    return max(width * height, _av1_pixels(tile.data))


def _av1_pixels(units: bytes) -> int:
    """Return the largest number of pixels of a frame, from the sequence headers among the units (OBUs) of AV1."""
    pixels = position = 0
    for _ in range(_MAX_AV1_UNITS):
        if position >= len(units):
            return pixels
        header = units[position]
        position += 2 if header & 4 else 1
        size = len(units) - position
        if header & 2:
            size = 0
            for index, byte in enumerate(units[position : position + _LONGEST_LEB128]):
                size |= (byte & 0x7F) << 7 * index
                position += 1
                if byte < 0x80:  # noqa: PLR2004 - LEB128: the last byte
                    break
        if header >> 3 & 0xF == _AV1_SEQUENCE_HEADER:
            pixels = max(pixels, _frame_pixels(_Bits(units[position : position + size])))
        position += size
    raise ValueError(f"the AVIF file has more than {_MAX_AV1_UNITS} units; save it again")


class _Bits:
    """A reader of consecutive unsigned numbers with given numbers of bits; zeros after the end."""

    def __init__(self, data: bytes) -> None:
        self._left = 8 * min(len(data), 4096)
        self._value = int.from_bytes(data[:4096], "big")

    def take(self, bits: int) -> int:
        self._left -= bits
        shifted = self._value >> self._left if self._left >= 0 else self._value << -self._left
        return shifted & ((1 << bits) - 1)


def _frame_pixels(bits: _Bits) -> int:
    """Return the largest number of pixels of a frame by a sequence header (5.5.1)."""
    bits.take(4)
    reduced = bits.take(1)
    if reduced:
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    width, height = bits.take(width_bits) + 1, bits.take(height_bits) + 1
    # The frames of a sequence, unlike those of a still picture, may each have another size. Half of the largest size
    # that these bits can hold is counted, so that honest files stay below the limit.
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
