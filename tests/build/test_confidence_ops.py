"""The confidence of `confidence_ops` against the softmax of PyTorch over the upsampled logits."""

import tracemalloc

import confidence_ops
import logit_tiles
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

pytestmark = pytest.mark.build


def reference(logits: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.float64]:
    """Return the largest softmax probability of each pixel, times 255."""
    resized = functional.interpolate(
        torch.from_numpy(logits)[np.newaxis], size=(height, width), mode="bilinear", align_corners=False
    )[0]
    return (resized.double().softmax(0).amax(0) * 255).numpy()


def measured(logits: npt.NDArray[np.float32], height: int, width: int) -> npt.NDArray[np.uint8]:
    picture = np.empty((height, width), np.uint8)
    confidence_ops.measure(logits, picture)
    return picture


def objects() -> npt.NDArray[np.float32]:
    """Return logits with two objects on a background, the other classes far behind, as a trained model's are."""
    noise = np.random.default_rng(1).standard_normal((21, 65, 65)) * 0.5
    y, x = np.mgrid[0:65, 0:65]
    noise[0] += 10
    for class_id, row, column, radius in ((8, 30, 30, 14), (15, 45, 50, 9)):
        inside = 1 / (1 + np.exp(np.hypot(y - row, x - column) - radius))
        noise[class_id] += 12 * inside
        noise[0] -= 9 * inside
    return noise.astype(np.float32)


@pytest.mark.parametrize("classes", [1, 2, 21, 256])
@pytest.mark.parametrize("scale", [0, 0.1, 3, 30, 1e4])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((65, 65), (121, 90)),
        ((9, 17), (70, 301)),
        ((33, 65), (16, 31)),
        ((9, 7), (3, 50)),
        ((5, 5), (1, 900)),
        ((5, 5), (900, 1)),
        ((1, 1), (6, 7)),
        ((8, 8), (8, 8)),
    ],
)
def test_confidence_is_pytorchs_within_one_step(
    classes: int, scale: float, source: tuple[int, int], target: tuple[int, int]
) -> None:
    logits = (np.random.default_rng(7).standard_normal((classes, *source)) * scale).astype(np.float32)
    found = measured(logits, *target)
    assert np.abs(found - reference(logits, *target).round()).max() <= 1


@pytest.mark.parametrize("target", [(480, 640), (1023, 1537), (50, 33)])
def test_classes_that_are_left_out_do_not_show(target: tuple[int, int]) -> None:
    found, expected = measured(objects(), *target), reference(objects(), *target)
    assert np.abs(found - expected.round()).max() <= 1
    assert (found < 128).any()
    assert (found == 255).mean() > 0.5


@pytest.mark.parametrize("behind", [5.0, 7.0, 8.0, 9.0, 9.5, 12.0])
def test_many_classes_that_are_each_a_little_count_together(behind: float) -> None:
    logits = np.full((256, 4, 4), -behind, np.float32)
    logits[3] = 0
    assert np.abs(measured(logits, 9, 9) - reference(logits, 9, 9).round()).max() <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("classes", [1, 3])
def test_logits_that_are_no_numbers_have_no_confidence_and_raise_no_warning(bad: float, classes: int) -> None:
    logits = np.full((1, classes, 4, 4), bad, np.float32)
    assert not confidence_ops.confidence(
        logits, np.array([[9, 9]], np.int32), class_count=classes, max_pixels=100
    ).any()


def test_tiles_far_from_a_logit_that_is_no_number_keep_their_confidence() -> None:
    logits = np.zeros((2, 65, 65), np.float32)
    logits[1, 0, 0] = np.nan
    with np.errstate(invalid="ignore"):
        found = measured(logits, 480, 640)
    assert found[0, 0] == 0
    assert found[-1, -1] == 128


def test_a_large_picture_takes_little_memory() -> None:
    logits = np.random.default_rng(0).standard_normal((21, 65, 65)).astype(np.float32)
    picture = np.empty((2000, 3000), np.uint8)
    tracemalloc.start()
    confidence_ops.measure(logits, picture)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize(
    ("shape", "sizes", "message"),
    [
        ((1, 3, 2, 2), [[5, 4]], "3 classes, but this model has 4"),
        ((1, 4, 0, 2), [[5, 4]], "every side must be at least 1"),
        ((2, 4, 2, 2), [[5, 4], [4, 5]], "must be equal, got"),
        ((1, 4, 2, 2), [[11, 10]], "at most 100"),
    ],
)
def test_tensors_that_fit_no_picture_are_refused(shape: tuple[int, ...], sizes: list[list[int]], message: str) -> None:
    with pytest.raises(logit_tiles.InvalidLogitsError, match=message):
        confidence_ops.confidence(np.zeros(shape, np.float32), np.array(sizes, np.int32), class_count=4, max_pixels=100)
