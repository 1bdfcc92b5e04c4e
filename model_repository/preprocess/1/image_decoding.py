"""Decode the bytes of an encoded image to the RGB picture that viewers show.

Pillow decodes, with pi-heif for HEIC. Images that take too much time or memory for their size are refused first.
"""

import io
import itertools
import re
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import image_boxes
import image_bytes
import image_kinds
import image_scaling
import image_sizes
import numpy as np
import pi_heif
from image_samples import pieces
from image_scaling import Picture
from PIL import AvifImagePlugin, Image, ImageFile, TiffImagePlugin

# We have our own limit on pixels, from the model's config, which is checked before anything is decoded.
Image.MAX_IMAGE_PIXELS = None
# An instance is a process with one thread; decoders with threads of their own would slow the other instances down.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)
# Pillow's own reader of uncompressed TIFF files does not support subsampled colors.
TiffImagePlugin.READ_LIBTIFF = True

# Pillow's decoders in Python, which a file of a few kilobytes can occupy for many seconds.
_SLOW_DECODERS = {"ppm_plain": "send the binary form (P4, P5, P6)", "bmp_rle": "send it uncompressed"}
# A progressive JPEG has about ten scans, and each may cost as much as the whole picture.
_MAX_JPEG_SCANS = 100
_JPEG_START_OF_SCAN = re.compile(b"\xff\xda")
# The pixels of all tiles of an AVIF or HEIC picture, at most this many times max_pixels.
_MAX_CODED = 2
# The bytes of all strips of a compressed TIFF page, at most this many times those of the file: more would overlap.
_MAX_OVERLAP = 2

# Pillow's modes of 16-bit grayscale; its own conversion to RGB clips them at 255.
_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_MAXIMUM, _SIXTEEN_BIT_MAXIMUM = 255, 65_535
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_PIECE = 1 << 18  # samples per conversion
# Formats whose images keep the decoder's buffers or the whole file in memory.
_KEEPING = frozenset({"WEBP", "AVIF", "HEIF", "TIFF"})

# PNG (https://www.w3.org/TR/png-3/): the offsets of the bits per sample, which the color type follows, and of the
# interlace flag; the channels of each color type; first column and row, and their steps, of each pass.
_PNG_DEPTH, _PNG_INTERLACE = 24, 28
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)

_UNPACKED_AT_ONCE = 1 << 20  # bytes

# Tags of TIFF 6.0.
_BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC, _COLOR_MAP, _SAMPLE_FORMAT = 258, 259, 262, 320, 339
_SAMPLES, _PLANAR, _SEPARATE = 277, 284, 2
_STRIP_BYTES, _TILE_WIDTH, _TILE_LENGTH, _TILE_BYTES = 279, 322, 323, 325
_UNCOMPRESSED, _WHITE_IS_ZERO, _UNSIGNED = 1, 0, 1
_SAMPLE_BITS = frozenset({1, 2, 4, 8, 16})


class InvalidImageError(ValueError):
    """The caller's image cannot be segmented; the message says why."""


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Return the image as shown: RGB, EXIF orientation applied, the first frame or page.

    Alpha is dropped, 16-bit samples keep their high byte, ICC profiles are not applied. Flaws in metadata are ignored.

    Raises:
        InvalidImageError: the image is empty, of another format, broken, truncated, or larger than max_pixels. The size
            in the header is checked before any pixel is decoded.
    """
    return decode_for_resize(data, max_pixels=max_pixels, resized=None).image


def decode_for_resize(
    data: bytes, *, max_pixels: int, resized: Callable[[int, int], tuple[int, int]] | None
) -> Picture:
    """Decode an image as `decode` does, but a large JPEG possibly at a fraction of its size.

    Args:
        data: the encoded image.
        max_pixels: the largest number of pixels of the whole image.
        resized: takes a height and width as shown, returns the height and width after the resize; may raise
            InvalidImageError. With None every image is decoded at full size.

    Raises:
        InvalidImageError: as `decode`, or raised by `resized`.
    """
    with warnings.catch_warnings():
        # Pillow's warnings about odd metadata are useless in a server's log, and must not become errors.
        warnings.simplefilter("ignore")
        name, plain, orientation = _prepare(data, max_pixels)
        image = _open(name, plain, len(data))
        _check_size(image.width, image.height, max_pixels)
        if name == "AVIF":  # from its boxes, which Pillow translates
            orientation = image.getexif().get(image_bytes.ORIENTATION_TAG, 1)
        fraction = None if resized is None else image_scaling.scale_down(image, plain, orientation, resized)
        rgb = _load(image, plain, max_pixels)
        del image  # with the memory of its decoder
        method = image_bytes.TRANSPOSE_BY_ORIENTATION.get(orientation)
        if fraction is None and method is not None:
            rgb = rgb.transpose(Image.Transpose[method])
    return Picture(rgb, fraction)


def _prepare(data: bytes, max_pixels: int) -> tuple[str, bytes, int]:
    """Return the name of the format, the bytes to decode, and the orientation of their pixels."""
    name = image_bytes.format_of(data)
    if name is None:
        raise _not_decodable(data, len(data))
    coded_pixels = 0
    try:
        plain, orientation = image_bytes.without_metadata(data)
        if name == "HEIF":
            still = image_boxes.still(data)
            name, plain, coded_pixels = still.codec, still.data, image_sizes.coded_pixels(still.tiles)
    except ValueError as exc:
        raise InvalidImageError(str(exc)) from exc
    if coded_pixels > _MAX_CODED * max_pixels:
        raise InvalidImageError(
            f"the {name} image has {coded_pixels} pixels in all its tiles, but the limit is "
            f"{_MAX_CODED * max_pixels}; scale it down"
        )
    if name == "WEBP":  # its canvas is allocated when it is opened
        _check_size(*image_sizes.webp_canvas(plain), max_pixels)
    return name, plain, orientation


def _not_decodable(data: bytes, length: int) -> InvalidImageError:
    what, remedy = image_kinds.found(data)
    if not data:
        return InvalidImageError(f"the image is {what} (0 bytes); {remedy}")
    return InvalidImageError(f"the {length} bytes cannot be opened as an image: they are {what}; {remedy}")


def _open(name: str, plain: bytes, length: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(plain), formats=(name,))
    except MemoryError:
        raise
    except Exception as exc:  # Pillow's parsers raise any type, always because of these bytes.
        raise _not_decodable(plain, length) from exc


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise InvalidImageError(
            f"the image is {width} x {height} = {width * height} pixels, but the limit is {max_pixels}; scale it down"
        )


def _refuse_slow(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuse an image that takes too much time or memory for its size."""
    decoder, _ = _decoder(image)
    if decoder in _SLOW_DECODERS:
        raise InvalidImageError(
            f"this kind of {image.format} image is refused, because it decodes too slowly; {_SLOW_DECODERS[decoder]}"
        )
    if image.format == "JPEG":
        # These bytes may also occur elsewhere. `re` finds them twice as fast as bytes.count, and stops early.
        starts = itertools.islice(_JPEG_START_OF_SCAN.finditer(data), _MAX_JPEG_SCANS + 1)
        scans = image_bytes.jpeg_scans(data) if sum(1 for _ in starts) > _MAX_JPEG_SCANS else 0
        if scans > _MAX_JPEG_SCANS:
            raise InvalidImageError(
                f"the JPEG image has {scans} scans, but the limit is {_MAX_JPEG_SCANS}; encode it again"
            )
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        _refuse_tiff(image, data, max_pixels)


def _decoder(image: Image.Image) -> tuple[str, Any]:
    """Return the name and the arguments of Pillow's decoder for an image that is not loaded."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else []
    return (tiles[0].codec_name, tiles[0].args) if tiles else ("", None)


def _refuse_tiff(image: TiffImagePlugin.TiffImageFile, data: bytes, max_pixels: int) -> None:
    tags = image.tag_v2
    bits, sample_formats = _numbers(tags.get(_BITS_PER_SAMPLE, 1)), _numbers(tags.get(_SAMPLE_FORMAT, _UNSIGNED))
    if not _SAMPLE_BITS.issuperset(bits) or set(sample_formats) != {_UNSIGNED}:
        raise InvalidImageError(
            f"the TIFF image has samples of {max(bits)} bits, or signed or floating-point samples, which are not "
            "accepted; save it with unsigned integers of 8 or 16 bits"
        )
    tile, tiles = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0), len(_numbers(tags.get(_TILE_BYTES, 0)))
    planes = tags.get(_SAMPLES, 1) if tags.get(_PLANAR, 1) == _SEPARATE else 1
    if tile > max_pixels or tile * tiles > _MAX_CODED * max_pixels * planes:
        raise InvalidImageError(
            f"the TIFF image has {tiles} tiles of {tile} pixels, more than the limit of {max_pixels}; "
            "save it without tiles"
        )
    stored = sum(_numbers(tags.get(_STRIP_BYTES, tags.get(_TILE_BYTES, 0))))
    if tags.get(_COMPRESSION, _UNCOMPRESSED) != _UNCOMPRESSED and stored > _MAX_OVERLAP * len(data):
        raise InvalidImageError(
            f"the TIFF image declares {stored} bytes of samples, but has only {len(data)} bytes; save it again"
        )


def _numbers(value: Any) -> tuple[int, ...]:  # noqa: ANN401 - the value of a tag
    return value if isinstance(value, tuple) else (value,)


def _load(image: Image.Image, data: bytes, max_pixels: int) -> Image.Image:
    try:
        _refuse_slow(image, data, max_pixels)
        decoder, arguments = _decoder(image)
        if decoder == "ppm":  # Pillow's decoder is written in Python
            return _scaled(image, data, maximum=arguments[1]).convert("RGB")
        image.load()
        if image.format == "PNG":
            _check_rows(image, data)
        elif isinstance(image, TiffImagePlugin.TiffImageFile):
            _correct_tiff(image)
        return _to_rgb(image)
    except (InvalidImageError, MemoryError):
        raise
    except Exception as exc:  # Pillow's decoders raise any type, always because of these bytes.
        reason = " ".join(str(exc).split()) or type(exc).__name__
        what, remedy = image_kinds.found(data)
        known = f"the {image.format} image is broken or truncated: {reason}"
        raise InvalidImageError(f"{known if 'broken' in what else f'the image is {what}'}; {remedy}") from exc


def _check_rows(image: Image.Image, data: bytes) -> None:
    """Raise ValueError if a PNG has fewer rows than it declares, because Pillow silently leaves them at zero."""
    interlaced = data[_PNG_INTERLACE] == 1
    last = image.crop((0, image.height - 1, image.width, image.height))
    if np.asarray(last).any() and not interlaced:
        return  # rows are stored in order
    bits = data[_PNG_DEPTH] * _PNG_CHANNELS[data[_PNG_DEPTH + 1]]
    missing = 0
    for x, y, step_x, step_y in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -((x - image.width) // step_x), -((y - image.height) // step_y)
        missing += rows * (1 + (columns * bits + 7) // 8) if columns > 0 else 0
    inflate, position = zlib.decompressobj(), 8
    while missing > 0 and position < len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        packed = data[position + 8 : end - 4] if data[position + 4 : position + 8] == b"IDAT" else b""
        while packed and missing > 0:
            missing -= len(inflate.decompress(packed, _UNPACKED_AT_ONCE))
            packed = inflate.unconsumed_tail
        position = end
    if missing > 0:
        raise ValueError(f"the last {missing} bytes of its rows are missing")


def _scaled(image: Image.Image, data: bytes, *, maximum: int) -> Image.Image:
    """Return a PGM or PPM image with any maximum; above 255 it is scaled to 16 bits, of which the high byte is kept."""
    count = image.width * image.height * (3 if image.mode == "RGB" else 1)
    samples = np.frombuffer(data, np.uint8 if maximum <= _MAXIMUM else ">u2", count, data.index(b"\n") + 1)
    shown = np.empty(count, np.uint8)
    for start in range(0, count, _PIECE):
        part = np.minimum(samples[start : start + _PIECE], maximum).astype(np.uint32)
        if maximum <= _MAXIMUM:
            shown[start : start + _PIECE] = (part * _MAXIMUM + maximum // 2) // maximum
        else:
            shown[start : start + _PIECE] = (part * _SIXTEEN_BIT_MAXIMUM + maximum // 2) // maximum >> 8
    return Image.fromarray(shown.reshape(image.height, image.width, *((3,) if image.mode == "RGB" else ())))


def _correct_tiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Correct differences between Pillow's decoder and libtiff's own conversion to RGB."""
    if image.mode == "I;16" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        for rows, piece in pieces(image):
            image.paste(Image.fromarray(~piece), (0, rows.start))
    colors = _numbers(image.tag_v2.get(_COLOR_MAP, ()))
    if image.mode == "P" and max(colors, default=_SIXTEEN_BIT_MAXIMUM) <= _MAXIMUM:
        # A color map with 8 bits instead of 16, stored one channel after the other.
        count = len(colors) // 3
        image.putpalette(bytes(colors[index % 3 * count + index // 3] for index in range(3 * count)))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        high = np.empty((image.height, image.width), np.uint8)
        for rows, piece in pieces(image):
            high[rows] = piece.clip(0, _SIXTEEN_BIT_MAXIMUM) >> 8
        image = Image.fromarray(high)
    elif image.mode in {"F", "LAB"}:
        kind = "floating-point samples" if image.mode == "F" else "CIE L*a*b* colors"
        raise InvalidImageError(f"the image has {kind}; send gray or RGB samples of 8 or 16 bits")
    elif image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if image.mode == "RGB":
        return image.copy() if image.format in _KEEPING else image
    return image.convert("RGB")
