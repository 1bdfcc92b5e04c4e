"""How much a model computes and moves for one picture, counted without computing it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.resnet import Bottleneck

if TYPE_CHECKING:
    from torchvision.models.segmentation.deeplabv3 import DeepLabV3


@dataclass(frozen=True, slots=True)
class Work:
    """What one picture costs.

    Attributes:
        flops: multiplications and additions, each counted: twice the published 178.72 and 258.74 thousand millions,
            which count a multiplication and the addition after it as one.
        least_values: values that are read and written where each convolution reads its input once and writes its
            output once, and all else happens on the way.
        passes_values: the same where a bias, a residual sum and a ReLU are passes over memory of their own, as they are
            in PyTorch's operators for GPUs.
        weights: values that are read once a batch.
    """

    flops: int
    least_values: int
    passes_values: int
    weights: int

    def bytes_moved(self, itemsize: int, batch: int, *, fused: bool) -> float:
        """Estimate the bytes a picture that memory must move; caches may spare some, and a halo or a copy adds some."""
        return itemsize * ((self.least_values if fused else self.passes_values) + self.weights / batch)


def count_work(model: DeepLabV3, size: int) -> Work:
    """Count on a copy of the model on torch's `meta` device, where nothing is computed."""
    shadow = copy.deepcopy(model).eval().to("meta")
    least, passes = 0, 0

    def convolution(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal least, passes
        least += inputs[0].numel() + output.numel()
        passes += 2 * output.numel()  # its bias, which it has from the batch normalisation: read and written again

    def activation(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:  # noqa: ANN401  torch's
        nonlocal passes
        passes += 2 * output.numel()

    def block(_module: nn.Module, _inputs: Any, output: torch.Tensor) -> None:  # noqa: ANN401  torch's
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
    return Work(counter.get_total_flops(), least, least + passes, weights)
