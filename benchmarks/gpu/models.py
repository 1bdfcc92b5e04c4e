"""The models that are measured: untrained ones that compute as trained ones do, how much work they are, their files.

With the statistics that layers start with, the values of an untrained ResNet-101 grow from block to block beyond what
fp16 can hold. A few passes in training mode set them, and the logits come out of order 1.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import Bottleneck

from deeplabv3 import UNTRAINED, WeightsSource
from deeplabv3.building import tracing
from deeplabv3.building.fusion import fuse_for_cudnn
from deeplabv3.building.plan import MEAN, STD
from deeplabv3.models.variants import drop_auxiliary_head, load_model

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

# Of which cuDNN's tensor core kernels take channels, from NVIDIA's guide to its performance.
_CHANNEL_MULTIPLES = {"fp16": 8, "bf16": 8, "tf32": 4, "fp32": 1}
_PASSES = 4
_BATCH = 4
_SIZE = 128


def calibrated(variant: str, *, width: int, device: str) -> DeepLabV3:
    """Return a model without the auxiliary head, which is not served, in inference mode on the CPU.

    The weights come from a fixed seed, the statistics from noise.

    Args:
        variant: one of VARIANTS.
        width: the channels of a group in ResNet's first stage; 64 is the published model.
        device: where the statistics are computed.
    """
    model = load_model(variant, WeightsSource(UNTRAINED), resnet_options={"width_per_group": width})
    drop_auxiliary_head(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of all passes
        norm.reset_running_stats()
    generator = torch.Generator().manual_seed(0)
    model.to(device).train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for _ in range(_PASSES):
            # Blobs with noise on them: pictures are smooth, and noise alone averages out.
            coarse = torch.randn((_BATCH, 3, 9, 9), generator=generator)
            fine = torch.randn((_BATCH, 3, _SIZE, _SIZE), generator=generator)
            smooth = nn.functional.interpolate(coarse, size=(_SIZE, _SIZE), mode="bicubic", align_corners=False)
            model((smooth + 0.2 * fine).to(device))
    return model.cpu().eval()


@dataclass(frozen=True, slots=True)
class Work:
    """What one picture costs.

    Attributes:
        flops: multiplications and additions, each counted: twice 168.73 and 248.75 thousand millions, which count both
            as one. The published 178.72 and 258.74 include the auxiliary head, which is not served.
        least_values: values that are read and written where each convolution reads its input once and writes its
            output once, and all else happens on the way.
        relu_values: the same where what follows a convolution, up to the ReLU, is one pass over memory of its own.
        passes_values: the same where a bias, a residual sum and a ReLU are passes of their own, as they are in
            PyTorch's operators for GPUs.
        weights: values that are read once a batch.
        pixels: of the picture.
    """

    flops: int
    least_values: int
    relu_values: int
    passes_values: int
    weights: int
    pixels: int

    def bytes_moved(self, precision: str, batch: int, *, cudnn: str) -> float:
        """Estimate the bytes a picture that memory must move; caches may spare some, and a halo or a copy adds some.

        The channels of the input are padded from 3 to a multiple that tensor cores take, here by cuDNN: 3 are read, the
        multiple is written and read again. The operations on the pad, 0.6 % for a multiple of 8, are no work that
        anyone asked for, and are not in `flops`.
        """
        mode = cudnn.removesuffix("-corners")
        values = {"fused": self.least_values, "tensorexpr": self.relu_values}.get(mode, self.passes_values)
        padded = _CHANNEL_MULTIPLES[precision]
        pad = (2 * padded if padded > 1 else 0) * self.pixels  # beside the 3 that least_values has
        return tracing.PRECISIONS[precision].dtype.itemsize * (values + pad + self.weights / batch)


def count_work(model: DeepLabV3, size: int) -> Work:
    """Count on a copy of the model on torch's `meta` device, where nothing is computed."""
    shadow = copy.deepcopy(model).eval().to("meta")
    least, relus, passes = 0, 0, 0

    def convolution(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal least, passes
        least += inputs[0].numel() + output.numel()
        passes += 2 * output.numel()  # its bias, which it has from the batch normalisation: read and written again

    def activation(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:  # noqa: ANN401 - torch's
        nonlocal relus, passes
        relus += 2 * output.numel()
        passes += 2 * output.numel()

    def block(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:  # noqa: ANN401 - torch's
        nonlocal least, passes
        least += output.numel()  # the other summand
        passes += 2 * output.numel()

    hooks: dict[type[nn.Module], Any] = {nn.Conv2d: convolution, nn.ReLU: activation, Bottleneck: block}
    for module in shadow.modules():
        if hook := hooks.get(type(module)):
            module.register_forward_hook(hook)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        shadow(torch.empty(1, 3, size, size, device="meta"))
    weights = sum(module.weight.numel() for module in shadow.modules() if isinstance(module, nn.Conv2d))
    return Work(counter.get_total_flops(), least, least + relus, least + passes, weights, size * size)


def traced(
    model: DeepLabV3, file: Path, *, precision: str, device: str, cudnn: str, extra: Mapping[str, str] | None = None
) -> Path:
    """Write a model's file, as build_models.py would."""
    with _torch_jit_allowed():
        tracer = tracing.Tracer(model, precision=tracing.PRECISIONS[precision], device=device, cudnn=cudnn)
        module = tracer.core(mean=MEAN, std=STD)
        if cudnn.startswith("fused"):
            fuse_for_cudnn(module)
        tracing.save(module, file, dict(extra or {}))
    return file


def loaded(file: Path, device: str) -> Any:  # noqa: ANN401 - a module of TorchScript
    """Load a file as Triton's PyTorch backend does."""
    with _torch_jit_allowed():
        return torch.jit.load(str(file), map_location=device)


@contextlib.contextmanager
def _torch_jit_allowed() -> Generator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        yield
