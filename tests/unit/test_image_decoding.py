"""Files whose pixels are known, as the tests write them: what viewers show is taken, the rest refused with a reason."""

import io
import struct
import zlib
from collections.abc import Callable

import image_decoding
import numpy as np
import picture_files as files
import pytest
from image_decoding import InvalidImageError
from picture_files import Pixels, png_chunk
from PIL import Image

pytestmark = pytest.mark.unit

RGB = files.quadrants()
GRAY = RGB[..., 0]
SIXTEEN = (RGB.astype(np.uint16) << 8) | 0x9A
INDICES = np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2), 32, axis=0), 32, axis=1)
PALETTE = bytes(value for color in files.COLORS for value in color)
AVIF_BRANDS = (b"avif", b"mif1", b"miaf")


def decoded(data: bytes, *, max_pixels: int = 1_000_000) -> Pixels:
    image = image_decoding.decode(data, max_pixels=max_pixels)
    assert image.mode == "RGB"
    return np.asarray(image)


def same(data: bytes, expected: Pixels, *, within: int = 0) -> None:
    pixels = decoded(data)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= within


def as_rgb(gray: Pixels) -> Pixels:
    return np.repeat(gray[..., np.newaxis], 3, axis=2)


def encoded(kind: str, pixels: Pixels = RGB, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def refusal(data: bytes, *, max_pixels: int = 1_000_000) -> str:
    with pytest.raises(InvalidImageError) as caught:
        image_decoding.decode(data, max_pixels=max_pixels)
    message = str(caught.value)
    assert ";" in message, f"no remedy: {message}"
    assert not message.rstrip().endswith((":", ";"))
    assert "\n" not in message
    return message


# PNG


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_every_kind_keeps_the_high_byte_and_drops_alpha(channels: int, dtype: type) -> None:
    alpha = np.arange(64 * 64).reshape(64, 64, 1) % 256
    color = RGB if channels >= 3 else GRAY[..., np.newaxis]
    samples = np.concatenate([color, alpha], axis=2) if channels in {2, 4} else color
    data = samples.astype(np.uint8) if dtype is np.uint8 else (samples.astype(np.uint16) << 8) | 0x9A
    same(files.png(data), RGB if channels >= 3 else as_rgb(GRAY))


CLIPPED = struct.pack(">II", 0, 1) + bytes(17)  # shorter than the control of a frame
BOMB = zlib.compress(bytes(2 << 20))


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "chunk",
    [
        png_chunk(b"tEXt", b"Comment\0text", sound=False),
        png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"profile"), sound=False),
        png_chunk(b"sBIT", b"\x08\x08\x08", sound=False),
        png_chunk(b"prVt", b"private", sound=False),
        png_chunk(b"tRNS", b"\0\1\0\2\0\3", sound=False),
        png_chunk(b"tIME", b"\x07\xea\x0b\x1c\0\0\0", sound=False),
        png_chunk(b"gAMA", b"\0"),
        png_chunk(b"cHRM", bytes(31)),
        png_chunk(b"sRGB", b""),
        png_chunk(b"pHYs", bytes(8)),
        png_chunk(b"tRNS", b"\0"),
        png_chunk(b"eXIf", b"garbled"),
        png_chunk(b"eXIf", files.exif(6), sound=False),
        png_chunk(b"zTXt", b"Comment\0\0" + BOMB),
        png_chunk(b"zTXt", b"Comment\0\x07" + BOMB),
        png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + BOMB),
        png_chunk(b"iCCP", b"icc\0\0" + BOMB),
        png_chunk(b"tEXt", b"Comment\0" + bytes(2 << 20)),
        png_chunk(b"acTL", b"\0\0\0"),
        png_chunk(b"acTL", struct.pack(">II", 2, 0)) + png_chunk(b"fcTL", CLIPPED),
        png_chunk(b"fdAT", b"\0"),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + files.XMP),
    ],
    ids=lambda chunk: chunk[4:8].decode(),
)
def test_png_ancillary_chunks_cost_and_turn_nothing(chunk: bytes, *, after: bool) -> None:
    same(files.png(RGB, **{"after" if after else "before": chunk}), RGB)


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE", b"IDAT", b"IEND"])
def test_png_critical_chunks_stay_strict(kind: bytes) -> None:
    data = bytearray(files.png(INDICES, palette=PALETTE))
    at = data.index(kind)
    length = int.from_bytes(data[at - 4 : at], "big")
    data[at + 4 + length] ^= 1
    assert f"chunk {kind.decode()} has a wrong checksum" in refusal(bytes(data))


def test_an_unknown_critical_chunk_is_refused() -> None:
    assert "critical chunk CgBI" in refusal(files.png(RGB, before=png_chunk(b"CgBI", bytes(4))))


def test_a_png_cut_in_its_metadata_is_taken_and_in_its_pixels_refused() -> None:
    data = files.png(RGB, after=png_chunk(b"tEXt", b"Comment\0" + b"text" * 100))
    same(data[:-50], RGB)
    assert "the PNG image is broken or truncated: " in refusal(data[: data.index(b"IDAT") + 30])


def test_the_first_frame_of_an_animated_png_is_taken() -> None:
    same(encoded("PNG", save_all=True, append_images=[Image.new("RGB", (64, 64))] * 3), RGB)


# JPEG: the pixels of the file without what is added are the reference.

JPEG = encoded("JPEG", quality=95, subsampling=0)
MULTIPICTURE = b"MPF\0II*\0\x08\0\0\0\xff\xff" + bytes(range(200))


@pytest.mark.parametrize(
    "segments",
    [
        [files.jpeg_segment(0xFE, b"\xff\xda" * 30_000)],
        [files.jpeg_segment(0xE3, bytes([0xFF, 0xDA, 0, 2]) * 16_000)],
        [files.jpeg_segment(0xE2, MULTIPICTURE)],
        [files.jpeg_segment(0xE2, b"MPF\0")],
        [files.jpeg_segment(0xE2, b"ICC_PROFILE\0")],
        [files.jpeg_segment(0xE2, b"ICC_PROFILE\0\x05\x02garbled")],
        [files.jpeg_segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04")],
        [files.jpeg_segment(0xE1, b"Exif\0\0")],
        [files.jpeg_segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff\x12\x01")],
        [files.jpeg_segment(0xE0, b"JFIF")],
        [files.jpeg_segment(0xE0, b"JFIF\0\1\1\1\0\0\0\0\0\0")],
        [files.jpeg_segment(0xE0, b"JFXX\0\x10\xff\xd8\xff\xda")],
        [files.jpeg_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + files.XMP)],
        [files.jpeg_segment(0xE1, b"http://ns.adobe.com/xmp/extension/\0" + b"x" * 60_000)] * 60,
        [b"\xff" * 100],
        [files.jpeg_segment(0xEC, b"Ducky") + b"junk between two segments"],
    ],
    ids=lambda segments: segments[0][1:14].hex(),
)
def test_jpeg_metadata_costs_and_turns_nothing(segments: list[bytes]) -> None:
    same(files.with_segments(JPEG, *segments), decoded(JPEG))


@pytest.mark.parametrize(
    "behind",
    [b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 5000, JPEG * 3, b"SEFH" + bytes(100), b"\xff\xda" * 500, b"\xff" * 1000],
    ids=["video", "pictures", "trailer", "scans", "fill"],
)
def test_what_follows_a_jpeg_costs_nothing(behind: bytes) -> None:
    same(JPEG + behind, decoded(JPEG))


def test_a_jpeg_of_several_pictures_gives_the_first() -> None:
    data = encoded("MPO", quality=95, subsampling=0, save_all=True, append_images=[Image.new("RGB", (64, 64))])
    same(data, RGB, within=12)


# T.81: the arithmetic coder instead of Huffman's. 16 x 16 pixels of `quadrants`, written once by libjpeg.
ARITHMETIC = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a070706080c0a0c0c0b"
    "0a0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffdb00430103040405040509050509140d0b0d14141414"
    "14141414141414141414141414141414141414141414141414141414141414141414141414141414141414141414ffc90011080010001003"
    "011100021101031101ffcc000a0010100501101105ffda000c03010002110311003f00ff00b924dafc598af8af96b5aa970865144295db48"
    "edf9fac5ffd9"
)


def test_an_arithmetic_coded_jpeg_is_taken() -> None:
    same(ARITHMETIC, files.quadrants(16, 16), within=8)


def test_a_lossless_jpeg_is_taken() -> None:
    same(files.lossless_jpeg(GRAY), as_rgb(GRAY))


def _with_frame(marker: int, bits: int, channels: int) -> bytes:
    frame = struct.pack(">BHHB", bits, 64, 64, channels) + b"".join(bytes([n, 0x11, 0]) for n in range(channels))
    table = files.jpeg_segment(0xDB, b"\0" + bytes(range(1, 65)))
    scan = files.jpeg_segment(0xDA, bytes([channels]) + b"".join(bytes([n, 0]) for n in range(channels)) + b"\0\x3f\0")
    return b"\xff\xd8" + table + files.jpeg_segment(marker, frame) + scan + bytes(100) + b"\xff\xd9"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (_with_frame(0xC1, 12, 3), "a JPEG picture with 12 bits per sample"),
        (_with_frame(0xC3, 12, 1), "a lossless JPEG picture"),
        (_with_frame(0xC5, 8, 3), "a hierarchical JPEG picture"),
        (_with_frame(0xC0, 8, 2), "a JPEG picture with a number of channels other than 1, 3 and 4"),
        (_with_frame(0xF7, 8, 3), "a JPEG-LS picture"),
    ],
    ids=["12-bit", "lossless", "hierarchical", "channels", "jpeg-ls"],
)
def test_a_jpeg_that_no_browser_shows_is_named(data: bytes, what: str) -> None:
    assert what in refusal(files.with_segments(data, files.jpeg_segment(0xE1, bytes(60_000))))


# Orientation


def _in_png(exif: bytes) -> bytes:
    return files.png(RGB, before=png_chunk(b"eXIf", exif))


def _in_png_behind(exif: bytes) -> bytes:
    return files.png(RGB, after=png_chunk(b"eXIf", b"Exif\0\0" + exif))


def _in_jpeg(exif: bytes) -> bytes:
    return files.with_segments(JPEG, files.jpeg_segment(0xE1, b"Exif\0\0" + exif))


def _in_webp(exif: bytes) -> bytes:
    simple = encoded("WEBP", lossless=True)
    return files.webp(simple[12:], size=(64, 64), flags=0x08, metadata=files.riff_chunk(b"EXIF", exif))


def _in_tiff(exif: bytes) -> bytes:
    return files.rgb_tiff(RGB, extra={274: ("H", [int.from_bytes(exif[18:20], "big")])})


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("place", [_in_png, _in_png_behind, _in_jpeg, _in_webp, _in_tiff])
def test_the_orientation_of_exif_is_applied(place: Callable[[bytes], bytes], orientation: int) -> None:
    same(place(files.exif(orientation)), files.shown(RGB, orientation), within=12)


def test_an_exif_block_that_is_garbled_behind_the_orientation_turns_the_picture() -> None:
    exif = bytearray(files.exif(6))
    exif[8:10] = b"\xff\xff"  # the number of entries
    same(_in_png(bytes(exif)), files.shown(RGB, 6))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_invalid_orientation_is_ignored(orientation: int) -> None:
    same(_in_png(files.exif(orientation)), RGB)


def test_xmp_turns_no_webp_and_no_tiff() -> None:
    simple = encoded("WEBP", lossless=True)
    same(files.webp(simple[12:], size=(64, 64), flags=0x04, metadata=files.riff_chunk(b"XMP ", files.XMP)), RGB)
    same(files.rgb_tiff(RGB, extra={700: ("B", list(files.XMP))}), RGB)


@pytest.mark.parametrize("mirror", [None, 0, 1])
@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("codec", ["AVIF", "HEIC"])
def test_avif_and_heic_are_turned_by_their_boxes_alone(codec: str, turns: int, mirror: int | None) -> None:
    """ISO/IEC 23008-12, 6.5.10 and 6.5.12: `irot` is quarter turns to the left, `imir` 0 swaps top and bottom."""
    properties = [files.box(b"irot", bytes([turns]))]
    expected = np.rot90(RGB, turns)
    if mirror is not None:
        properties.append(files.box(b"imir", bytes([mirror])))
        expected = expected[::-1] if mirror == 0 else expected[:, ::-1]
    metadata = {2: (b"Exif", bytes(4) + files.exif(3), ()), 3: (b"mime", files.XMP, ())}
    about = [(b"cdsc", 2, [1]), (b"cdsc", 3, [1])]
    if codec == "HEIC":
        data = files.heif({1: files.hevc_item(*properties)} | metadata, references=about)
    else:
        item = files.av1_item(encoded("AVIF", quality=100, subsampling="4:4:4"), *properties, size=(64, 64))
        data = files.heif({1: item} | metadata, brands=AVIF_BRANDS, references=about)
    same(data, expected, within=60)


# WebP


@pytest.mark.parametrize(
    "metadata",
    [
        files.riff_chunk(b"EXIF", b"garbled"),
        files.riff_chunk(b"ICCP", b"garbled"),
        b"EXIF\xff\xff\xff\x7fthe length is wrong",
        files.riff_chunk(b"JUNK", b"odd") * 3,
        b"garbage",
    ],
    ids=["exif", "icc", "length", "unknown", "garbage"],
)
def test_webp_metadata_costs_nothing(metadata: bytes) -> None:
    simple = encoded("WEBP", lossless=True)
    same(files.webp(simple[12:], size=(64, 64), flags=0x2C, metadata=metadata), RGB)


def test_a_webp_without_its_padding_is_taken() -> None:
    odd = next(data for rows in range(1, 65) if (data := encoded("WEBP", RGB[:rows], lossless=True))[16] % 2)
    same(odd[:-1], decoded(odd))


def test_a_webp_cut_in_its_pixels_is_refused() -> None:
    simple = encoded("WEBP", lossless=True)
    assert "a WebP picture that is broken or truncated" in refusal(simple[:-10])


def test_the_first_frame_of_an_animated_webp_is_taken() -> None:
    frames = [Image.new("RGB", (64, 64), (index, 0, 0)) for index in range(20)]
    same(encoded("WEBP", lossless=True, save_all=True, append_images=frames), RGB)


def test_the_canvas_of_a_webp_is_not_made_before_its_size_is_checked() -> None:
    simple = encoded("WEBP", lossless=True)
    data = files.webp(simple[12:], size=(16_384, 16_384))
    assert "16384 x 16384 = 268435456 pixels" in refusal(data)


# GIF

FRAME = files.gif(INDICES, PALETTE)


@pytest.mark.parametrize(
    "before",
    [
        b"",
        b"!\xfe\x03abc\0",
        b"!\xff\x0bXMP DataXMP" + files.XMP + bytes([1, *range(255, -1, -1), 0]),
        b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0",
        b"!\xff\x02??\0",
        b"!\xf9\x04\x09\0\0\x01\0",
        b"!\xf9\x04\x0c\0\0\0\0",
        b"!\xf9\0",
        b"\0\0\0",
    ],
    ids=["none", "comment", "xmp", "loop", "short", "transparent", "disposed", "control", "garbage"],
)
def test_gif_extensions_cost_nothing(before: bytes) -> None:
    same(files.gif(INDICES, PALETTE, before=before), as_shown_by_palette(INDICES))


def as_shown_by_palette(indices: Pixels) -> Pixels:
    return np.array(files.COLORS, np.uint8)[indices]


@pytest.mark.parametrize(
    "after", [b"", b";garbage", b"!\xfe\xff", FRAME[-400:] + b";"], ids=["none", "garbage", "broken", "frame"]
)
def test_what_follows_the_first_frame_of_a_gif_costs_nothing(after: bytes) -> None:
    same(files.gif(INDICES, PALETTE, after=after), as_shown_by_palette(INDICES))


def test_a_gif_cut_in_its_pixels_is_refused() -> None:
    assert "the GIF image is broken or truncated" in refusal(FRAME[: len(FRAME) // 2])


def test_a_frame_in_a_large_screen_counts_as_the_screen() -> None:
    data = files.gif(INDICES, PALETTE, screen=(100, 80))
    assert decoded(data).shape == (80, 100, 3)
    assert "100 x 80 = 8000 pixels" in refusal(data, max_pixels=7999)


def test_the_screen_of_a_gif_is_not_filled_before_its_size_is_checked() -> None:
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65_535, 65_535, 0) + b"\x07\0;"
    for screen in (1, 65_535):
        header = b"GIF89a" + struct.pack("<HHBBB", screen, screen, 0, 0, 0)
        assert "65535 x 65535 = 4294836225" in refusal(header + b"!\xf9\x04\x08\0\0\0\0" + frame)


# TIFF

STRIPS = {256: ("I", [64]), 257: ("I", [64]), 258: ("H", [8, 8, 8]), 262: ("H", [2]), 277: ("H", [3])}


@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
@pytest.mark.parametrize(
    ("samples", "expected"),
    [(RGB, RGB), (SIXTEEN, RGB), (GRAY, as_rgb(GRAY)), (SIXTEEN[..., 0], as_rgb(GRAY))],
    ids=["RGB", "RGB-16", "gray", "gray-16"],
)
def test_tiff_of_8_and_16_bits(samples: Pixels, expected: Pixels, order: str, *, big: bool) -> None:
    same(files.rgb_tiff(samples, order=order, big=big), expected)


@pytest.mark.parametrize("samples", [GRAY, SIXTEEN[..., 0]], ids=["8", "16"])
def test_tiff_whose_white_is_zero(samples: Pixels) -> None:
    same(files.rgb_tiff(samples, extra={262: ("H", [0])}), ~as_rgb(GRAY))


@pytest.mark.parametrize("scale", [257, 1], ids=["16-bit", "8-bit"])
def test_tiff_with_a_palette(scale: int) -> None:
    """Of 8 bits a color as well, as old programs write it, and libtiff and viewers take it."""
    colors = [files.COLORS[index][channel] if index < 4 else 0 for channel in range(3) for index in range(256)]
    palette = {262: ("H", [3]), 320: ("H", [color * scale for color in colors])}
    same(files.rgb_tiff(INDICES, extra=palette), as_shown_by_palette(INDICES))


@pytest.mark.parametrize("method", [8, 32946])
def test_tiff_that_is_compressed(method: int) -> None:
    strips = [zlib.compress(RGB[row : row + 8].tobytes()) for row in range(0, 64, 8)]
    same(files.tiff(strips, STRIPS | {259: ("H", [method]), 278: ("I", [8])}), RGB)


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "zstd", "lzma", "jpeg"])
def test_tiff_as_programs_write_it(compression: str) -> None:
    same(encoded("TIFF", compression=compression), RGB, within=20 if compression == "jpeg" else 0)


def test_tiff_of_fax_machines() -> None:
    bits = np.where(INDICES > 1, 255, 0).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(bits).convert("1").save(buffer, "TIFF", compression="group4")
    same(buffer.getvalue(), as_rgb(bits))


def test_tiff_in_tiles_and_in_planes() -> None:
    tiles = [RGB[row : row + 32, column : column + 32].tobytes() for row in (0, 32) for column in (0, 32)]
    same(files.tiff(tiles, STRIPS | {322: ("I", [32]), 323: ("I", [32])}, offsets=324), RGB)
    planes = [RGB[..., channel].tobytes() for channel in range(3)]
    same(files.tiff(planes, STRIPS | {278: ("I", [64]), 284: ("H", [2])}), RGB)


def test_the_first_page_of_a_tiff_is_taken() -> None:
    same(encoded("TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))]), RGB)


@pytest.mark.parametrize(
    "extra",
    [
        {270: ("s", b"not text \xff\xfe"), 306: ("s", b"x" * 50), 65_000: ("s", b"z" * 1000)},
        {282: ("I", [0]), 283: ("I", [0]), 296: ("H", [77])},
        {34_665: ("I", [0xFFFFFFF0]), 330: ("I", [5, 6, 7]), 34_853: ("I", [1])},
        {34_675: ("B", list(b"no profile")), 33_432: ("s", b""), 37_724: ("B", list(b"junk"))},
    ],
    ids=["text", "resolution", "directories", "blobs"],
)
def test_tiff_tags_that_no_pixel_needs_cost_nothing(extra: dict[int, tuple[str, list[int] | bytes]]) -> None:
    same(files.rgb_tiff(RGB, extra=extra) + b"garbage", RGB)


@pytest.mark.parametrize(
    "broken", [struct.pack("<HII", 99, 9, 8), struct.pack("<HII", 2, 0x7FFFFFFF, 8)], ids=["type", "count"]
)
def test_a_tiff_tag_with_an_impossible_value_costs_nothing(broken: bytes) -> None:
    data = bytearray(files.rgb_tiff(RGB, extra={305: ("s", b"software")}))
    at = data.index(struct.pack("<HH", 305, 2))
    data[at + 2 : at + 12] = broken
    same(bytes(data), RGB)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (files.rgb_tiff(GRAY.astype(np.float32), extra={339: ("H", [3])}), "samples of 32 bits, or signed"),
        (files.rgb_tiff(GRAY.astype(np.uint32)), "samples of 32 bits, or signed"),
        (files.rgb_tiff(GRAY.astype(np.uint16), extra={339: ("H", [2])}), "samples of 16 bits, or signed"),
        (files.rgb_tiff(GRAY, extra={258: ("H", [12])}), "samples of 12 bits, or signed"),
        (files.rgb_tiff(RGB, extra={262: ("H", [8])}), "L*a*b*"),
        (files.rgb_tiff(RGB, extra={259: ("H", [6])}), "compressed by method 6"),
        (files.rgb_tiff(RGB, extra={259: ("H", [34712])}), "compressed by method 34712"),
        (files.rgb_tiff(RGB, extra={50706: ("B", [1, 4, 0, 0])}), "a RAW photo"),
        (files.rgb_tiff(RGB, extra={254: ("I", [1]), 271: ("s", b"NIKON\0")}), "a RAW photo"),
        (files.rgb_tiff(GRAY, extra={262: ("H", [32803])}), "a RAW photo"),
        (files.rgb_tiff(RGB, order=">", big=True), "a BigTIFF picture in big-endian order"),
        (files.rgb_tiff(RGB)[:2000], "a TIFF picture that is broken or truncated"),
        (encoded("TIFF", compression="tiff_lzw")[:-800], "a TIFF picture that is broken or truncated"),
    ],
)
def test_tiff_that_is_refused_is_named(data: bytes, message: str) -> None:
    assert message in refusal(data)


@pytest.mark.parametrize("method", [1, 8])
def test_a_tiff_cut_in_its_pixels_is_refused(method: int) -> None:
    strip = np.random.default_rng(0).bytes(RGB.size)
    strip = strip if method == 1 else zlib.compress(strip)
    tags = STRIPS | {259: ("H", [method]), 273: ("I", [400]), 279: ("I", [len(strip)])}
    data = files.tiff([], tags).ljust(400, b"\0") + strip  # the directory in front, as many programs write it
    assert decoded(data).shape == RGB.shape
    assert "the TIFF image is broken or truncated: " in refusal(data[:-60])


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({322: ("I", [1 << 16]), 323: ("I", [1 << 16])}, "tiles of 4294967296 pixels"),
        ({273: ("I", [8] * 100_001), 279: ("I", [9] * 100_001)}, "100001 values in its tag 273"),
        ({259: ("H", [8]), 273: ("I", [8] * 64), 279: ("I", [4000] * 64), 278: ("I", [1])}, "declares 256000 bytes"),
    ],
    ids=["tile", "strips", "overlap"],
)
def test_a_small_tiff_costs_no_more_than_its_pixels(tags: dict[int, tuple[str, list[int]]], message: str) -> None:
    assert message in refusal(files.tiff([bytes(4000)], STRIPS | tags))


# AVIF and HEIC


@pytest.mark.parametrize("kind", [b"Exif", b"mime", b"E\x7f\xff\xff"], ids=["exif", "xmp", "unknown"])
def test_garbled_metadata_costs_no_avif_and_no_heic(kind: bytes) -> None:
    """The last kind ends a process that lets pi-heif 1.4.0 read it."""
    garbled, about = {2: (kind, b"\xff" * 30, ())}, [(b"cdsc", 2, [1])]
    same(files.heif({1: files.hevc_item()} | garbled, references=about), RGB, within=60)
    item = files.av1_item(encoded("AVIF", quality=100, subsampling="4:4:4"), size=(64, 64))
    same(files.heif({1: item} | garbled, brands=AVIF_BRANDS, references=about), RGB, within=8)


@pytest.mark.parametrize(
    "brands",
    [(b"mif1", b"heic"), (b"heic", b"mif1"), (b"hevc", b"msf1", b"heic")],
    ids=lambda brands: brands[0].decode(),
)
def test_heic_by_any_brand(brands: tuple[bytes, ...]) -> None:
    same(files.heif({1: files.hevc_item()}, brands=brands), RGB, within=60)


@pytest.mark.parametrize("brands", [(b"mif1", b"avif", b"miaf"), AVIF_BRANDS], ids=lambda brands: brands[0].decode())
def test_avif_by_any_brand(brands: tuple[bytes, ...]) -> None:
    item = files.av1_item(encoded("AVIF", quality=100, subsampling="4:4:4"), size=(64, 64))
    same(files.heif({1: item}, brands=brands), RGB, within=8)


def test_the_first_frame_of_an_animated_avif_is_taken() -> None:
    frames = [Image.new("RGB", (64, 64))] * 3
    same(encoded("AVIF", quality=100, subsampling="4:4:4", save_all=True, append_images=frames), RGB, within=8)


def test_the_tiles_of_a_grid_are_put_together() -> None:
    tiles = {number: files.hevc_item() for number in range(2, 8)}
    data = files.heif({1: files.grid(2, 3, 170, 120)} | tiles, references=[(b"dimg", 1, list(tiles))])
    same(data, np.tile(RGB, (2, 3, 1))[:120, :170], within=60)


def test_what_follows_an_avif_or_heic_costs_nothing() -> None:
    for data in (files.heif({1: files.hevc_item()}), encoded("AVIF")):
        same(data + b"\x01\x02\x03 garbage, which is no box", decoded(data))
        assert "broken or truncated" in refusal(data[:-30])


def test_avif_that_declares_less_than_it_holds_is_refused() -> None:
    large = encoded("AVIF", np.zeros((2048, 2048, 3), np.uint8), speed=10, quality=1)
    item = files.av1_item(large, size=(64, 64))
    assert "has 4194304 pixels in all its tiles" in refusal(files.heif({1: item}, brands=AVIF_BRANDS))


def test_tiles_count_by_what_they_declare() -> None:
    """A canvas of 64 x 64 pixels does not bound the pictures that it shows a corner of."""
    canvas = {1: files.grid(1, 1, 64, 64), 2: files.hevc_item(size=(2048, 2048))}
    assert "has 4460544 pixels in all its tiles" in refusal(files.heif(canvas, references=[(b"dimg", 1, [2])]))


def test_what_is_not_shown_is_not_decoded() -> None:
    """Alpha, thumbnails and other pictures may have any size."""
    alpha = files.full_box(b"auxC", 0, 0, b"urn:mpeg:hevc:2015:auxid:1\0")
    others = {number: files.hevc_item(alpha, size=(8192, 8192)) for number in range(2, 5)}
    data = files.heif({1: files.hevc_item()} | others, references=[(b"auxl", 2, [1]), (b"thmb", 3, [1])])
    same(data, RGB, within=60)


@pytest.mark.parametrize("kind", ["AVIF", "HEIC"])
def test_alpha_is_dropped(kind: str) -> None:
    transparent = np.dstack([RGB, np.zeros((64, 64), np.uint8)])
    item = files.av1_item(encoded("AVIF", quality=100, subsampling="4:4:4"), size=(64, 64))
    plain = files.heif({1: item}, brands=AVIF_BRANDS) if kind == "AVIF" else files.heif({1: files.hevc_item()})
    alpha = files.full_box(b"auxC", 0, 0, b"urn:mpeg:hevc:2015:auxid:1\0")
    if kind == "AVIF":
        same(encoded("AVIF", transparent, quality=100, subsampling="4:4:4"), decoded(plain), within=4)
    else:
        data = files.heif({1: files.hevc_item(), 2: files.hevc_item(alpha)}, references=[(b"auxl", 2, [1])])
        same(data, decoded(plain))


def test_heic_that_declares_less_than_it_holds_is_refused() -> None:
    assert "broken or truncated" in refusal(files.heif({1: files.hevc_item(size=(16, 16))}))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            files.heif(
                {1: (b"iovl", bytes(20), [files.ispe(64, 64)]), 2: files.hevc_item()}, references=[(b"dimg", 1, [2])]
            ),
            "'iovl'",
        ),
        (files.heif({1: (b"grid", bytes(8), [files.ispe(64, 64)])}), "broken or truncated"),
        (files.heif({1: (b"jpeg", JPEG, [files.ispe(64, 64)])}), "'jpeg'"),
        (files.box(b"ftyp", b"avis", bytes(4), b"avis") + files.box(b"moov", bytes(40)), "no still picture"),
        (files.box(b"ftyp", b"heic", bytes(4), b"heic")[:-2], "no still picture"),
        (files.box(b"ftyp", b"heic", bytes(4), b"heic") + files.box(b"free") * 30_000, "more than 20000 boxes"),
    ],
    ids=["overlay", "no-tiles", "codec", "sequence", "start", "boxes"],
)
def test_avif_and_heic_of_other_kinds_are_refused(data: bytes, message: str) -> None:
    assert message in refusal(data)


# PPM and its family


@pytest.mark.parametrize("maximum", [1, 15, 100, 254, 255, 256, 1000, 1023, 4095, 65_535])
@pytest.mark.parametrize("channels", [1, 3])
def test_ppm_of_any_maximum(channels: int, maximum: int) -> None:
    values = np.linspace(0, maximum, 64 * 64 * channels).round().astype(">u2" if maximum > 255 else "u1")
    header = b"P%d # made by a test\n64 64\n%d\n" % (5 if channels == 1 else 6, maximum)
    shown = decoded(header + values.tobytes())
    exact = values.astype(float).reshape(64, 64, channels) * 255 / maximum
    assert np.abs(shown - exact).max() <= (0.5 if maximum <= 255 else 1)
    assert shown.min() == 0
    assert shown.max() == 255


def test_a_sample_above_the_maximum_is_white() -> None:
    assert decoded(b"P5 1 1 15\n\xff").tolist() == [[[255, 255, 255]]]


def test_a_ppm_of_another_maximum_that_ends_early_is_refused() -> None:
    assert "the PPM image is broken or truncated: " in refusal(b"P6 64 64 1023\n" + bytes(64 * 64 * 6 - 1))


def test_bits_are_taken() -> None:
    bits = np.packbits(INDICES > 1, axis=1)
    same(b"P4 64 64\n" + bits.tobytes(), as_rgb(np.where(INDICES > 1, 0, 255).astype(np.uint8)))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nENDHDR\n\0\0\0", "a PAM picture"),
        (b"Pf 2 2 -1.0\n" + bytes(16), "floating-point samples"),
        (b"PF 2 2 -1.0\n" + bytes(48), "floating-point samples"),
        (b"P2 2 2 255 1 2 3 4", "decodes too slowly"),
        (b"P5 2 2 65536\n" + bytes(8), "a PBM, PGM or PPM picture that is broken"),
        (b"P5 2 2 0\n" + bytes(4), "a PBM, PGM or PPM picture that is broken"),
        (b"P5 " + b"#\n" * 2000 + b"2 2 255\n1234", "a PBM, PGM or PPM picture that is broken"),
    ],
    ids=["pam", "pfm", "pfm-rgb", "plain", "maximum", "zero", "comments"],
)
def test_other_kinds_of_ppm_are_refused_for_the_true_reason(data: bytes, message: str) -> None:
    assert message in refusal(data)


# BMP


def test_the_file_size_in_a_bmp_header_is_ignored() -> None:
    data = bytearray(encoded("BMP"))
    data[2:10] = b"\xff" * 8
    same(bytes(data) + b"garbage", RGB)


# Limits that hold in every format


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF", "TIFF", "AVIF"])
def test_the_limit_on_pixels_holds_before_anything_is_decoded(kind: str) -> None:
    data = encoded(kind)
    assert decoded(data, max_pixels=4096).shape == (64, 64, 3)
    assert "64 x 64 = 4096 pixels, but the limit is 4095" in refusal(data, max_pixels=4095)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xd8" + b"\xff\xfe\0\2" * 100_001, "more than 100000 segments"),
        (files.png(RGB, before=png_chunk(b"teXt", b"") * 100_001), "more than 100000 chunks"),
        (b"RIFF\0\0\0\0WEBP" + b"JUNK\0\0\0\0" * 100_001, "more than 100000 chunks"),
        (FRAME[:397] + b"!\xfe" + b"\1a" * 100_001, "more than 100000 blocks"),
    ],
    ids=["jpeg", "png", "webp", "gif"],
)
def test_a_file_of_very_many_parts_is_refused(data: bytes, message: str) -> None:
    assert message in refusal(data)


# Files of a few bytes that could take minutes or gigabytes


def _heif_of(meta: bytes, *, brand: bytes = b"avif", after: bytes = b"") -> bytes:
    primary = files.full_box(b"pitm", 0, 0, b"\0\1")
    return files.box(b"ftyp", brand, bytes(4), brand, b"mif1") + files.full_box(b"meta", 0, 0, primary, meta) + after


def _associations_that_never_end() -> bytes:
    box = files.full_box(b"ipma", 0, 0, struct.pack(">I", 200_000))
    return _heif_of(files.box(b"iprp", box * 400), after=files.box(b"free", bytes(600_000)))


def _size_that_never_ends() -> bytes:
    return files.heif({1: (b"av01", b"\x0a" + b"\xff" * 2_000_000 + b"\0", [files.ispe(64, 48)])}, brands=[b"avif"])


def _references_times_references() -> bytes:
    items = [files.full_box(b"infe", 2, 0, struct.pack(">HH", i, 0), kind, b"\0") for i, kind in
             ((1, b"hvc1"), (2, b"grid"), (3, b"hvc1"))]  # fmt: skip
    alphas = files.box(b"auxl", struct.pack(">HH", 2, 9_990), b"\0\1" * 9_990)
    tiles = files.box(b"dimg", struct.pack(">HH", 2, 9_990), b"\0\3" * 9_990)
    listed = files.full_box(b"iinf", 0, 0, struct.pack(">H", 3), *items)
    return _heif_of(listed + files.full_box(b"iref", 0, 0, alphas, tiles), brand=b"heic")


def _tiles_much_larger_than_the_picture() -> bytes:
    tile = zlib.compress(bytes(16 * 500_000), 9)
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [16 * 40]),
        257: ("I", [1]),
        258: ("H", [8]),
        259: ("H", [8]),
        262: ("H", [1]),
        277: ("H", [1]),
        322: ("I", [16]),
        323: ("I", [500_000]),
    }
    return files.tiff([tile] * 40, tags, offsets=324)


@pytest.mark.timeout(30)  # of what would take minutes
@pytest.mark.parametrize(
    "make",
    [
        _associations_that_never_end,
        _size_that_never_ends,
        _references_times_references,
        _tiles_much_larger_than_the_picture,
    ],
)
def test_a_small_file_does_not_take_minutes(make: Callable[[], bytes]) -> None:
    with pytest.raises(image_decoding.InvalidImageError):
        image_decoding.decode(make(), max_pixels=10_000_000)


@pytest.mark.parametrize("letter", ["B", "s"])
@pytest.mark.parametrize("tag", [279, 322])
def test_tiff_tags_of_another_type_are_the_callers_fault(tag: int, letter: str) -> None:
    tags: dict[int, tuple[str, list[int] | bytes]] = {
        256: ("I", [8]),
        257: ("I", [8]),
        258: ("H", [8]),
        259: ("H", [8]),
        262: ("H", [1]),
        277: ("H", [1]),
        278: ("I", [8]),
        tag: (letter, b"seven bytes" if letter == "s" else [7]),
    }
    refusal(files.tiff([zlib.compress(bytes(64))], tags))


def test_too_many_scans_behind_an_end_are_the_callers_fault() -> None:
    refusal(JPEG[:-2] + b"\xff\xda\0\2" * 100_001 + JPEG[-2:])
