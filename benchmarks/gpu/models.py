"""The measured models: untrained models with calibrated batch normalization, their work, and their files.

With the initial statistics, the values of an untrained ResNet-101 grow from block to block and overflow in fp16. A few
passes in training mode set the statistics, after which the logits are of order 1.
"""

from __future__ import annotations

import copy
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
    from collections.abc import Mapping
    from pathlib import Path

    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

# cuDNN's tensor core kernels need channels in multiples of these numbers, according to NVIDIA's performance guide.
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
            # Smooth shapes with noise, as in pictures, because noise alone averages out.
            coarse = torch.randn((_BATCH, 3, 9, 9), generator=generator)
            fine = torch.randn((_BATCH, 3, _SIZE, _SIZE), generator=generator)
            smooth = nn.functional.interpolate(coarse, size=(_SIZE, _SIZE), mode="bicubic", align_corners=False)
            model((smooth + 0.2 * fine).to(device))
    return model.cpu().eval()


@dataclass(frozen=True, slots=True)
class Work:
    """The work of one picture.

    Attributes:
        flops: multiplications and additions, counted separately: twice 168.73 and 248.75 GFLOP, which count both as
            one. The published 178.72 and 258.74 include the auxiliary head, which is not served.
        least_values: values that are read and written if each convolution reads its input once, writes its output
            once, and does everything else on the way.
        relu_values: the same if the operations after a convolution, up to the ReLU, are one further pass over memory.
        passes_values: the same if a bias, a residual sum and a ReLU are a pass each, as in PyTorch's operators for
            GPUs.
        weights: values that are read once per batch.
        pixels: of the picture.
    """

    flops: int
    least_values: int
    relu_values: int
    passes_values: int
    weights: int
    pixels: int

    def bytes_moved(self, precision: str, batch: int, *, cudnn: str) -> float:
        """Estimate the bytes per picture that memory must move. Caches can save some; halos and copies add some.

        cuDNN pads the 3 channels of the input to a multiple for the tensor cores: 3 channels are read, and the multiple
        is written and read again. The operations on the padding, 0.6 % for a multiple of 8, are not in `flops`.
        """
        mode = cudnn.removesuffix("-corners")
        values = {"fused": self.least_values, "tensorexpr": self.relu_values}.get(mode, self.passes_values)
        padded = _CHANNEL_MULTIPLES[precision]
        pad = (2 * padded if padded > 1 else 0) * self.pixels  # in addition to the 3 in least_values
        return tracing.PRECISIONS[precision].dtype.itemsize * (values + pad + self.weights / batch)


def count_work(model: DeepLabV3, size: int) -> Work:
    """Count the work with a copy of the model on torch's `meta` device, which computes nothing."""
    shadow = copy.deepcopy(model).eval().to("meta")
    least, relus, passes = 0, 0, 0

    def convolution(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal least, passes
        least += inputs[0].numel() + output.numel()
        passes += 2 * output.numel()  # the bias from the batch normalization: read and written again

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
    """Write a model's file, as build_models.py does."""
    with tracing.without_deprecation_warnings():
        tracer = tracing.Tracer(model, precision=tracing.PRECISIONS[precision], device=device, cudnn=cudnn)
        module = tracer.core(mean=MEAN, std=STD)
        if cudnn.startswith("fused"):
            fuse_for_cudnn(module)
        tracing.save(module, file, dict(extra or {}))
    return file


def loaded(file: Path, device: str) -> Any:  # noqa: ANN401 - a module of TorchScript
    """Load a file as Triton's PyTorch backend does."""
    with tracing.without_deprecation_warnings():
        return torch.jit.load(str(file), map_location=device)
