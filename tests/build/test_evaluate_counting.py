"""Confusion matrices and the figures from them, counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from deeplabv3.evaluation.counting import Figures, confusion

pytestmark = pytest.mark.build


def test_every_pixel_is_counted_once_in_its_row_and_column() -> None:
    random = np.random.default_rng(1)
    truth = random.choice(np.array([*range(21), 255], np.uint8), (37, 41))
    predicted = random.integers(0, 21, (37, 41), dtype=np.uint8)
    expected = [[0] * 21 for _ in range(21)]
    for true, guess in zip(truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        if true <= 20:
            expected[true][guess] += 1
    counted = confusion(truth, predicted, classes=21)
    assert counted.dtype == np.int64
    assert counted.tolist() == expected


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_any_type_of_integer_is_counted(dtype: type[np.uint8 | np.int16 | np.int64]) -> None:
    truth, predicted = np.array([[20, 0]], dtype), np.array([[19, 0]], dtype)
    counted = confusion(truth, predicted, classes=21)
    assert counted[20, 19] == counted[0, 0] == 1
    assert counted.sum() == 2


def test_any_id_may_be_the_one_that_counts_for_nothing() -> None:
    truth, predicted = np.array([0, 1, 2, 0, 1]), np.array([1, 1, 2, 2, 0])
    assert confusion(truth, predicted, classes=3, ignore=0).tolist() == [[0, 0, 0], [1, 1, 0], [0, 0, 1]]


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the annotation has shape \(2, 3\), but the prediction \(3, 2\)"):
        confusion(np.zeros((2, 3), int), np.zeros((3, 2), int), classes=21)
    with pytest.raises(ValueError, match="the predicted class ids are 0 to 21, but must be 0 to 20"):
        confusion(np.array([0, 0]), np.array([0, 21]), classes=21)
    with pytest.raises(ValueError, match="the true class ids are 0 to 3, but must be 0 to 2"):
        confusion(np.array([3, 0]), np.array([0, 0]), classes=3)
    with pytest.raises(ValueError, match="true class ids are -1 to 3"):
        confusion(np.array([-1, 3]), np.array([3, 3]), classes=21)
    # Where the truth is ignored, the prediction does not matter.
    assert confusion(np.array([255]), np.array([99]), classes=21).sum() == 0


def test_figures_of_a_small_matrix_by_hand() -> None:
    matrix = np.zeros((21, 21), np.int64)
    matrix[0, 0], matrix[0, 8] = 6, 2  # background: 6 right, 2 taken for a cat
    matrix[8, 8], matrix[8, 0] = 1, 1  # cat: 1 right, 1 taken for background
    matrix[0, 12] = 1  # a dog where there is none
    figures = Figures.of(matrix)
    assert figures.pixels == 11
    assert figures.pixel_accuracy == pytest.approx(7 / 11)
    assert figures.class_accuracy[0] == pytest.approx(6 / 9)
    assert figures.class_accuracy[8] == pytest.approx(1 / 2)
    assert figures.class_accuracy[12] is None
    assert figures.class_iou[0] == pytest.approx(6 / 10)
    assert figures.class_iou[8] == pytest.approx(1 / 4)
    assert figures.class_iou[12] == 0
    assert figures.mean_iou == pytest.approx((6 / 10 + 1 / 4 + 0) / 3)
    assert figures.mean_accuracy == pytest.approx((6 / 9 + 1 / 2) / 2)
    assert len(figures.absent) == 18
    assert 12 not in figures.absent


def test_nothing_counted_gives_no_figures() -> None:
    figures = Figures.of(np.zeros((21, 21), np.int64))
    assert (figures.pixels, figures.pixel_accuracy, figures.mean_iou, figures.mean_accuracy) == (0, None, None, None)
    assert len(figures.absent) == 21
