"""A DeepLabV3 as a TorchScript file that Triton serves."""

import contextlib
import copy
import shutil
import warnings
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.backends import cudnn as cudnn_backend
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import DeepLabV3

from deeplabv3.building.fusion import fold_batch_norm, fuse_convolutions, inline, replace_pooling
from deeplabv3.building.packing import input_sizes, pack_weights
from deeplabv3.building.quantization import quantize
from deeplabv3.errors import InvalidOptionError, RetryableBuildError

TRAINED_SIZE = 520
"""Height and width, in pixels, of the pictures that the published weights were trained with."""


@dataclass(frozen=True, slots=True)
class Precision:
    """In what a model computes; its input and outputs are float32 in any case.

    Attributes:
        dtype: of the weights and of what the layers hand on.
        tolerance: largest accepted |traced - eager float32| of any logit, for logits of order 1; it grows with the
            largest logit.
        tf32: whether float32 convolutions on a GPU may round their factors to TensorFloat-32.
    """

    dtype: torch.dtype
    tolerance: float
    tf32: bool = False


PRECISIONS = {
    # Folding the batch normalisation and channels-last sums change the order of additions: 2e-5 is what that costs.
    "fp32": Precision(torch.float32, 1e-4),
    "tf32": Precision(torch.float32, 1e-4, tf32=True),
    # 8 and 11 significant bits.
    "bf16": Precision(torch.bfloat16, 1e-1),
    "fp16": Precision(torch.float16, 1e-2),
    # Judged by pictures that were held out, see checking.agreement: noise has other ranges than pictures.
    "int8": Precision(torch.float32, float("inf")),
}
"""The names that --precision takes."""

CUDNN_MODES = ("heuristic", "benchmark", "fused")
"""How a GPU's convolutions are computed, as it is part of a trace for one.

- heuristic: the algorithm that cuDNN expects to be best for a shape.
- benchmark: the best of those that it tries at the first call of a shape, a batch size included.
- fused: each convolution adds its bias, what the residual connection brings, and the ReLU before it writes; see
  fusion.fuse_for_cudnn.
"""

# A trace holds no sizes; a small picture is quicker where the CPU has no arithmetic of its own for the precision.
_TRACE_SHAPE = (1, 3, 104, 104)

# Room for the larger variant, 245 MB with its auxiliary head.
_SAVE_BYTES = 260_000_000


class ServedDeepLabV3(nn.Module):
    """DeepLabV3 as it is served: a tuple in the order of the config's outputs.

    The tuple is `out` (N, C, H, W), the logits at the input's size; `logits_os8` (N, C, H/8, W/8 rounded up), the same
    before the last upsampling; and, if asked for, `aux` (N, C, H, W). All float32. Triton's PyTorch backend takes no
    dict, which torchvision's model returns.
    """

    def __init__(self, model: DeepLabV3, *, aux: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.classifier = model.classifier
        self.aux_classifier = model.aux_classifier if aux else None
        self.dtype = dtype

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: A002  the tensor's name on the wire
        """Take (N, 3, H, W) float32, normalised with ImageNet's mean and standard deviation."""
        # The layout is part of the trace: Triton hands over contiguous NCHW, and its backend has no switch for it.
        features = self.backbone(input.to(self.dtype).contiguous(memory_format=torch.channels_last))
        size = input.shape[-2:]
        logits = self.classifier(features["out"]).float()
        served = (upsample(logits, size), logits)
        if self.aux_classifier is None:
            return served
        return (*served, upsample(self.aux_classifier(features["aux"]).float(), size))


def upsample(logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Resize logits as torchvision's forward does."""
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def trace(
    model: DeepLabV3,
    *,
    aux: bool,
    precision: Precision = PRECISIONS["fp32"],
    device: str = "cpu",
    cudnn: str = "heuristic",
    pictures: Iterable[torch.Tensor] | None = None,
) -> torch.jit.ScriptModule:
    """Trace a model on the CPU for a device, "cpu" or "cuda"; the model itself stays as it is.

    `cudnn` is one of CUDNN_MODES; "fused" is left to the caller, for what comes of it runs on no CPU. int8 takes
    `pictures` for calibration, pixels (1, 3, H, W) float32.

    For the CPU the convolutions take in what follows them; that file runs on no GPU. Not `optimize_for_inference`:
    what it makes of a model cannot be saved.

    Raises:
        InvalidOptionError: the model has no auxiliary head, or int8 has no pictures, or pictures came with another
            precision.
    """
    quantizes = precision is PRECISIONS["int8"]
    if quantizes != (pictures is not None):
        raise InvalidOptionError("int8 needs pictures for calibration, and only int8 takes them; give --calibration")
    if aux and model.aux_classifier is None:
        raise InvalidOptionError("aux_loss asks for the auxiliary head, and the checkpoint has none; leave it out")
    model = copy.deepcopy(model).eval()
    fuses = device == "cpu" and torch.backends.mkldnn.is_available()
    packs = fuses and precision.dtype is torch.bfloat16
    if pictures is not None:
        model = quantize(model, pictures, aux=aux)
    sizes = input_sizes(model, torch.zeros(1, 3, TRAINED_SIZE, TRAINED_SIZE)) if packs else {}
    fold_batch_norm(model)  # before the weights are rounded
    served = ServedDeepLabV3(model.to(precision.dtype), aux=aux, dtype=precision.dtype)
    served = served.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  no such overload
    if packs:
        replace_pooling(served)
        pack_weights(served, sizes)
    example = torch.randn(_TRACE_SHAPE, generator=torch.Generator().manual_seed(0))
    with _tracing(precision, benchmark=cudnn == "benchmark"):
        module: Any = torch.jit.trace(served, example, check_trace=False)
        if packs or quantizes:
            inline(module)  # in place of freezing, which would make constants of what is packed at load
        else:
            module = torch.jit.freeze(module)
    if fuses:
        fuse_convolutions(module)
    return module


@contextlib.contextmanager
def without_deprecation_warnings() -> Generator[None]:
    """Leave out torch.jit's warnings: TorchScript is deprecated and remains what Triton's PyTorch backend serves."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        yield


@contextlib.contextmanager
def _tracing(precision: Precision, *, benchmark: bool) -> Generator[None]:
    """Set what a trace takes over from the process that makes it: how cuDNN is used is part of each convolution."""
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        cudnn_backend.flags(enabled=True, benchmark=benchmark, deterministic=False, allow_tf32=precision.tf32),
        without_deprecation_warnings(),
    ):
        yield


def check_room(folder: Path, models: int = 1) -> None:
    """Check that a number of models can be saved.

    Raises:
        RetryableBuildError: there is too little space.
        OSError: what the storage says.
    """
    free, needed = shutil.disk_usage(folder).free, models * _SAVE_BYTES
    if free < needed:
        what = "a model takes" if models == 1 else f"{models} models take"
        raise RetryableBuildError(
            f"{folder} has {free / 1e6:.0f} MB left, and {what} up to {needed / 1e6:.0f}; make room"
        )


def save(module: torch.jit.ScriptModule, file: Path, extra: dict[str, str]) -> None:
    """Save a module.

    Raises:
        RetryableBuildError: there is too little space.
        OSError: what the storage says.
    """
    check_room(file.parent)
    # Not to the file: where a write fails, torch aborts the process.
    file.write_bytes(module.save_to_buffer(_extra_files=extra))
