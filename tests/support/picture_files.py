"""Picture files written byte by byte, so that tests know their pixels and can break any part of them."""

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from corpus import case, heif_boxes
from corpus import png as png_files
from corpus.case import upright as shown
from corpus.heif_boxes import ispe
from corpus.parts import box, full_box, jpeg_segment, png_chunk, riff_chunk, with_segments

__all__ = [
    "COLORS",
    "HEVC_SIZE",
    "XMP",
    "Pixels",
    "av1_item",
    "box",
    "exif",
    "full_box",
    "gif",
    "grid",
    "heif",
    "hevc_item",
    "ispe",
    "jpeg_segment",
    "lossless_jpeg",
    "png",
    "png_chunk",
    "quadrants",
    "rgb_tiff",
    "riff_chunk",
    "shown",
    "tiff",
    "webp",
    "with_segments",
]

Pixels = npt.NDArray[np.uint8]

# Upper left, upper right, lower left, lower right.
COLORS = ((220, 40, 40), (40, 200, 60), (50, 60, 220), (240, 230, 60))


def quadrants(width: int = 64, height: int = 64) -> Pixels:
    """Return a picture of four colors, (height, width, 3): no two of its eight orientations are the same."""
    pixels = np.empty((height, width, 3), np.uint8)
    for index, color in enumerate(COLORS):
        top, left = index // 2 * (height // 2), index % 2 * (width // 2)
        pixels[top : height // 2 if top == 0 else height, left : width // 2 if left == 0 else width] = color
    return pixels


def exif(orientation: int) -> bytes:
    """Return an EXIF block with an orientation and nothing else: a TIFF header and its directory."""
    return case.exif(orientation, order=">")


XMP = case.xmp(6)


def png(
    pixels: npt.NDArray[np.integer[Any]], *, before: bytes = b"", after: bytes = b"", palette: bytes = b""
) -> bytes:
    """Return a PNG of (height, width) or (height, width, channels) samples of 8 or 16 bits, unfiltered.

    Args:
        pixels: gray, gray and alpha, RGB or RGBA; indices where there is a palette.
        before: chunks before the pixels.
        after: chunks behind them.
        palette: three bytes a color.
    """
    samples = pixels.reshape(*pixels.shape[:2], -1)
    kinds = {1: png_files.GRAY, 2: png_files.GRAY_ALPHA, 3: png_files.RGB, 4: png_files.RGBA}
    kind = png_files.PALETTE if palette else kinds[samples.shape[2]]
    colors = png_chunk(b"PLTE", palette) if palette else b""
    return png_files.write(samples, 8 * pixels.itemsize, kind, filters=[0], before=colors + before, after=after)


def lossless_jpeg(pixels: Pixels) -> bytes:
    """Return a lossless JPEG (T.81, annex H) of (height, width) gray samples: every difference is coded in 8 bits."""
    height, width = pixels.shape
    frame = jpeg_segment(0xC3, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0")
    # Nine codes of four bits, one for each category of differences from 0 to 8.
    table = jpeg_segment(0xC4, b"\0" + bytes([0, 0, 0, 9, *[0] * 12]) + bytes(range(9)))
    scan = jpeg_segment(0xDA, b"\1\1\0\1\0\0")  # predictor 1: the sample to the left
    bits = ""
    for row in range(height):
        for column in range(width):
            left = pixels[row, column - 1] if column else pixels[row - 1, 0] if row else 128
            difference = int(pixels[row, column]) - int(left)
            size = abs(difference).bit_length()
            value = difference if difference >= 0 else difference + (1 << size) - 1
            bits += f"{size:04b}" + (f"{value:0{size}b}" if size else "")
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return b"\xff\xd8" + frame + table + scan + data + b"\xff\xd9"


def webp(
    pixels_chunk: bytes, *, size: tuple[int, int], flags: int = 0, metadata: bytes = b"", before: bytes = b""
) -> bytes:
    """Return an extended WebP around the chunk of a simple one (VP8 or VP8L)."""
    canvas = struct.pack("<I", flags) + b"".join(struct.pack("<I", side - 1)[:3] for side in size)
    chunks = riff_chunk(b"VP8X", canvas) + before + pixels_chunk + metadata
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def gif(
    indices: Pixels, palette: bytes, *, before: bytes = b"", after: bytes = b";", screen: tuple[int, int] | None = None
) -> bytes:
    """Return a GIF of (height, width) indices below 128, uncompressed: codes of 8 bits, a clear code every 100.

    Args:
        indices: of the colors.
        palette: three bytes a color, 128 colors at most.
        before: blocks before the frame.
        after: what stands behind it.
        screen: width and height of the logical screen, of which the frame takes the upper left corner.
    """
    height, width = indices.shape
    codes = (
        b"".join(b"\x80" + indices.tobytes()[start : start + 100] for start in range(0, indices.size, 100)) + b"\x81"
    )
    blocks = b"".join(bytes([len(part)]) + part for part in (codes[at : at + 255] for at in range(0, len(codes), 255)))
    header = b"GIF89a" + struct.pack("<HHBBB", *(screen or (width, height)), 0xF6, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x07" + blocks + b"\0"
    return header + palette.ljust(3 * 128, b"\0") + before + frame + after


TIFF_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4, "Q": 16}


def tiff(
    data: Sequence[bytes],
    tags: Mapping[int, tuple[str, Sequence[int] | bytes]],
    *,
    order: str = "<",
    big: bool = False,
    offsets: int = 273,
    after: bytes = b"",
) -> bytes:
    """Return a TIFF with one directory.

    Args:
        data: the strips or tiles.
        tags: by number: the type, as a letter of `struct` ("s" for text), and the values.
        order: "<" or ">".
        big: whether it is a BigTIFF.
        offsets: the tag of the offsets: 273 of strips, 324 of tiles; their lengths follow from it.
        after: what follows the directory.
    """
    word, count, head = ("Q", "Q", 16) if big else ("I", "H", 8)
    places = [head + sum(len(part) + len(part) % 2 for part in data[:index]) for index in range(len(data))]
    lengths = 279 if offsets == 273 else 325
    entries = {offsets: ("I", places), lengths: ("I", [len(part) for part in data])} | dict(tags)
    body = b"".join(part + bytes(len(part) % 2) for part in data)
    start = head + len(body)
    room = struct.calcsize(word)
    behind = start + struct.calcsize(order + count) + len(entries) * (4 + 2 * room) + room
    directory, values = struct.pack(order + count, len(entries)), b""
    for tag, (kind, content) in sorted(entries.items()):
        packed = content if isinstance(content, bytes) else struct.pack(f"{order}{len(content)}{kind}", *content)
        directory += struct.pack(order + "HH" + word, tag, TIFF_TYPES[kind], len(content))
        if len(packed) > room:
            directory += struct.pack(order + word, behind + len(values))
            values += packed + bytes(len(packed) % 2)
        else:
            directory += packed.ljust(room, b"\0")
    directory += struct.pack(order + word, 0)
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    head_end = struct.pack(order + "HHQ", 8, 0, start) if big else struct.pack(order + "I", start)
    return magic + head_end + body + directory + values + after


def rgb_tiff(
    pixels: npt.NDArray[np.generic],
    *,
    order: str = "<",
    big: bool = False,
    extra: Mapping[int, tuple[str, Sequence[int] | bytes]] = {},
) -> bytes:
    """Return a TIFF of (height, width, 3) or (height, width) samples, uncompressed, in strips of eight rows."""
    height, width, channels = (*pixels.shape, 1)[:3]
    samples = pixels.astype(pixels.dtype.newbyteorder("<" if order == "<" else ">"))
    strips = [samples[row : row + 8].tobytes() for row in range(0, height, 8)]
    tags: dict[int, tuple[str, Sequence[int] | bytes]] = {
        256: ("I", [width]),
        257: ("I", [height]),
        258: ("H", [8 * pixels.itemsize] * channels),
        259: ("H", [1]),
        262: ("H", [2 if channels == 3 else 1]),
        277: ("H", [channels]),
        278: ("I", [8]),
    }
    return tiff(strips, tags | dict(extra), order=order, big=big)


def heif(
    items: Mapping[int, tuple[bytes, bytes, Sequence[bytes]]],
    *,
    brands: Sequence[bytes] = (b"heic", b"mif1"),
    references: Sequence[tuple[bytes, int, Sequence[int]]] = (),
    between: bytes = b"",
) -> bytes:
    """Return a HEIF file, whose primary item is the first (ISO/IEC 23008-12).

    Args:
        items: by number: the type, the data, and the properties as boxes.
        brands: the major brand, and those that it is compatible with.
        references: the kind, from which item, to which items.
        between: boxes before the data.
    """
    links: dict[int, dict[bytes, tuple[int, ...]]] = {number: {} for number in items}
    for link, source, to in references:
        links[source][link] = tuple(to)
    written = [heif_boxes.Item(kind, data, tuple(boxes), links[n]) for n, (kind, data, boxes) in items.items()]
    return heif_boxes.write(*written, brands=brands, between=between)


# Encoded once with x265: the parameter sets and the slice, each behind its length, by zlib and base 85.
_HEVC = {
    # `quadrants()`, lossy.
    "quadrants": (
        b"c-muNU=Vj;<YD~(pM`^gftg|c3J}R4w~NVvfq_BOiIEXie1SqE>$F#%20M2M2pA}U#6SeIB2Y1#3**7UMj;@pUxRUt@PkN}{m<Y3"
        b"|G(r!+Ry&KZ?6b{uCZH`v&K8>U$*S2+rRc{UF(0p&(2|{)q}hH^f!Lo_<NOc+iTsc9lxArO}qQze*6lb{<rsKgW`|Ye%uhTrRYP;"
        b"*5}dwH=n%oKRe4`B}lwSiRr8L?Ff7680!bd-xfW8(s)={-~3aeYw)`(lB?1p+h6)WQf)Lj`+V}{2LM`cV6p"
    ),
    # Gray pictures of 3072 x 2048 pixels, by their chroma subsampling and the bits of a sample.
    "4:2:0, 8 bits": (
        b"c-muNU=Vj;<YD~(pM`^gftg|c3J}RKZ5NXR0|SGm6C)$4_yWcT1tx~byd{&lXET9>z=V+iP%*m;<H5q_B@GM=tkX0Y*XVHY&J(+t"
        b"T6#4U9XQN?_{(^90@y$z(d!0MR0ENm04b_jc}P&r97Td+HwWSsGxig&miZUaYT2$3t(4;g(Mma25UrGJ2hmEoGl*8oqd~M%UgF)#"
        b"=RvemehcE2ejr+@paJnpClIYvsDNmt!U04p6(QcOBE*M)=mnyciV^QtaT1gg?*NGaS}2t)poLPY008puG?)"
    ),
    "4:4:4, 10 bits": (
        b"c-muNU=Vj;<YD~(pM`^gftg{B28d*swu{Mufq_BGiIEXid;)_33xfmarn{bM;$|!$F))#$094KH!g#Q-c}W8U1M4&m#x*(|yz|6v"
        b"rj}j}MF$S^AO13)od7nGNc6ga6xBc^CqRm7Rvr>mGe?o2*v)}>#f<&Lt7ZO0v|6?+L@VVuL9|lN6+|oL+Cj8Z?hK-p@@NpPl$Ut7"
        b"@_7)gl;47Qr5}h^Dri8w(g{Q>6)GTFsc-<%N=1lws|fKSAbNplrDDXpRh$H+#5+JDfEG$63uvKKDgXd!J2Of"
    ),
}
HEVC_SIZE = (3072, 2048)


def hevc_item(
    *properties: bytes, size: tuple[int, int] = (64, 64), content: str = "quadrants"
) -> tuple[bytes, bytes, Sequence[bytes]]:
    """Return an item of `heif`, by default with about the pixels of `quadrants()`; `size` is what it declares."""
    units, start = zlib.decompress(base64.b85decode(_HEVC[content])), 0
    arrays = sets = b""
    for kind in (32, 33, 34):
        end = start + 4 + int.from_bytes(units[start : start + 4], "big")
        unit, start = units[start + 4 : end], end
        arrays += bytes([0x80 | kind]) + struct.pack(">HH", 1, len(unit)) + unit
        sets = unit if kind == 33 else sets
    head = b"\x01" + sets[3:15] + struct.pack(">HBBBBHB", 0xF000, 0xFC, 0xFD, 0xF8, 0xF8, 0, 0x0F)
    return b"hvc1", units[start:], [box(b"hvcC", head, b"\x03", arrays), ispe(*size), *properties]


def av1_item(avif: bytes, *properties: bytes, size: tuple[int, int]) -> tuple[bytes, bytes, Sequence[bytes]]:
    """Return the picture of a simple AVIF file as an item of `heif`; `size` is what it declares."""
    config, data = avif.index(b"av1C") - 4, avif.index(b"mdat") + 4
    length = int.from_bytes(avif[config : config + 4], "big")
    depth = full_box(b"pixi", 0, 0, b"\x03\x08\x08\x08")
    return b"av01", avif[data:], [avif[config : config + length], ispe(*size), depth, *properties]


def grid(rows: int, columns: int, width: int, height: int) -> tuple[bytes, bytes, Sequence[bytes]]:
    """Return an item of `heif` that puts others together, row by row."""
    return b"grid", struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height), [ispe(width, height)]
