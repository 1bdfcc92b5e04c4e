"""The seam between what is evaluated and how its masks are counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from deeplabv3.evaluation.samples import Sample

UNTRAINED = "none"

Kind = Literal["eager", "core", "ensemble"]


@dataclass(frozen=True, slots=True)
class PredictorFacts:
    """What identifies a predictor: a run that was interrupted goes on only with the same.

    Attributes:
        name: unique in a run, as the table shows it.
        kind: how the model is asked.
        model: its name, on the server or in torchvision.
        version: of the served model.
        weights: what the model was loaded with; None where the server does not tell.
        resolution: of the masks that are compared: predictors that share it can be compared with each other.
        resize: how the image gets its size for the model; None where the server does not tell.
        device: where an eager model runs.
    """

    name: str
    kind: Kind
    model: str
    version: str | None
    weights: str | None
    resolution: Literal["shorter side 520", "own size"]
    resize: str | None
    device: str | None

    @property
    def untrained(self) -> bool:
        """Whether the weights are random."""
        return self.weights == UNTRAINED

    @property
    def variant(self) -> str:
        """Which of torchvision's two models this is by its name: `resnet50` or `resnet101`, or something else."""
        return self.model.rpartition("_")[2]


class Answer(NamedTuple):
    """A mask and what it is compared with, both (H, W).

    Attributes:
        mask: predicted class ids, 0..20.
        target: true class ids; 255 is ignored.
    """

    mask: npt.NDArray[np.generic]
    target: npt.NDArray[np.uint8]


class Predictor(Protocol):
    """A model that is asked for masks, by several threads at a time."""

    @property
    def facts(self) -> PredictorFacts:
        """What identifies it."""
        ...

    def predict(self, sample: Sample) -> Answer:
        """Segment one image.

        Raises:
            EvaluationError: the model did not answer, or not like a model of the 21 VOC classes.
        """
        ...

    def close(self) -> None:
        """Close connections."""
        ...
