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
from deeplabv3.errors import InvalidOptionError, RetryableBuildError

TRAINED_SIZE = 520
"""Height and width, in pixels, of the pictures that the published weights were trained with."""


@dataclass(frozen=True, slots=True)
class Precision:
    """In what a model computes; logits and a direct caller's pixels are float32 in any case.

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
    # Folding the batch normalization and channels-last sums change the order of additions: 2e-5 is what that costs.
    "fp32": Precision(torch.float32, 1e-4),
    "tf32": Precision(torch.float32, 1e-4, tf32=True),
    # 8 and 11 significant bits.
    "bf16": Precision(torch.bfloat16, 1e-1),
    "fp16": Precision(torch.float16, 1e-2),
    # Judged by pictures that were held out, see checking.agreement: noise has other ranges than pictures.
    "int8": Precision(torch.float32, float("inf")),
}
"""The names that --precision takes."""

CUDNN_MODES = ("heuristic", "benchmark", "fused", "tensorexpr", "fused-corners", "tensorexpr-corners")
"""How a GPU's convolutions are computed, as it is part of a trace for one.

- heuristic: the algorithm that cuDNN expects to be best for a shape.
- benchmark: the best of those that it tries at the first call of a shape, a batch size included.
- fused: each convolution adds its bias, what the residual connection brings, and the ReLU before it writes; see
  fusion.fuse_for_cudnn.
- tensorexpr: the three are operators of their own, for TorchScript's executor to make one pass of; see
  fusion.separate_pointwise.
- ...-corners: likewise, and a convolution that mostly meets padding computes less of it; see
  dilation.CornerConvolution.
"""

# A trace holds no sizes; a small picture is quicker where the CPU has no arithmetic of its own for the precision.
_TRACE_SIDE = 104

# Room for the larger variant, 245 MB with its auxiliary head.
_SAVE_BYTES = 260_000_000


class Core(nn.Module):
    """DeepLabV3 as the ensembles ask it: the samples of pictures in, the logits before the last upsampling out.

    Args:
        model: its layers, in `dtype`.
        dtype: in which they compute.
        mean: of R, G, B on the scale 0 to 1, with which the weights were trained.
        std: the standard deviation, likewise.
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
    """DeepLabV3 for direct callers, as the seed describes it: `out` (N, C, H, W) and, if it has the head, `aux`.

    Both are float32 logits at the input's size. A tuple, because Triton's PyTorch backend takes no dict, which
    torchvision's model returns.
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
        # The layout is part of the trace: Triton hands over contiguous NCHW, and its backend has no switch for it.
        features = self.backbone(input.to(self.dtype, memory_format=torch.channels_last))  # one pass for both
        # Contiguous before they grow, as Triton takes them: after it they are 64 times as many.
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
    """Traces a model on the CPU for a device; the model itself stays as it is.

    For the CPU the convolutions take in what follows them; that file runs on no GPU. Not `optimize_for_inference`:
    what it makes of a model cannot be saved.

    Args:
        model: a DeepLabV3 in float32.
        aux: whether the auxiliary head is served.
        precision: in what it computes.
        device: "cpu" or "cuda".
        cudnn: one of CUDNN_MODES; what "fused" asks for is left to the caller, because it runs on no CPU.
        pictures: for int8, normalized pixels (1, 3, H, W) float32 to calibrate with.

    Raises:
        InvalidOptionError: the model has no auxiliary head, or int8 has no pictures, or pictures came with another
            precision.
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
        # Frozen, the weights would be constants, which are not packed when the file is loaded.
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
        what = "a model needs" if models == 1 else f"{models} models need"
        raise RetryableBuildError(
            f"{folder} has {free / 1e6:.0f} MB of free space, but {what} up to {needed / 1e6:.0f} MB; free some space"
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
