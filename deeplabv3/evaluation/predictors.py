"""The interface of predictors, whose masks are counted, and the predictor for PyTorch's own module."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights
from torchvision.transforms import InterpolationMode, functional

from deeplab_client import voc
from deeplabv3 import PRETRAINED, UNTRAINED, DeepLabV3Error, WeightsSource
from deeplabv3.building.plan import MEAN, STD, choose_class_names
from deeplabv3.evaluation import EvaluationError
from deeplabv3.models.names import direct_name
from deeplabv3.models.variants import agreed_class_count, load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from deeplabv3.evaluation.datasets import Sample

_DIFFERENCES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Normalization:
    """Mean and standard deviation of a model's training pixels: R, G, B on the scale 0 to 1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return pixels (N, 3, H, W) from 0 to 1, normalized."""
        return functional.normalize(pixels, list(self.mean), list(self.std))


IMAGENET = Normalization(MEAN, STD)


@dataclass(frozen=True, slots=True)
class PredictorFacts:
    """Values that identify a predictor: an interrupted run resumes only with the same values.

    Attributes:
        name: unique in a run, as the table shows it.
        kind: how the model is called.
        model: its name, on the server or in torchvision.
        version: the version of a served model.
        weights: the label of the weights; None if the server does not return it.
        resolution: of the masks; predictors with the same resolution are compared with each other.
        resize: how the image is resized for the model; None if the server does not return it.
        device: the device of an eager model.
        normalization: of the pixels; None if the server normalizes.
    """

    name: str
    kind: Literal["eager", "direct", "ensemble"]
    model: str
    version: str | None
    weights: str | None
    resolution: Literal["shorter side 520", "own size"]
    resize: str | None
    device: str | None
    normalization: Normalization | None = None

    @property
    def untrained(self) -> bool:
        """Whether the weights are random."""
        return self.weights == UNTRAINED

    @property
    def variant(self) -> str:
        """The variant by the model's name: `resnet50`, `resnet101`, or another name."""
        return self.model.rpartition("_")[2]


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a model.

    Attributes:
        count: the number of classes, including a background if the model has one.
        names: name of each class id; None if they are unknown.
    """

    count: int
    names: tuple[str, ...] | None


class Answer(NamedTuple):
    """A mask and its annotation, both (H, W).

    Attributes:
        mask: predicted class ids.
        target: true class ids, or the data set's id for pixels that are not counted.
    """

    mask: npt.NDArray[np.generic]
    target: npt.NDArray[np.uint8]


class Predictor(Protocol):
    """A model that returns masks; its methods are called by several threads at a time."""

    @property
    def facts(self) -> PredictorFacts:
        """The values that identify it."""
        ...

    @property
    def classes(self) -> Classes:
        """The classes of its masks."""
        ...

    def predict(self, sample: Sample) -> Answer:
        """Segment one image.

        Raises:
            EvaluationError: the model did not answer, or with an invalid answer.
        """
        ...

    def close(self) -> None:
        """Close connections."""
        ...


def agreed_class_names(named: tuple[str, ...] | None, predictors: Sequence[Predictor]) -> tuple[str, ...]:
    """Return the names of the classes that the annotations and all predictors share.

    Args:
        named: the names of the annotations; None to use those of the first predictor that has names.
        predictors: at least one.

    Raises:
        EvaluationError: a predictor has other classes.
    """
    if named is not None:
        names = named
        origin = "the 21 of Pascal VOC" if named == voc.CLASS_NAMES else f"the {len(named)} of --classes"
    else:
        first = next((each for each in predictors if each.classes.names is not None), predictors[0])
        try:
            names = first.classes.names or choose_class_names(None, first.classes.count)
        except DeepLabV3Error as exc:
            raise EvaluationError(f"{first.facts.name}: {exc}") from exc
        origin = f"the {len(names)} of {first.facts.name}"
    for each in predictors:
        differing = [
            f"{class_id} is {theirs!r} instead of {ours!r}"
            for class_id, (theirs, ours) in enumerate(zip(each.classes.names or (), names, strict=False))
            if theirs != ours
        ]
        if each.classes.count != len(names):
            differing.insert(0, f"it has {each.classes.count} classes instead of {len(names)}")
        if differing:
            raise EvaluationError(
                f"{each.facts.name}: its classes are not {origin} "
                f"({', '.join(differing[:_DIFFERENCES_SHOWN])}); measure a model with the classes of these annotations"
            )
    return names


class Prepared(NamedTuple):
    """An image and its annotation as torchvision's reference evaluation resizes them: a batch of one.

    Attributes:
        pixels: (1, 3, H, W) float32, from 0 to 1.
        target: class ids, (H, W) uint8.
    """

    pixels: torch.Tensor
    target: npt.NDArray[np.uint8]


# The preset of the weights, equal for both variants: the shorter side becomes 520. It does not normalize here, because
# each predictor has its own normalization.
_preset = DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1.transforms(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def prepare(image: Image.Image, target: npt.NDArray[np.uint8]) -> Prepared:
    """Resize the image as the weights' preset does, and the annotation to the same size by the nearest pixel."""
    resized = functional.resize(
        Image.fromarray(target),  # pyright: ignore[reportArgumentType]  it accepts PIL images, but is annotated with tensors
        list(_preset.resize_size),
        interpolation=InterpolationMode.NEAREST,
    )
    return Prepared(_preset(image)[None], np.array(resized))


class EagerPredictor:
    """A module with torchvision's interface: normalized (N, 3, H, W) in, a dict with the logits `out` out.

    Args:
        module: in eval mode; moved to the device.
        model: its name.
        weights: the label of its weights.
        classes: of `out`.
        device: as torch names it.
        normalization: of the pixels.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        model: str,
        weights: str,
        classes: Classes,
        device: str = "cpu",
        normalization: Normalization = IMAGENET,
    ) -> None:
        try:
            self._module = module.to(device)
        except (RuntimeError, AssertionError) as exc:
            raise EvaluationError(
                f"--device {device}: {exc}; give a device that torch finds on this machine, such as cpu"
            ) from exc
        self._device = device
        self._normalization = normalization
        # One image at a time, because a forward keeps all cores busy and needs the memory of one image.
        self._lock = threading.Lock()
        self.classes = classes
        self.facts = PredictorFacts(
            name=f"eager {model.rpartition('_')[2]}",
            kind="eager",
            model=model,
            version=None,
            weights=weights,
            resolution="shorter side 520",
            resize="shorter_side",
            device=device,
            normalization=normalization,
        )

    def predict(self, sample: Sample) -> Answer:
        """Segment one image."""
        pixels, target = sample.prepared
        try:
            with self._lock, torch.inference_mode():
                mask = self._module(self._normalization.apply(pixels.to(self._device)))["out"].argmax(1)[0]
        except RuntimeError as exc:
            raise EvaluationError(f"{self.facts.name}: {exc}") from exc
        return Answer(mask.cpu().numpy(), target)

    def close(self) -> None:
        """Nothing to close."""


def load_eager(
    variant: str, weights: str | None, *, device: str, normalization: Normalization, progress: bool
) -> EagerPredictor:
    """Load torchvision's DeepLabV3.

    Args:
        variant: `resnet50` or `resnet101`.
        weights: a name, a checkpoint or `none`, as for build_models.py; None for the pretrained weights.
        device: as torch names it.
        normalization: of the pixels.
        progress: show the download's progress on stderr.

    Raises:
        EvaluationError: the weights cannot be loaded, or there is no such device.
    """
    try:
        source = WeightsSource.of(weights or PRETRAINED)
        module = load_model(variant, source, progress=progress)
        classes = Classes(agreed_class_count(source, None), voc.CLASS_NAMES if source.label == PRETRAINED else None)
    except DeepLabV3Error as exc:
        raise EvaluationError(f"--eager {variant}: {exc}") from exc
    return EagerPredictor(
        module,
        model=direct_name(variant),
        weights=source.label,
        classes=classes,
        device=device,
        normalization=normalization,
    )
