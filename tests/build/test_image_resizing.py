"""PIXELS of large JPEGs, decoded at a fraction of their size, beside torchvision's resize of the whole picture."""

from __future__ import annotations

import io

import image_ops
import numpy as np
import pictures
import pytest
import torch
from corpus import reference
from PIL import Image, ImageOps
from torchvision.transforms.v2 import functional as transforms

pytestmark = pytest.mark.build

SIDE = 104
PARAMETERS = {
    "resize_mode": "fixed",
    "resize_size": str(SIDE),
    "max_pixels": "50000000",
    "max_resized_pixels": "2163200",
    "scaled_decoding": "true",
}
EXIF_ORIENTATION = 0x0112


def photograph(size: tuple[int, int], *, orientation: int = 1, **options: object) -> bytes:
    """Return the photograph as a JPEG with a sensor's noise."""
    noise = np.random.default_rng(0).normal(0, 4, (size[1], size[0], 1))
    samples = (np.asarray(pictures.cat(size)) + noise).clip(0, 255).astype(np.uint8)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    return pictures.encoded(Image.fromarray(samples), "JPEG", exif=exif, **({"quality": 90} | options))


def whole(data: bytes, mode: str) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    """Return what torchvision makes of a whole picture, (H, W, 3), without any code of the product."""
    with Image.open(io.BytesIO(data)) as image:
        samples = torch.from_numpy(np.array(ImageOps.exif_transpose(image).convert("RGB"))).permute(2, 0, 1)
    size = [SIDE, SIDE] if mode == "fixed" else [SIDE]
    return transforms.resize(samples, size, antialias=True).permute(1, 2, 0).int().numpy()


def served(data: bytes, **parameters: str) -> tuple[np.ndarray[tuple[int, ...], np.dtype[np.int32]], list[list[int]]]:
    pixels, size = image_ops.preprocess([data], image_ops.Settings.from_parameters(PARAMETERS | parameters))
    assert pixels.dtype == np.uint8
    return pixels[0].astype(np.int32), size.tolist()


def agree(data: bytes, mode: str = "fixed") -> None:
    """Compare; with a last row or column that is stretched 5 to 30 % of the samples would differ by more than 2."""
    found, expected = served(data, resize_mode=mode)[0], whole(data, mode)
    assert found.shape == expected.shape
    difference = np.abs(found - expected)
    assert difference.max() > 0, "it is not decoded at a fraction"
    assert difference.max() <= 5
    assert (difference > 2).mean() < 0.002


@pytest.mark.parametrize("mode", ["fixed", "shorter_side"])
@pytest.mark.parametrize("size", [(800, 600), (803, 601), (601, 805), (1251, 837), (2401, 1999)], ids=str)
def test_pixels_are_those_of_the_whole_picture(size: tuple[int, int], mode: str) -> None:
    agree(photograph(size), mode)


@pytest.mark.parametrize("mode", ["fixed", "shorter_side"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_picture_of_odd_sides(orientation: int, mode: str) -> None:
    data = photograph((1673, 1705), orientation=orientation)  # 8 times 209 and 1, 8 times 213 and 1
    assert served(data, resize_mode=mode)[1] == [[1673, 1705] if orientation >= 5 else [1705, 1673]]
    agree(data, mode)


@pytest.mark.parametrize("kind", ["4:4:4", "progressive", "gray", "CMYK"])
def test_other_kinds_of_jpeg(kind: str) -> None:
    mode = {"gray": "L", "CMYK": "CMYK"}.get(kind, "RGB")
    options = {"4:4:4": {"subsampling": 0}, "progressive": {"progressive": True}}.get(kind, {})
    agree(pictures.encoded(pictures.cat((1203, 901)).convert(mode), "JPEG", quality=92, **options))


@pytest.mark.parametrize("subsampling", ["420", "422", "440", "411"])
def test_the_colors_may_be_stored_at_any_resolution(subsampling: str) -> None:
    agree(reference.jpeg(np.asarray(pictures.cat((1803, 1701))), level=92, subsampling=subsampling))


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("mode", ["fixed", "shorter_side"])
def test_switched_off_nothing_differs(mode: str, orientation: int) -> None:
    data = photograph((803, 601), orientation=orientation)
    found, _ = served(data, resize_mode=mode, scaled_decoding="false")
    np.testing.assert_array_equal(found, whole(data, mode))


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("size", [(415, 600), (600, 415), (90, 60)], ids=str)
def test_smaller_pictures_are_decoded_as_a_whole(size: tuple[int, int], orientation: int) -> None:
    data = photograph(size, orientation=orientation)
    np.testing.assert_array_equal(served(data)[0], whole(data, "fixed"))
