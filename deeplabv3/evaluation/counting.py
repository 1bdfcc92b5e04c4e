"""Confusion matrices of masks, and accuracies from them.

Everything is a sum of whole pixels, so the order of the images does not matter.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torchmetrics.functional.classification import multiclass_confusion_matrix

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from deeplabv3.evaluation.predictors import Answer, PredictorFacts


def confusion(
    target: npt.NDArray[Any], mask: npt.NDArray[Any], *, classes: int, ignore: int = 255
) -> npt.NDArray[np.int64]:
    """Count pixels by true class (rows) and predicted class (columns), (classes, classes).

    Args:
        target: true class ids, (H, W); `ignore` for pixels that are not counted.
        mask: predicted class ids of the same shape.
        classes: the number of classes.
        ignore: an id of `target`.

    Raises:
        ValueError: the shapes differ, or an id that counts is not below `classes`.
    """
    if target.shape != mask.shape:
        raise ValueError(f"the annotation has shape {target.shape}, but the prediction {mask.shape}")
    counted = target != ignore
    for name, ids in (("true", target), ("predicted", mask)):
        low, high = ids.min(initial=0, where=counted), ids.max(initial=0, where=counted)
        if low < 0 or high >= classes:
            raise ValueError(f"the {name} class ids are {low} to {high}, but must be 0 to {classes - 1}")
    # torchmetrics' own validation sorts all pixels and accepts ids that are out of range.
    matrix = multiclass_confusion_matrix(
        torch.from_numpy(mask), torch.from_numpy(target), num_classes=classes, ignore_index=ignore, validate_args=False
    )
    return matrix.numpy()


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of a confusion matrix: shares from 0 to 1, or None if there is nothing to divide by.

    torchmetrics has the same figures in float32, which cannot hold the pixels of a large data set.

    Attributes:
        pixels: the number of counted pixels.
        pixel_accuracy: share of the pixels with the right class.
        class_accuracy: for each class, the share of its true pixels with the right class.
        class_iou: for each class, intersection over union of truth and prediction.
        mean_accuracy: mean of class_accuracy over the classes that occur in the truth.
        mean_iou: mean of class_iou over the classes that occur in truth or prediction. torchvision's references use the
            mean over all classes, which is not a number if one is absent, and otherwise the same.
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


class Agreement(NamedTuple):
    """How many pixels of two predictors' masks have the same class, right or wrong."""

    equal: int
    pixels: int


class Counts(NamedTuple):
    """The counts of one image.

    Attributes:
        matrices: the confusion matrix of each predictor.
        agreements: of each pair of predictors whose masks have the same resolution.
    """

    matrices: Mapping[str, npt.NDArray[np.int64]]
    agreements: Mapping[tuple[str, str], Agreement]


class Tally:
    """The sum over the finished images.

    Args:
        predictors: the predictors that are measured.
        classes: the number of classes.
        ignore: the class id of pixels that are not counted.

    Attributes:
        done: ids of the images.
        matrices: the confusion matrix of each predictor.
        agreements: of each pair of predictors whose masks have the same resolution.
        seconds: the duration, over all runs.
    """

    def __init__(self, predictors: Sequence[PredictorFacts], *, classes: int, ignore: int = 255) -> None:
        self.done: set[str] = set()
        self.matrices = {facts.name: np.zeros((classes, classes), np.int64) for facts in predictors}
        pairs = itertools.combinations(predictors, 2)
        self.agreements = {
            (first.name, second.name): Agreement(0, 0)
            for first, second in pairs
            if first.resolution == second.resolution
        }
        self.seconds = 0.0
        self._classes, self._ignore = classes, ignore

    def count(self, answers: Mapping[str, Answer]) -> Counts:
        """Return the counts of one image from every predictor's answer by name; thread-safe."""
        return Counts(
            {
                name: confusion(answer.target, answer.mask, classes=self._classes, ignore=self._ignore)
                for name, answer in answers.items()
            },
            {
                (first, second): Agreement(
                    int(np.count_nonzero(answers[first].mask == answers[second].mask)), answers[first].mask.size
                )
                for first, second in self.agreements
            },
        )

    def add(self, image_id: str, counts: Counts, seconds: float) -> dict[str, Any]:
        """Add an image that was finished after some seconds; return a JSON-compatible record of it for `restore`."""
        for name, matrix in counts.matrices.items():
            self.matrices[name] += matrix
        for pair, (equal, pixels) in counts.agreements.items():
            known = self.agreements[pair]
            self.agreements[pair] = Agreement(known.equal + equal, known.pixels + pixels)
        self.done.add(image_id)
        self.seconds = seconds
        return {
            "image": image_id,
            "seconds": seconds,
            # [true, predicted, pixels] of the pairs of classes that occur, because most do not.
            "matrices": {
                name: [[*cell, int(matrix[tuple(cell)])] for cell in np.argwhere(matrix).tolist()]
                for name, matrix in counts.matrices.items()
            },
            "agreements": [[*pair, *agreement] for pair, agreement in counts.agreements.items()],
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Add an image from the record that `add` returned.

        Raises:
            LookupError, TypeError, ValueError: it is not such a record.
        """
        matrices = {name: np.zeros_like(matrix) for name, matrix in self.matrices.items()}
        for name, matrix in matrices.items():
            for row, column, pixels in record["matrices"][name]:
                matrix[row, column] = pixels
        agreements = {(first, second): Agreement(*counts) for first, second, *counts in record["agreements"]}
        counts = Counts(matrices, {pair: agreements[pair] for pair in self.agreements})
        self.add(str(record["image"]), counts, float(record["seconds"]))
