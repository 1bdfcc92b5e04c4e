"""Decoding and resizing against Pillow and torchvision."""

import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import image_ops
import numpy as np
import pictures
import pytest
import torch
from google.protobuf import text_format
from PIL import Image, ImageOps
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights, DeepLabV3_ResNet101_Weights
from torchvision.transforms.v2 import functional as transforms
from tritonclient.grpc import model_config_pb2

from deeplabv3.building.plan import MEAN, STD

pytestmark = pytest.mark.build

pb: Any = model_config_pb2

PARAMETERS = {
    "resize_mode": "fixed",
    "resize_size": "520",
    "max_pixels": "50000000",
    "max_resized_pixels": "2163200",
    "scaled_decoding": "true",
}
FIXED = image_ops.Settings.from_parameters(PARAMETERS)
SHORTER_SIDE = image_ops.Settings.from_parameters(PARAMETERS | {"resize_mode": "shorter_side"})


@pytest.mark.parametrize("weights", [DeepLabV3_ResNet50_Weights, DeepLabV3_ResNet101_Weights])
@pytest.mark.parametrize("size", [(451, 300), (300, 451), (600, 900), (521, 700), (520, 520), (1280, 853)])
def test_shorter_side_is_the_preset_of_the_weights(weights: type, size: tuple[int, int]) -> None:
    preset = weights.COCO_WITH_VOC_LABELS_V1.transforms()
    image = pictures.cat(size)
    pixels, shown = image_ops.preprocess([pictures.encoded(image, "PNG")], SHORTER_SIDE)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preset.mean, preset.std))
    expected = ((preset(image) * std + mean) * 255).round().permute(1, 2, 0).numpy()
    assert pixels.shape == (1, *expected.shape)
    assert shown.tolist() == [[size[1], size[0]]]
    # Pillow and torch round a resized sample apart by one of 255 steps now and then.
    assert np.abs(pixels[0] - expected).max() <= 1
    assert np.abs(pixels[0] - expected).mean() < 0.06


@pytest.mark.parametrize(("resize_size", "sides"), [("520", [520, 520]), ("300x200", [200, 300])])
@pytest.mark.parametrize("size", [(451, 300), (900, 600), (520, 520), (1, 4000), (1, 1)])
def test_a_fixed_size_is_torchvisions_resize_of_uint8(
    size: tuple[int, int], resize_size: str, sides: list[int]
) -> None:
    image = pictures.cat(size)
    settings = image_ops.Settings.from_parameters(PARAMETERS | {"resize_size": resize_size})
    pixels, _ = image_ops.preprocess([pictures.encoded(image, "PNG")], settings)
    samples = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    expected = transforms.resize(samples, sides, antialias=True).permute(1, 2, 0)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous  # as Triton takes it
    np.testing.assert_array_equal(pixels[0], expected.numpy())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    data = pictures.jpeg((90, 60), orientation=orientation)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).convert("RGB")
    shown = image_ops.decode(data, max_pixels=10**6)
    assert shown.size == ((60, 90) if orientation >= 5 else (90, 60))
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(expected))


@pytest.mark.parametrize(
    "make", [pictures.gray_png, pictures.palette_png, pictures.cmyk_jpeg, pictures.bmp, pictures.ppm, pictures.rgba_png]
)
def test_every_color_mode_becomes_rgb(make: Callable[[], bytes]) -> None:
    data = make()
    with Image.open(io.BytesIO(data)) as image:
        expected = image.convert("RGB")
    shown = image_ops.decode(data, max_pixels=10**6)
    assert shown.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(expected))
    # The photograph is recognizable: a wrong inversion or palette would be far off.
    assert np.abs(np.asarray(shown, np.float64) - np.asarray(pictures.cat(), np.float64)).mean() < 40


def test_sixteen_bits_keep_the_high_byte() -> None:
    data, samples = pictures.sixteen_bit_png()
    shown = np.asarray(image_ops.decode(data, max_pixels=10**6))
    np.testing.assert_array_equal(shown, np.repeat((samples // 256)[..., np.newaxis], 3, axis=2))


def test_the_first_frame_of_an_animation_is_taken() -> None:
    shown = image_ops.decode(pictures.animated_webp(), max_pixels=10**6)
    np.testing.assert_array_equal(np.asarray(shown), np.asarray(pictures.cat()))


def test_garbled_exif_does_not_cost_the_picture() -> None:
    data = pictures.encoded(pictures.cat(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff\x12\x01")
    assert image_ops.decode(data, max_pixels=10**6).size == (451, 300)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (
            b"\x9c" + os.urandom(999),
            "the 1000 bytes cannot be opened as an image: they are of no known format.*send a JPEG, ",
        ),
        (pictures.landscape()[:5000], "the JPEG image is broken or truncated"),
        (pictures.small()[:100_000], "the PNG image is broken or truncated"),
        (pictures.gif_bomb(), "a GIF picture that is broken or truncated"),
        (pictures.png_header(50_000, 50_000), r"50000 x 50000 = 2500000000 pixels, but the limit is 50000000"),
        (b"Pf 2 2 -1.0\n" + bytes(16), "floating-point samples"),
        (b"P3 1000 1000 255\n" + b"#\n" * 1_000_000, "decodes too slowly; send the binary form"),
        (pictures.run_length_bmp(25_000_000, 2), "decodes too slowly; send it uncompressed"),
        (pictures.many_scans_jpeg(), r"\d+ scans, but the limit is 100"),
    ],
    ids=[
        "empty",
        "random",
        "truncated-jpeg",
        "truncated-png",
        "gif-bomb",
        "png-bomb",
        "pfm",
        "plain-ppm",
        "rle-bmp",
        "many-scans",
    ],
)
def test_what_is_no_picture_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(image_ops.InvalidImageError, match=message):
        image_ops.preprocess([data], FIXED)


def test_images_of_one_request_must_have_one_size() -> None:
    with pytest.raises(image_ops.InvalidImageError, match="got 451x300, 300x451"):
        image_ops.preprocess([pictures.encoded(pictures.cat(size), "PNG") for size in ((451, 300), (300, 451))], FIXED)


def test_a_sliver_is_refused_where_the_aspect_ratio_stays() -> None:
    sliver = pictures.encoded(pictures.cat((1, 4000)), "PNG")
    with pytest.raises(image_ops.InvalidImageError, match=r"1 x 4000 pixels.*the limit is 2163200.*resize_mode=fixed"):
        image_ops.preprocess([sliver], SHORTER_SIDE)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("resize_mode", "crop"),
        ("resize_size", "0"),
        ("resize_size", "52.0"),
        ("resize_size", "520x"),
        ("resize_size", "3x2x1"),
        ("max_pixels", "-1"),
        ("max_resized_pixels", ""),
        ("scaled_decoding", "yes"),
    ],
)
def test_a_wrong_parameter_is_named(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"parameter {name} is .*{value}"):
        image_ops.Settings.from_parameters(PARAMETERS | {name: value})


def test_a_width_and_a_height_do_not_keep_the_aspect_ratio() -> None:
    with pytest.raises(ValueError, match="resize_size is '300x200'; with resize_mode 'shorter_side'"):
        image_ops.Settings.from_parameters(PARAMETERS | {"resize_mode": "shorter_side", "resize_size": "300x200"})


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(ValueError, match="parameter resize_size is missing"):
        image_ops.Settings.from_parameters({name: text for name, text in PARAMETERS.items() if name != "resize_size"})


def test_the_committed_parameters_are_those_of_the_weights() -> None:
    text = (Path(__file__).resolve().parents[2] / "model_repository" / "preprocess" / "config.pbtxt").read_text()
    parsed: Any = text_format.Parse(text, pb.ModelConfig())
    settings = image_ops.Settings.from_parameters(
        {name: value.string_value for name, value in parsed.parameters.items()}
    )
    for weights in (DeepLabV3_ResNet50_Weights, DeepLabV3_ResNet101_Weights):
        preset = weights.COCO_WITH_VOC_LABELS_V1.transforms()
        assert list(MEAN) == preset.mean
        assert list(STD) == preset.std
        assert list(settings.resize_size) == 2 * preset.resize_size
    assert settings.resize_mode == "fixed"


TALL = """
import resource, sys
import image_ops, numpy as np, pictures
settings = image_ops.Settings.from_parameters(eval(sys.argv[1]))
image_ops.preprocess([pictures.small()], settings)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pixels, size = image_ops.preprocess([pictures.gray_column(3_000_000)], settings)
assert size.tolist() == [[3_000_000, 1]] and pixels.shape == (1, 520, 520, 3), (size, pixels.shape)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_high_and_narrow_picture_takes_no_more_memory_than_others() -> None:
    """As wide as the model's input it would be 520 times larger: 4.7 GB."""
    folders = [str(Path(module.__file__ or "").parent) for module in (image_ops, pictures)]
    done = subprocess.run(
        [sys.executable, "-c", TALL, repr(PARAMETERS)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 400_000  # KB


def test_an_exif_orientation_that_is_no_number_is_none() -> None:
    # A TIFF header and one entry: tag 0x0112, type ASCII, two bytes, "6".
    exif = b"Exif\0\0" + struct.pack("<2sHIHHHI4sI", b"II", 42, 8, 1, 0x0112, 2, 2, b"6\0\0\0", 0)
    data = pictures.encoded(pictures.cat((90, 60)), "JPEG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        expected = ImageOps.exif_transpose(image).size
    assert image_ops.decode(data, max_pixels=10**6).size == expected
