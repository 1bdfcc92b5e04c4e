"""What has been counted so far; sums of whole numbers, so that the order of the images does not matter."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deeplabv3.evaluation import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from deeplabv3.evaluation.predictors import Answer, PredictorFacts


class Agreement(NamedTuple):
    """How far two predictors give the same class, right or wrong, over all pixels of their masks."""

    equal: int
    pixels: int


class ImageTally(NamedTuple):
    """What one image adds.

    Attributes:
        matrices: the confusion matrix of each predictor.
        agreements: of each pair of predictors whose masks have the same resolution.
    """

    matrices: Mapping[str, npt.NDArray[np.int64]]
    agreements: Mapping[tuple[str, str], Agreement]


def comparable(predictors: Sequence[PredictorFacts]) -> list[tuple[str, str]]:
    """Return the pairs of predictors whose masks have the same resolution."""
    pairs = itertools.combinations(predictors, 2)
    return [(first.name, second.name) for first, second in pairs if first.resolution == second.resolution]


def count(answers: Mapping[str, Answer], pairs: Sequence[tuple[str, str]]) -> ImageTally:
    """Count one image, given every predictor's answer by name."""
    return ImageTally(
        {name: metrics.confusion(answer.target, answer.mask) for name, answer in answers.items()},
        {
            (first, second): Agreement(
                int(np.count_nonzero(answers[first].mask == answers[second].mask)), answers[first].mask.size
            )
            for first, second in pairs
        },
    )


class Tally:
    """The sum over the images that are done.

    Attributes:
        done: their ids.
        matrices: the confusion matrix of each predictor.
        agreements: of each comparable pair of predictors.
        seconds: that it took, over all sittings.
    """

    def __init__(self, predictors: Sequence[PredictorFacts]) -> None:
        self.done: set[str] = set()
        self.matrices = {facts.name: metrics.empty() for facts in predictors}
        self.agreements = dict.fromkeys(comparable(predictors), Agreement(0, 0))
        self.seconds = 0.0

    def add(self, image_id: str, counted: ImageTally) -> None:
        """Add one image."""
        for name, matrix in counted.matrices.items():
            self.matrices[name] += matrix
        for pair, agreement in counted.agreements.items():
            known = self.agreements[pair]
            self.agreements[pair] = Agreement(known.equal + agreement.equal, known.pixels + agreement.pixels)
        self.done.add(image_id)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it."""
        return {
            "done": sorted(self.done),
            "matrices": {name: matrix.tolist() for name, matrix in self.matrices.items()},
            "agreements": [[*pair, *agreement] for pair, agreement in self.agreements.items()],
            "seconds": self.seconds,
        }

    def restore(self, content: Mapping[str, Any]) -> None:
        """Take over what to_json has returned for the same predictors.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """
        matrices = {name: np.array(content["matrices"][name], np.int64) for name in self.matrices}
        if any(matrix.shape != metrics.empty().shape for matrix in matrices.values()):
            raise ValueError("a confusion matrix of another size")
        agreements = {(first, second): Agreement(*counts) for first, second, *counts in content["agreements"]}
        self.agreements = {pair: agreements[pair] for pair in self.agreements}
        self.matrices = matrices
        self.done = set(content["done"])
        self.seconds = float(content["seconds"])
