"""Preprocessing with the resize of a GPU, run on the CPU: how far it is from the CPU's own, and what it refuses."""

from __future__ import annotations

import image_ops
import image_ops_cuda
import numpy as np
import pictures
import pytest
import torch

pytestmark = pytest.mark.build

PARAMETERS = {
    "resize_mode": "fixed",
    "resize_size": "520",
    "max_pixels": "50000000",
    "max_resized_pixels": "2163200",
    "scaled_decoding": "true",
}
FIXED = image_ops.Settings.from_parameters(PARAMETERS)
SHORTER_SIDE = image_ops.Settings.from_parameters(PARAMETERS | {"resize_mode": "shorter_side"})


def preprocess(data: bytes, settings: image_ops.Settings = FIXED) -> tuple[torch.Tensor, list[list[int]]]:
    pixels, size = image_ops_cuda.Preprocessor(torch.device("cpu"), settings).preprocess([data])
    return pixels, size.tolist()


@pytest.mark.parametrize("settings", [FIXED, SHORTER_SIDE], ids=["fixed", "shorter side"])
@pytest.mark.parametrize("size", [(640, 480), (300, 451), (1280, 853), (4000, 3000), (40, 30)])
def test_a_sample_is_at_most_one_step_of_255_from_the_cpus(settings: image_ops.Settings, size: tuple[int, int]) -> None:
    data = pictures.encoded(pictures.cat(size), "PNG")
    found, shown = preprocess(data, settings)
    expected, _ = image_ops.preprocess([data], settings)
    assert shown == [[size[1], size[0]]]
    assert found.shape == expected.shape
    assert found.dtype == torch.uint8
    assert found.is_contiguous()  # as Triton's DLPack takes it
    difference = np.abs(found.numpy().astype(int) - expected)
    # The CPU's uint8 kernel rounds after each of its two directions, this one at the end.
    assert difference.max() <= 1
    assert difference.mean() <= 0.3


@pytest.mark.parametrize("settings", [FIXED, SHORTER_SIDE], ids=["fixed", "shorter side"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_a_large_jpeg_is_scaled_and_turned_as_on_the_cpu(settings: image_ops.Settings, orientation: int) -> None:
    data = pictures.jpeg((2501, 2083), orientation=orientation)
    found, shown = preprocess(data, settings)
    expected, size = image_ops.preprocess([data], settings)
    assert shown == size.tolist()
    assert found.is_contiguous()
    assert np.abs(found.numpy().astype(int) - expected).max() <= 1


def test_what_needs_no_resize_is_the_cpus() -> None:
    data = pictures.encoded(pictures.cat((520, 520)), "PNG")
    np.testing.assert_array_equal(preprocess(data)[0].numpy(), image_ops.preprocess([data], FIXED)[0])


def test_what_a_gpu_cannot_shrink_is_the_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(image_ops_cuda, "resize")
    data = pictures.gray_column(100_000)
    np.testing.assert_array_equal(preprocess(data)[0].numpy(), image_ops.preprocess([data], FIXED)[0])


def test_images_are_refused_as_on_a_cpu() -> None:
    step = image_ops_cuda.Preprocessor(torch.device("cpu"), FIXED)
    with pytest.raises(image_ops.InvalidImageError, match="cannot be opened as an image"):
        step.preprocess([b"no image"])
    with pytest.raises(image_ops.InvalidImageError, match="must have the same size"):
        step.preprocess([pictures.encoded(pictures.cat(size), "PNG") for size in ((30, 20), (20, 30))])
