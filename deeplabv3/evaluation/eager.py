"""The PyTorch module itself, by torchvision's reference protocol."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from deeplabv3 import PRETRAINED, DeepLabV3Error, WeightsSource
from deeplabv3.evaluation.errors import EvaluationError
from deeplabv3.evaluation.predictors import Answer, PredictorFacts
from deeplabv3.models.variants import load_model

if TYPE_CHECKING:
    from deeplabv3.evaluation.samples import Sample


class EagerPredictor:
    """A module with torchvision's interface: normalised (N, 3, H, W) in, a dict with the logits `out` back.

    Args:
        module: in eval mode; moved to the device.
        model: its name.
        weights: what it was loaded with.
        device: as torch names it.
    """

    def __init__(self, module: torch.nn.Module, *, model: str, weights: str, device: str = "cpu") -> None:
        try:
            self._module = module.to(device)
        except (RuntimeError, AssertionError) as exc:
            raise EvaluationError(f"--device {device}: {exc}; give a device that torch has here, such as cpu") from exc
        self._device = device
        # One image at a time: a forward keeps all cores busy, and its memory is that of one.
        self._lock = threading.Lock()
        variant = model.rpartition("_")[2]
        self.facts = PredictorFacts(
            name=f"eager {variant}",
            kind="eager",
            model=model,
            version=None,
            weights=weights,
            resolution="shorter side 520",
            resize="shorter_side",
            device=device,
        )

    def predict(self, sample: Sample) -> Answer:
        """Segment one image."""
        pixels, target = sample.prepared
        try:
            with self._lock, torch.inference_mode():
                mask = self._module(pixels.to(self._device))["out"].argmax(1)[0]
        except RuntimeError as exc:
            raise EvaluationError(f"{self.facts.name}: {exc}") from exc
        return Answer(mask.cpu().numpy(), target)

    def close(self) -> None:
        """Nothing to close."""


def load(variant: str, weights: str | None, *, device: str, progress: bool) -> EagerPredictor:
    """Load torchvision's DeepLabV3.

    Args:
        variant: `resnet50` or `resnet101`.
        weights: a name, a checkpoint or `none`, as build_models.py takes them; by default the pretrained ones.
        device: as torch names it.
        progress: show the download's progress on stderr.

    Raises:
        EvaluationError: the weights cannot be had, or there is no such device.
    """
    try:
        source = WeightsSource.of(weights or PRETRAINED)
        module = load_model(variant, source, progress=progress)
    except DeepLabV3Error as exc:
        raise EvaluationError(f"--eager {variant}: {exc}") from exc
    return EagerPredictor(module, model=f"deeplabv3_{variant}", weights=source.label, device=device)
