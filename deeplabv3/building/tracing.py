"""A DeepLabV3 as the TorchScript files that Triton serves: for the ensembles, and for direct callers."""

import contextlib
import copy
import shutil
import warnings
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.backends import cudnn as cudnn_backend
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import DeepLabV3

from deeplabv3.building.dilation import use_corners
from deeplabv3.building.fusion import (
    fold_batch_norm,
    fuse_convolutions,
    inline,
    replace_pooling,
    separate_pointwise,
)
from deeplabv3.building.packing import input_sizes, pack_weights
from deeplabv3.building.quantization import quantize
from deeplabv3.cpus import missing_for
from deeplabv3.errors import InvalidOptionError, RetryableBuildError

TRAINED_SIZE = 520
"""Height and width in pixels for which the models are optimized: the published weights were trained at this size."""


@dataclass(frozen=True, slots=True)
class Precision:
    """The precision of a model's computation; logits and a direct caller's pixels are always float32.

    Attributes:
        dtype: the type of the weights and activations.
        tolerance: the largest accepted |traced - eager float32| of any logit, multiplied by the largest logit if that
            is above 1.
        tf32: whether float32 convolutions on a GPU may round their factors to TensorFloat-32.
    """

    dtype: torch.dtype
    tolerance: float
    tf32: bool = False


PRECISIONS = {
    # Folding the batch normalization and channels-last sums change the order of additions, which costs 2e-5.
    "fp32": Precision(torch.float32, 1e-4),
    "tf32": Precision(torch.float32, 1e-4, tf32=True),
    # bf16 has 8 significant bits, fp16 has 11.
    "bf16": Precision(torch.bfloat16, 1e-1),
    "fp16": Precision(torch.float16, 1e-2),
    # Checked on held-out pictures, see checking.agreement, because noise has other ranges than pictures.
    "int8": Precision(torch.float32, float("inf")),
}
"""The values of --precision."""

CUDNN_MODES = ("heuristic", "benchmark", "fused", "tensorexpr", "fused-corners", "tensorexpr-corners")
"""How a GPU computes convolutions, which is part of a trace.

- heuristic: the algorithm that cuDNN expects to be best for a shape.
- benchmark: the fastest of the algorithms that cuDNN tries at the first call of a shape, including the batch size.
- fused: each convolution adds its bias, the residual and the ReLU before it writes; see fusion.fuse_for_cudnn.
- tensorexpr: these three are separate operators, which TorchScript's executor fuses into one pass; see
  fusion.separate_pointwise.
- ...-corners: as before, and the convolution that reads mostly padding skips it; see dilation.CornerConvolution.
"""

# A trace contains no sizes; a small picture is faster if the CPU has no native arithmetic for the precision.
_TRACE_SIDE = 104

# Space for the larger variant, which takes 245 MB with its auxiliary head.
_SAVE_BYTES = 260_000_000


class Core(nn.Module):
    """DeepLabV3 for the ensembles: samples of pictures in, the logits before the last upsampling out.

    Args:
        model: its layers, in `dtype`.
        dtype: the type in which they compute.
        mean: mean of the training pixels, R, G, B on the scale 0 to 1.
        std: standard deviation of the training pixels, as `mean`.
    """

    def __init__(
        self, model: DeepLabV3, *, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.classifier = model.classifier
        self.mean, self.std = (nn.Buffer(torch.tensor(values).view(3, 1, 1)) for values in (mean, std))
        self.dtype = dtype

    def forward(self, PIXELS: torch.Tensor, IMAGE_ID: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N803 - the tensors' names on the wire
        """Take (N, H, W, 3) uint8; return LOGITS (N, C, H/8, W/8, rounded up) float32, and IMAGE_ID as it came."""
        pixels = normalized(PIXELS, self.mean, self.std).to(self.dtype)
        return self.classifier(self.backbone(pixels)["out"]).float().contiguous(), IMAGE_ID


class Direct(nn.Module):
    """DeepLabV3 for direct callers: returns `out` (N, C, H, W) and, if it has the auxiliary head, `aux`.

    Both are float32 logits at the input's size. They are a tuple, because Triton's PyTorch backend does not support the
    dict that torchvision's model returns.
    """

    def __init__(self, model: DeepLabV3, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.backbone = model.backbone
        self.heads = nn.ModuleDict({"out": model.classifier})
        if model.aux_classifier is not None:
            self.heads["aux"] = model.aux_classifier
        self.dtype = dtype

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: A002 - the tensor's name on the wire
        """Take (N, 3, H, W) float32, normalized with the mean and standard deviation of the weights."""
        # The layout is part of the trace, because Triton passes contiguous NCHW and its backend has no switch for it.
        features = self.backbone(input.to(self.dtype, memory_format=torch.channels_last))  # one pass for both
        # Contiguous, as Triton needs them, before the upsampling makes them 64 times as large.
        return tuple(
            upsample(head(features[name]).float().contiguous(), input.shape[-2:]) for name, head in self.heads.items()
        )


def normalized(pixels: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Return (N, H, W, 3) uint8 as (N, 3, H, W) float32, channels-last: (value / 255 - mean) / std."""
    return pixels.permute(0, 3, 1, 2).float().div(255).sub(mean).div(std)


def upsample(logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Resize logits as torchvision's forward does."""
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class Tracer:
    """Traces a model on the CPU for a device; the model itself is not changed.

    For the CPU the convolutions are fused with the operators after them; that file does not run on a GPU.
    `optimize_for_inference` is not used, because its result cannot be saved.

    Args:
        model: a DeepLabV3 in float32.
        aux: whether the auxiliary head is served.
        precision: precision of the computation.
        device: "cpu" or "cuda".
        cudnn: one of CUDNN_MODES; the caller applies "fused", because its result does not run on a CPU.
        pictures: for int8, normalized pixels (1, 3, H, W) float32 to calibrate with.

    Raises:
        InvalidOptionError: the model has no auxiliary head, int8 has no pictures, or another precision has pictures.
    """

    def __init__(
        self,
        model: DeepLabV3,
        *,
        aux: bool = False,
        precision: Precision = PRECISIONS["fp32"],
        device: str = "cpu",
        cudnn: str = "heuristic",
        pictures: Iterable[torch.Tensor] | None = None,
    ) -> None:
        self._precision = precision
        self._cudnn = cudnn
        quantizes = precision is PRECISIONS["int8"]
        if quantizes != (pictures is not None):
            raise InvalidOptionError(
                "int8 needs calibration pictures, and other precisions take none; give --calibration with int8 only"
            )
        if aux and model.aux_classifier is None:
            raise InvalidOptionError("--aux-loss needs an auxiliary head, but the checkpoint has none; leave it out")
        model = copy.deepcopy(model).eval()
        if not aux:
            model.aux_classifier = None
        self._fuses = device == "cpu" and torch.backends.mkldnn.is_available()
        packs = self._fuses and precision.dtype is torch.bfloat16
        # A frozen model has constants instead of weights, which are not packed when the file is loaded.
        self._freezes = not packs and not quantizes
        if pictures is not None:
            model = quantize(model, pictures)
        sizes = input_sizes(model, torch.zeros(1, 3, TRAINED_SIZE, TRAINED_SIZE)) if packs else {}
        fold_batch_norm(model)  # before the weights are rounded
        if packs:
            replace_pooling(model)
        model = model.to(precision.dtype).eval()
        self._model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] - no such overload
        if packs:
            pack_weights(self._model, sizes)
        if cudnn.endswith("-corners"):
            with without_deprecation_warnings():
                use_corners(self._model, side=TRAINED_SIZE // 8)

    def core(self, *, mean: Sequence[float], std: Sequence[float]) -> torch.jit.ScriptModule:
        """Return a trace of Core."""
        pixels = torch.randint(0, 256, (1, _TRACE_SIDE, _TRACE_SIDE, 3), generator=_seeded()).to(torch.uint8)
        served = Core(self._model, mean=mean, std=std, dtype=self._precision.dtype)
        return self._trace(served, (pixels, torch.zeros(1, 1, dtype=torch.int64)))

    def direct(self) -> torch.jit.ScriptModule:
        """Return a trace of Direct."""
        pixels = torch.randn((1, 3, _TRACE_SIDE, _TRACE_SIDE), generator=_seeded())
        return self._trace(Direct(self._model, dtype=self._precision.dtype), (pixels,))

    def _trace(self, served: nn.Module, example: tuple[torch.Tensor, ...]) -> torch.jit.ScriptModule:
        with _tracing(self._precision, benchmark=self._cudnn == "benchmark"):
            module: Any = torch.jit.trace(served.eval(), example, check_trace=False)
            if self._freezes:
                module = torch.jit.freeze(module)
            else:
                inline(module)
        if self._fuses:
            fuse_convolutions(module)
        if self._cudnn.startswith("tensorexpr"):
            separate_pointwise(module)
        return module


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@contextlib.contextmanager
def without_deprecation_warnings() -> Generator[None]:
    """Suppress torch.jit's warnings: TorchScript is deprecated, but Triton's PyTorch backend serves it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        yield


@contextlib.contextmanager
def _tracing(precision: Precision, *, benchmark: bool) -> Generator[None]:
    """Set the state of the process that becomes part of a trace: each convolution records how cuDNN is used."""
    with (
        torch.inference_mode(mode=False),
        torch.no_grad(),
        cudnn_backend.flags(enabled=True, benchmark=benchmark, deterministic=False, allow_tf32=precision.tf32),
        without_deprecation_warnings(),
    ):
        yield


def missing_on_this_cpu(precision: str) -> str | None:
    """Return why models for this CPU cannot compute in a precision, or None if they can."""
    onednn: Any = torch.ops.mkldnn
    supports = {"bf16": onednn._is_mkldnn_bf16_supported, "fp16": onednn._is_mkldnn_fp16_supported}  # noqa: SLF001 - the names of the operators
    if missing := missing_for(precision):
        return missing
    if precision in supports and not supports[precision]():
        return f"{precision} needs another CPU: oneDNN has no convolutions in it on this one"
    return None


def check_room(folder: Path, models: int = 1) -> None:
    """Check that a folder has space for a number of models.

    Raises:
        RetryableBuildError: there is too little space.
        OSError: the storage failed.
    """
    free, needed = shutil.disk_usage(folder).free, models * _SAVE_BYTES
    if free < needed:
        what = "a model needs" if models == 1 else f"{models} models need"
        raise RetryableBuildError(
            f"{folder} has {free / 1e6:.0f} MB of free space, but {what} up to {needed / 1e6:.0f} MB; free some space"
        )


def save(module: torch.jit.ScriptModule, file: Path, extra: dict[str, str]) -> None:
    """Save a module with extra files, given as text by name.

    Raises:
        RetryableBuildError: there is too little space.
        OSError: the storage failed.
    """
    check_room(file.parent)
    # To a buffer, because torch aborts the process if a write to a file fails.
    file.write_bytes(module.save_to_buffer(_extra_files=extra))
