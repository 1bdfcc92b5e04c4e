"""Large JPEGs are decoded at a fraction of their size, and everything else as a whole."""

import functools
import io

import image_decoding
import numpy as np
import picture_files as files
import pytest
from corpus import reference
from image_decoding import InvalidImageError
from image_samples import samples_of
from image_scaling import Picture
from PIL import Image

pytestmark = pytest.mark.unit


@functools.cache
def noise(width: int, height: int) -> Image.Image:
    samples = np.random.default_rng(0).integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    return Image.fromarray(samples).resize((width, height))


def jpeg(width: int, height: int, *, orientation: int = 1, mode: str = "RGB", **options: object) -> bytes:
    """Return a JPEG of a width and height as stored."""
    buffer = io.BytesIO()
    noise(width, height).convert(mode).save(
        buffer, exif=b"Exif\0\0" + files.exif(orientation), format="JPEG", **options
    )
    return buffer.getvalue()


def decoded(data: bytes, height: int, width: int, *, max_pixels: int = 10_000_000) -> Picture:
    """Decode for a resize to a height and width."""

    def resized(*_: int) -> tuple[int, int]:
        return height, width

    return image_decoding.decode_for_resize(data, max_pixels=max_pixels, resized=resized)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((399, 399), (399, 399)),
        ((400, 399), (400, 399)),
        ((399, 400), (399, 400)),
        ((400, 400), (200, 200)),
        ((401, 403), (201, 202)),
        ((799, 2000), (400, 1000)),
        ((2000, 799), (1000, 400)),
        ((800, 800), (200, 200)),
        ((1599, 1601), (400, 401)),
        ((1600, 1600), (200, 200)),
        ((1601, 4800), (201, 600)),
    ],
)
def test_both_sides_stay_twice_those_of_the_resize(size: tuple[int, int], expected: tuple[int, int]) -> None:
    picture = decoded(jpeg(*size), 100, 100)
    assert picture.image.size == expected
    assert picture.size == size[::-1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_sides_are_those_as_shown(orientation: int) -> None:
    asked: list[tuple[int, int]] = []

    def resized(height: int, width: int) -> tuple[int, int]:
        asked.append((height, width))
        return 100, 200

    turned = orientation >= 5
    shown = jpeg(*((400, 800) if turned else (800, 400)), orientation=orientation)
    picture = image_decoding.decode_for_resize(shown, max_pixels=10**6, resized=resized)
    assert asked == [(400, 800)]
    assert picture.size == (400, 800)
    assert picture.image.size == ((200, 400) if turned else (400, 200))
    narrow = jpeg(*((800, 400) if turned else (400, 800)), orientation=orientation)
    picture = image_decoding.decode_for_resize(narrow, max_pixels=10**6, resized=resized)
    assert picture.size == (800, 400)
    assert picture.image.size == (400, 800)


@pytest.mark.parametrize("orientation", [1, 6])
def test_what_is_not_scaled_is_decoded_as_ever(orientation: int) -> None:
    data = jpeg(800, 600, orientation=orientation)
    whole = np.asarray(image_decoding.decode(data, max_pixels=10**6))
    assert (np.asarray(decoded(data, 151, 200).image) == whole).all()
    off = image_decoding.decode_for_resize(data, max_pixels=10**6, resized=None)
    assert (np.asarray(off.image) == whole).all()
    assert off.size == whole.shape[:2]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "PPM", "GIF", "TIFF", "AVIF"])
def test_other_formats_are_decoded_as_a_whole(kind: str) -> None:
    buffer = io.BytesIO()
    noise(64, 48).save(buffer, kind)
    assert decoded(buffer.getvalue(), 4, 4).image.size == (64, 48)


def _mpo() -> bytes:
    buffer = io.BytesIO()
    noise(803, 605).save(buffer, "MPO", save_all=True, append_images=[noise(64, 48)])
    return buffer.getvalue()


JPEGS = {
    "baseline": jpeg(803, 605),
    "4:4:4": jpeg(803, 605, subsampling="4:4:4"),
    "progressive": jpeg(803, 605, progressive=True),
    "gray": jpeg(803, 605, mode="L"),
    "CMYK": jpeg(803, 605, mode="CMYK"),
    "RGB": jpeg(803, 605, keep_rgb=True),
    "restarts": jpeg(803, 605, restart_marker_blocks=5),
    "several pictures": _mpo(),
    "motion photo": jpeg(803, 605) + b"\0\0\0\x18ftypmp42" + b"\xff\xda" * 500,
}


@pytest.mark.parametrize("data", JPEGS.values(), ids=list(JPEGS))
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_jpegs_of_every_kind_are_scaled(data: bytes, scale: int) -> None:
    picture = decoded(data, 600 // scale // 2, 800 // scale // 2)
    assert picture.image.mode == "RGB"
    assert picture.image.size == (-(-803 // scale), -(-605 // scale))
    # The mean of each block of pixels, which libjpeg is close to; the last row and column lie partly outside.
    whole = np.asarray(image_decoding.decode(data, max_pixels=10**6), np.float64)[: 605 // scale * scale]
    whole = whole[:, : 803 // scale * scale].reshape(605 // scale, scale, 803 // scale, scale, 3).mean(axis=(1, 3))
    apart = np.abs(np.asarray(picture.image)[: 605 // scale, : 803 // scale] - whole)
    assert apart.mean() < 4


@pytest.mark.parametrize(
    ("subsampling", "enough", "too_few"),
    [
        ("420", (400, 400), (399, 400)),
        ("422", (800, 400), (799, 400)),
        ("440", (400, 800), (400, 799)),
        ("411", (1600, 400), (1599, 400)),
    ],
)
def test_the_colors_keep_twice_those_sides_too(
    subsampling: str, enough: tuple[int, int], too_few: tuple[int, int]
) -> None:
    """With 4:2:2 the colors have half of the columns, and libjpeg scales these as it does the rows."""
    for size, scale in ((enough, 2), (too_few, 1)):
        picture = decoded(reference.jpeg(np.asarray(noise(*size)), subsampling=subsampling), 100, 100)
        assert picture.image.size == tuple(-(-side // scale) for side in size)


def test_a_jpeg_without_samples_in_a_channel_is_refused() -> None:
    data = jpeg(803, 605)
    frame = data.index(b"\xff\xc0")
    with pytest.raises(InvalidImageError, match="the JPEG image is broken"):
        decoded(data[: frame + 11] + b"\x02" + data[frame + 12 :], 50, 50)


# T.81: the arithmetic coder instead of Huffman's; gray, 16 x 16 pixels, written once by libjpeg.
ARITHMETIC = bytes.fromhex(
    "ffd8ffe000104a46494600010100000100010000ffdb0043000302020302020303030304030304050805050404050a070706080c0a0c0c0b"
    "0a0b0b0d0e12100d0e110e0b0b1016101113141515150c0f171816141812141514ffdb00430103040405040509050509140d0b0d14141414"
    "14141414141414141414141414141414141414141414141414141414141414141414141414141414141414141414ffc90011080010001003"
    "011100021101031101ffcc000a0010100501101105ffda000c03010002110311003f00ff00b924dafc598af8af96b5aa970865144295db48"
    "edf9fac5ffd9"
)


def test_an_arithmetic_coded_jpeg_is_scaled() -> None:
    picture = decoded(ARITHMETIC, 2, 2)
    assert picture.image.size == (4, 4)
    assert np.abs(np.asarray(picture.image).astype(int) - files.quadrants(4, 4)).max() <= 8


def test_a_lossless_jpeg_is_decoded_as_a_whole() -> None:
    """libjpeg never scales it."""
    gray = files.quadrants(64, 64)[..., 0]
    picture = decoded(files.lossless_jpeg(gray), 2, 2)
    assert (np.asarray(picture.image) == gray[..., np.newaxis]).all()


def test_the_limit_on_pixels_is_for_the_whole_image() -> None:
    with pytest.raises(InvalidImageError, match=r"803 x 605 = 485815 pixels, but the limit is 485814"):
        decoded(jpeg(803, 605), 50, 50, max_pixels=485_814)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kept", [0.3, 0.5, 0.9])
def test_a_truncated_jpeg_is_refused_alike(kept: float, *, progressive: bool) -> None:
    data = jpeg(803, 605, progressive=progressive)
    cut = data[: int(kept * len(data))]
    with pytest.raises(InvalidImageError) as whole:
        image_decoding.decode(cut, max_pixels=10**6)
    with pytest.raises(InvalidImageError) as scaled:
        decoded(cut, 50, 50)
    assert "the JPEG image is broken or truncated" in str(scaled.value)
    assert str(whole.value) == str(scaled.value)


def test_a_size_that_cannot_be_resized_is_refused_before_the_pixels_are_decoded() -> None:
    def resized(height: int, width: int) -> tuple[int, int]:
        raise InvalidImageError(f"{width} x {height} is too narrow; crop it")

    data = jpeg(803, 605)
    with pytest.raises(InvalidImageError, match="803 x 605 is too narrow"):
        image_decoding.decode_for_resize(data[: len(data) // 2], max_pixels=10**6, resized=resized)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (640, 480), (3001, 2600)], ids=str)
def test_samples_are_those_of_the_image_and_outlive_it(size: tuple[int, int]) -> None:
    image = noise(*size).copy()
    expected = np.asarray(image)
    samples = samples_of(image)
    del image
    Image.new("RGB", size, "red")  # where freed memory would be used again
    np.testing.assert_array_equal(samples, expected)
