"""Convolutions with a large dilation, as the sum of what each of their weights adds.

ASPP's weights are 12, 24 and 36 apart on features of 65 x 65, so that the outer ones mostly meet padding, and oneDNN's
kernels for bfloat16 and int8 are slow with such distances: with AMX, the three took 900 of a ResNet-50's 1,120 ms in
bfloat16, and 130 of 215 ms in int8. A convolution of 1 x 1 for each weight, over the part of the features where it
meets no padding, is quick. In float32 oneDNN's own kernels skip the padding.
"""

from collections.abc import Callable

import torch
from torch import nn


class DilatedConvolution(nn.Module):
    """A 3 x 3 convolution whose padding equals its dilation.

    Its forward takes (N, C, H, W), channels last, and returns float32. TorchScript compiles this class, because a trace
    would keep the sizes of its example.

    Args:
        convolution: what is to be computed.
        pointwise: returns the module that computes a convolution of 1 x 1.
    """

    def __init__(self, convolution: nn.Conv2d, pointwise: Callable[[nn.Conv2d], nn.Module]) -> None:
        super().__init__()
        rate = int(convolution.dilation[0])
        places = [(row, column) for row in range(3) for column in range(3) if (row, column) != (1, 1)]
        self.center = pointwise(_one_weight(convolution, 1, 1, convolution.bias))
        self.others = nn.ModuleList(pointwise(_one_weight(convolution, *place, None)) for place in places)
        self.offsets = [((row - 1) * rate, (column - 1) * rate) for row, column in places]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve."""
        height, width = features.shape[2], features.shape[3]
        total = self.center(features).to(torch.float)
        for number, weight in enumerate(self.others):
            down, right = self.offsets[number]
            rows, columns = height - abs(down), width - abs(right)
            if rows > 0 and columns > 0:
                part = features.narrow(2, max(down, 0), rows).narrow(3, max(right, 0), columns)
                found = weight(part.contiguous(memory_format=torch.channels_last))
                total.narrow(2, max(-down, 0), rows).narrow(3, max(-right, 0), columns).add_(found)
        return total


def is_wide(convolution: nn.Conv2d, *, above: int) -> bool:
    """Return whether a convolution is one of 3 x 3 with a dilation above a limit, such as ASPP's."""
    rate = convolution.dilation[0]
    return (
        rate > above
        and convolution.kernel_size == (3, 3)
        and convolution.stride == (1, 1)
        and convolution.dilation == convolution.padding == (rate, rate)
    )


def _one_weight(convolution: nn.Conv2d, row: int, column: int, bias: torch.Tensor | None) -> nn.Conv2d:
    found = nn.Conv2d(convolution.in_channels, convolution.out_channels, 1, groups=convolution.groups, bias=False)
    weight = convolution.weight.detach()[:, :, row : row + 1, column : column + 1]
    found.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last))
    found.bias = None if bias is None else nn.Parameter(bias.detach())
    return found
