"""A model repository whose core model costs nothing, so that what is measured is the pipeline around it."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parents[1] / "model_repository"
IDLE_STEPS = Path(__file__).with_name("idle_steps")
MODELS = ("preprocess", "deeplabv3_resnet50", "postprocess", "encode_mask", "segment_resnet50")
CLASSES, SIDE = 21, 65


# Of the objects in the picture that the stand-in sees: class id, centre row and column, radius, on the logits' grid.
OBJECTS = ((15, 30, 25, 14), (2, 45, 40, 9), (8, 15, 50, 8))


class StandIn(torch.nn.Module):
    """The core model's tensors without its arithmetic: the same logits for every picture.

    Made up to look like a trained model's: three objects on a background, each ahead of it by several units inside and
    behind it outside, a few cells between the two, and no other class near the best.
    """

    def __init__(self) -> None:
        super().__init__()
        noise = torch.randn((1, CLASSES, 9, 9), generator=torch.Generator().manual_seed(0))
        smooth = torch.nn.functional.interpolate(noise, size=(SIDE, SIDE), mode="bicubic", align_corners=True)
        logits = smooth - 3
        logits[0, 0] += 9
        rows, columns = torch.meshgrid(torch.arange(SIDE).float(), torch.arange(SIDE).float(), indexing="ij")
        for class_id, row, column, radius in OBJECTS:
            inside = torch.sigmoid(radius - torch.hypot(rows - row, columns - column))
            logits[0, class_id] += 12 * inside
            logits[0, 0] -= 8 * inside
        self.logits = torch.nn.Buffer(logits)

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


def build(folder: Path, *, idle: bool = False) -> Path:
    """Write the repository, with the stand-in for the ResNet-50; return its folder.

    Args:
        folder: where; it does not exist yet.
        idle: whether the steps around the core do nothing either, so that what is left is the server.
    """
    for model in MODELS:
        shutil.copytree(REPOSITORY / model, folder / model, ignore=shutil.ignore_patterns("__pycache__", "model.pt"))
    write_core(folder / "deeplabv3_resnet50" / "1" / "model.pt")
    if idle:
        for model, module in (("preprocess", "image_ops.py"), ("postprocess", "mask_ops.py")):
            shutil.copy(IDLE_STEPS / module, folder / model / "1" / module)
    return folder
