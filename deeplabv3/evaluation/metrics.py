"""From masks to confusion matrices, and from those to accuracies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_client import voc

if TYPE_CHECKING:
    import numpy.typing as npt

CLASSES = len(voc.CLASS_NAMES)
IGNORED = 255


def empty() -> npt.NDArray[np.int64]:
    """Return the confusion matrix of no pixels, (21, 21)."""
    return np.zeros((CLASSES, CLASSES), np.int64)


def confusion(truth: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Count pixels by true class (rows) and predicted class (columns), (21, 21).

    Args:
        truth: class ids; 255, and whatever else is outside 0..20, is left out.
        predicted: class ids 0..20 of the same shape.

    Raises:
        ValueError: the shapes differ, or a prediction that counts is outside 0..20.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"the truth is {truth.shape} and the prediction {predicted.shape}")
    counted = (truth >= 0) & (truth < CLASSES)
    rows, columns = truth[counted].astype(np.int64), predicted[counted].astype(np.int64)
    if columns.size and (columns.min() < 0 or columns.max() >= CLASSES):
        raise ValueError(f"predicted classes {columns.min()} to {columns.max()}, and there are 0 to {CLASSES - 1}")
    return np.bincount(CLASSES * rows + columns, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


@dataclass(frozen=True, slots=True)
class Figures:
    """What a confusion matrix says; shares from 0 to 1, None where there is nothing to divide by.

    Attributes:
        pixels: how many were counted.
        pixel_accuracy: share of the pixels whose class is right.
        class_accuracy: for each class, the share of its true pixels that were found.
        class_iou: for each class, intersection over union of truth and prediction.
        mean_accuracy: mean of class_accuracy over the classes that occur in the truth.
        mean_iou: mean of class_iou over the classes that occur in truth or prediction. torchvision's references take
            the mean over all, which is not a number where one is absent, and the same where none is.
        absent: ids of the classes in neither truth nor prediction.
    """

    pixels: int
    pixel_accuracy: float | None
    class_accuracy: tuple[float | None, ...]
    class_iou: tuple[float | None, ...]
    mean_accuracy: float | None
    mean_iou: float | None
    absent: tuple[int, ...]

    @classmethod
    def of(cls, matrix: npt.NDArray[np.int64]) -> Figures:
        """Compute the figures of one confusion matrix."""
        right: list[int] = matrix.diagonal().tolist()
        true: list[int] = matrix.sum(1).tolist()
        predicted: list[int] = matrix.sum(0).tolist()
        unions = [rows + columns - hits for rows, columns, hits in zip(true, predicted, right, strict=True)]
        class_accuracy = tuple(map(_share, right, true))
        class_iou = tuple(map(_share, right, unions))
        return cls(
            pixels=sum(true),
            pixel_accuracy=_share(sum(right), sum(true)),
            class_accuracy=class_accuracy,
            class_iou=class_iou,
            mean_accuracy=_mean(class_accuracy),
            mean_iou=_mean(class_iou),
            absent=tuple(class_id for class_id, union in enumerate(unions) if union == 0),
        )


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: tuple[float | None, ...]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
