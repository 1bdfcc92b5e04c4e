"""Fast model repositories: the repository's own steps around a stand-in for the core model.

`colors` classifies by color, so that every mask is known. `objects` returns the same logits for every picture and costs
nothing, so that only the pipeline around it is measured. `sleeping` takes as long as a GPU would.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from benchmarks.harness import ROOT
from deeplabv3.building.steps import STEPS
from deeplabv3.building.tracing import without_deprecation_warnings
from deeplabv3.models.names import core_name, ensemble_name
from deeplabv3.repository.config import config_text, read_config

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

CORE, ENSEMBLE = core_name("resnet50"), ensemble_name("resnet50")
MODELS = (*STEPS, CORE, ENSEMBLE)
# One color for each class, from a 3 x 3 x 3 grid, so that they are far apart.
COLORS = np.array([(r, g, b) for r in (0, 128, 255) for g in (0, 128, 255) for b in (0, 128, 255)][:21], np.uint8)
# The objects of `objects`: class id, center row and column, radius, on the logits' grid of SIDE x SIDE.
SIDE = 65
OBJECTS = ((15, 30, 25, 14), (2, 45, 40, 9), (8, 15, 50, 8))


class ByColor(torch.nn.Module):
    """The core model's tensors, with logits that decrease with the distance to the color of a class."""

    def __init__(self, colors: npt.NDArray[Any] = COLORS) -> None:
        super().__init__()
        self.colors = torch.nn.Buffer(torch.from_numpy(colors).float().reshape(1, 21, 3, 1, 1))

    def forward(self, PIXELS: torch.Tensor, IMAGE_ID: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N803 - the tensors' names on the wire
        """Return LOGITS, at stride 8, and IMAGE_ID."""
        small = torch.nn.functional.avg_pool2d(PIXELS.permute(0, 3, 1, 2).float(), 8)
        return -(((small.unsqueeze(1) - self.colors) / 64) ** 2).sum(2), IMAGE_ID


class Objects(torch.nn.Module):
    """The core model's tensors without its computation: the same logits for every picture.

    They imitate a trained model: three objects on a background. Inside an object, its class leads the background by
    several units; outside it trails; the edge is a few cells wide, and no other class comes close.
    """

    def __init__(self) -> None:
        super().__init__()
        noise = torch.randn((1, len(COLORS), 9, 9), generator=torch.Generator().manual_seed(0))
        smooth = torch.nn.functional.interpolate(noise, size=(SIDE, SIDE), mode="bicubic", align_corners=True)
        logits = smooth - 3
        logits[0, 0] += 9
        rows, columns = torch.meshgrid(torch.arange(SIDE).float(), torch.arange(SIDE).float(), indexing="ij")
        for class_id, row, column, radius in OBJECTS:
            inside = torch.sigmoid(radius - torch.hypot(rows - row, columns - column))
            logits[0, class_id] += 12 * inside
            logits[0, 0] -= 8 * inside
        self.logits = torch.nn.Buffer(logits)

    def forward(self, PIXELS: torch.Tensor, IMAGE_ID: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N803 - the tensors' names on the wire
        """Return LOGITS, (N, 21, 65, 65) float32, and IMAGE_ID."""
        return self.logits.expand(PIXELS.shape[0], -1, -1, -1), IMAGE_ID


# Appended to the modules of idle steps: each computes once, and then returns the stored result.
_IDLE = """

_computed, _answers = {function}, {{}}


def {function}(first, second, **options):
    key = {key}
    if key not in _answers:
        _answers[key] = _computed(first, second, **options)
    return _answers[key]
"""
_IDLE_STEPS = {
    "preprocess/1/image_ops.py": _IDLE.format(function="preprocess", key="tuple(map(len, first))"),
    "postprocess/1/mask_ops.py": _IDLE.format(function="postprocess", key="(first.shape, second.tobytes())"),
}


def build(folder: Path, *, core: Literal["colors", "objects"] = "colors", idle: bool = False) -> Path:
    """Write a repository with a stand-in for the ResNet-50 and no other variant; return its folder.

    Args:
        folder: to create.
        core: `colors` gets pictures of 32 x 32, `objects` pictures of 520 x 520 as the real model does.
        idle: whether the steps around the core do nothing either, so that only the server is measured. Pictures of
            the same size and number of bytes then get the mask of the first.
    """
    for model in MODELS:
        shutil.copytree(
            ROOT / "model_repository" / model, folder / model, ignore=shutil.ignore_patterns("__pycache__", "model.pt")
        )
    if core == "colors":
        path = folder / "preprocess" / "config.pbtxt"
        config = read_config(path)
        config.parameters["resize_size"].string_value = "32"  # 4 x 4 logits
        path.write_text(config_text(config), encoding="utf-8")
    version = folder / CORE / "1"
    version.mkdir(exist_ok=True)
    traced(ByColor() if core == "colors" else Objects()).save(str(version / "model.pt"))
    if idle:
        for name, text in _IDLE_STEPS.items():
            with (folder / name).open("a", encoding="utf-8") as file:
                file.write(text)
    return folder


def traced(module: torch.nn.Module) -> Any:  # noqa: ANN401 - a module of TorchScript
    """Return the trace of a stand-in."""
    example = (torch.zeros(1, 32, 32, 3, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.int64))
    with without_deprecation_warnings():
        return torch.jit.trace(module.eval(), example)


_SLEEPING_CONFIG = """\
name: "{name}"
backend: "python"
max_batch_size: {max_batch}
input {{ name: "PIXELS" data_type: TYPE_UINT8 dims: -1 dims: -1 dims: 3 }}
input {{ name: "IMAGE_ID" data_type: TYPE_INT64 dims: 1 }}
output {{ name: "LOGITS" data_type: TYPE_FP32 dims: 21 dims: -1 dims: -1 }}
output {{ name: "IMAGE_ID" data_type: TYPE_INT64 dims: 1 }}
instance_group {{ count: 1 kind: KIND_CPU }}
dynamic_batching {{ }}
"""
_SLEEPING = """\
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        inputs = [
            [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("PIXELS", "IMAGE_ID")]
            for request in requests
        ]
        time.sleep({first} + {each} * sum(len(pixels) for pixels, _ in inputs))
        responses = []
        for pixels, ids in inputs:
            logits = np.zeros((len(pixels), 21, -(-pixels.shape[1] // 8), -(-pixels.shape[2] // 8)), np.float32)
            outputs = [pb_utils.Tensor("LOGITS", logits), pb_utils.Tensor("IMAGE_ID", ids.copy())]
            responses.append(pb_utils.InferenceResponse(outputs))
        return responses
"""


def sleeping(folder: Path, *, first: float, each: float, max_batch: int) -> Path:
    """Write a repository whose core model batches requests and sleeps `first` seconds, plus `each` per picture."""
    build(folder)
    core = folder / CORE
    shutil.rmtree(core)
    (core / "1").mkdir(parents=True)
    (core / "config.pbtxt").write_text(_SLEEPING_CONFIG.format(name=CORE, max_batch=max_batch), encoding="utf-8")
    (core / "1" / "model.py").write_text(_SLEEPING.format(first=first, each=each), encoding="utf-8")
    return folder


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture with a known mask.

    Attributes:
        class_id: Of all its pixels.
        height: Rows. The pictures of `picture` differ in size.
        width: Columns.
    """

    class_id: int
    height: int
    width: int

    def pixels(self) -> npt.NDArray[np.uint8]:
        """Return it as an array."""
        return np.full((self.height, self.width, 3), COLORS[self.class_id], np.uint8)

    def ppm(self) -> bytes:
        """Return it as an encoded image."""
        return b"P6 %d %d 255\n" % (self.width, self.height) + self.pixels().tobytes()

    def is_mask(self, mask: npt.NDArray[np.uint8]) -> bool:
        """Return whether a mask belongs to this picture."""
        return mask.shape == (self.height, self.width) and bool((mask == self.class_id).all())


def picture(number: int) -> Picture:
    """Return one of a thousand pictures that differ in size; consecutive ones also differ in class."""
    return Picture(number % 21, 20 + number % 25, 30 + number // 25 % 40)
