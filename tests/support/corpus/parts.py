"""The parts that files of several formats are made of."""

from __future__ import annotations

import struct
import zlib


def png_chunk(kind: bytes, data: bytes = b"", *, sound: bool = True) -> bytes:
    """Return a chunk of a PNG, whose checksum is wrong unless it is sound."""
    return struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", zlib.crc32(kind + data) ^ (not sound))


def jpeg_segment(marker: int, body: bytes = b"") -> bytes:
    """Return a segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    """Return a JPEG with segments behind its start of image."""
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def riff_chunk(kind: bytes, data: bytes) -> bytes:
    """Return a chunk of a WebP."""
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def box(kind: bytes, *parts: bytes) -> bytes:
    """Return a box of ISO/IEC 14496-12."""
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def full_box(kind: bytes, version: int, flags: int, *parts: bytes) -> bytes:
    """Return a box with a version and flags."""
    return box(kind, struct.pack(">I", version << 24 | flags), *parts)
