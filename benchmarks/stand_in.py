"""A model repository whose core model costs nothing, so that what is measured is the pipeline around it."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1] / "model_repository"
MODELS = ("preprocess", "deeplabv3_resnet50", "postprocess", "encode_mask", "segment_resnet50")
CLASSES, SIDE = 21, 65


class StandIn(torch.nn.Module):
    """The core model's tensors without its arithmetic: the same smooth logits for every picture.

    They are those of blobs, a region for each class, as a trained model's would be.
    """

    def __init__(self) -> None:
        super().__init__()
        coarse = torch.randn((1, CLASSES, 5, 5), generator=torch.Generator().manual_seed(0))
        smooth = torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bicubic", align_corners=True)
        self.logits = torch.nn.Buffer(8 * smooth)

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: A002  the tensor's name on the wire
        """Return `out` and `logits_os8`, both (N, 21, 65, 65) float32; nothing that matters here asks for `out`."""
        logits = self.logits.expand(input.shape[0], -1, -1, -1)
        return logits, logits


def write_core(file: Path) -> None:
    """Write the stand-in as a model.pt."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        traced: Any = torch.jit.trace(StandIn().eval(), torch.zeros(1, 3, 8, 8))
        traced.save(str(file))


def build(folder: Path) -> Path:
    """Write the repository, with the steps as they are served and the stand-in for the ResNet-50; return its folder."""
    for model in MODELS:
        shutil.copytree(REPOSITORY / model, folder / model, ignore=shutil.ignore_patterns("__pycache__", "model.pt"))
    write_core(folder / "deeplabv3_resnet50" / "1" / "model.pt")
    return folder
