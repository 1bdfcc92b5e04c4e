"""The masks of `mask_ops` against a reference that computes every pixel by itself."""

import math
import tracemalloc

import logit_tiles
import mask_ops
import numpy as np
import numpy.typing as npt
import pytest

pytestmark = pytest.mark.unit


def slow_mask(logits: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.uint8]:
    """Bilinear resize with half-pixel centers and arg max, pixel by pixel in double precision."""
    _, rows, columns = logits.shape
    mask = np.empty((height, width), np.uint8)
    for y in range(height):
        v = max((y + 0.5) * rows / height - 0.5, 0.0)
        top = min(math.floor(v), rows - 1)
        bottom = min(top + 1, rows - 1)
        for x in range(width):
            u = max((x + 0.5) * columns / width - 0.5, 0.0)
            left = min(math.floor(u), columns - 1)
            right = min(left + 1, columns - 1)
            upper = (1 - (u - left)) * logits[:, top, left] + (u - left) * logits[:, top, right]
            lower = (1 - (u - left)) * logits[:, bottom, left] + (u - left) * logits[:, bottom, right]
            mask[y, x] = int(np.argmax((1 - (v - top)) * upper + (v - top) * lower))
    return mask


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((65, 65), (120, 90)),
        ((9, 17), (40, 200)),  # a strip of several rows
        ((9, 7), (3, 4)),  # smaller than the logits
        ((9, 7), (8, 30)),
        ((40, 3), (40, 1)),
        ((5, 5), (1, 1)),
        ((5, 5), (1, 9000)),  # more than one tile of columns
        ((5, 5), (9000, 1)),
        ((1, 1), (6, 7)),
        ((8, 8), (8, 8)),  # nothing to interpolate
    ],
)
def test_mask_equals_a_pixel_by_pixel_reference(source: tuple[int, int], target: tuple[int, int]) -> None:
    logits = np.random.default_rng(7).standard_normal((5, *source)).astype(np.float32)
    mask = np.empty(target, np.uint8)
    counts = mask_ops.segment(logits, mask)
    expected = slow_mask(logits.astype(np.float64), *target)
    assert (mask != expected).mean() <= 1e-4
    assert counts.tolist() == np.bincount(mask.ravel(), minlength=5).tolist()


def test_a_mask_a_little_lower_than_its_logits_takes_no_matrix_of_both() -> None:
    """Rows x logit rows would be 1.6 GB here."""
    logits = np.zeros((2, 20_000, 1), np.float32)
    logits[1, 10_000:] = 1
    mask = np.empty((19_999, 1), np.uint8)
    tracemalloc.start()
    mask_ops.segment(logits, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000
    assert mask[:9_999].max() == 0
    assert mask[10_001:].min() == 1


def test_logits_that_are_no_numbers_raise_no_warning() -> None:
    logits = np.full((1, 3, 4, 4), np.nan, np.float32)
    logits[0, 1] = np.inf
    mask_ops.postprocess(logits, np.array([[9, 9]], np.int32), class_count=3, max_pixels=100)


def test_tiles_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).standard_normal((21, 30, 30)).astype(np.float32)
    whole = np.empty((211, 307), np.uint8)
    mask_ops.segment(logits, whole)
    for name, value in {"_TILE_ROWS": 3, "_TILE_COLUMNS": 50, "_TILE_PIXELS": 150}.items():
        monkeypatch.setattr(logit_tiles, name, value)
    parts = np.empty_like(whole)
    mask_ops.segment(logits, parts)
    assert (whole != parts).mean() <= 1e-4


def blobs(classes: int, side: int, *, seed: int) -> npt.NDArray[np.float32]:
    """Return logits (classes, side, side) with a region for each class, as a trained model's have."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:side, 0:side] / side
    centers = rng.random((classes, 2, 1, 1))
    return (-30 * ((y - centers[:, 0]) ** 2 + (x - centers[:, 1]) ** 2)).astype(np.float32)


@pytest.mark.parametrize("target", [(480, 640), (50, 700), (700, 50), (33, 33), (20, 300), (300, 20), (1, 1)])
def test_classes_that_cannot_win_change_nothing(target: tuple[int, int]) -> None:
    logits = blobs(21, 65, seed=1)
    mask = np.empty(target, np.uint8)
    mask_ops.segment(logits, mask)
    expected = slow_mask(logits.astype(np.float64), *target)
    assert len(np.unique(expected)) > 10 or expected.size == 1
    assert (mask != expected).mean() <= 1e-4


def test_equal_logits_go_to_the_lower_class() -> None:
    mask = np.empty((10, 10), np.uint8)
    assert mask_ops.segment(np.zeros((4, 3, 3), np.float32), mask).tolist() == [100, 0, 0, 0]


def test_256_classes_fit_a_uint8_mask() -> None:
    logits = np.zeros((256, 2, 2), np.float32)
    logits[255] = 1
    mask = np.empty((4, 4), np.uint8)
    assert mask_ops.segment(logits, mask)[255] == 16
    assert (mask == 255).all()


def test_a_request_of_several_masks_counts_each() -> None:
    logits = np.zeros((2, 3, 2, 2), np.float32)
    logits[0, 1] = 1
    logits[1, 2] = 1
    result = mask_ops.postprocess(logits, np.array([[5, 4]] * 2, np.int32), class_count=3, max_pixels=100)
    assert result.masks.shape == (2, 5, 4)
    assert result.class_pixels.tolist() == [[0, 20, 0], [0, 0, 20]]


@pytest.mark.parametrize(
    ("logits", "sizes", "message"),
    [
        (np.zeros((1, 3, 2, 2), np.float32), [[5, 4]], "3 classes, but this model has 4"),
        (np.zeros((1, 4, 0, 2), np.float32), [[5, 4]], "every side must be at least 1"),
        (np.zeros((2, 4, 2, 2), np.float32), [[5, 4], [4, 5]], r"must be equal, got \[\[5, 4\], \[4, 5\]\]"),
        (np.zeros((1, 4, 2, 2), np.float32), [[0, 4]], "SIZE is 0 x 4"),
        (np.zeros((1, 4, 2, 2), np.float32), [[-5, -4]], "SIZE is -5 x -4"),
        (np.zeros((1, 4, 2, 2), np.float32), [[2**31 - 1, 2**31 - 1]], "at most 100"),
    ],
)
def test_tensors_that_are_no_masks_are_refused(
    logits: npt.NDArray[np.float32], sizes: list[list[int]], message: str
) -> None:
    with pytest.raises(logit_tiles.InvalidLogitsError, match=message):
        mask_ops.postprocess(logits, np.array(sizes, np.int32), class_count=4, max_pixels=100)


@pytest.mark.parametrize("parameters", [{}, {"max_pixels": "many"}, {"max_pixels": "0"}, {"max_pixels": "-1"}])
def test_a_limit_that_is_missing_or_impossible_is_named(parameters: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"parameter max_pixels of the model's config\.pbtxt must be an integer"):
        logit_tiles.max_pixels_in(parameters)
    assert logit_tiles.max_pixels_in({"max_pixels": " 40000000"}) == 40_000_000
