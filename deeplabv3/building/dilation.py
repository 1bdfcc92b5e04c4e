"""Convolutions with a large dilation, computed as a sum over their weights.

ASPP's weights are 12, 24 and 36 apart on features of 65 x 65, so the outer weights mostly read padding, and oneDNN's
kernels for bfloat16 and int8 are slow at such distances: with AMX, the three convolutions took 900 of a ResNet-50's
1,120 ms in bfloat16, and 130 of 215 ms in int8. A 1 x 1 convolution per weight, over the part of the features where
that weight reads no padding, is fast. In float32 oneDNN's own kernels skip the padding. On a GPU these parts would be
copies of most of the features for each weight; the corners of the widest convolution need no copies.
"""

from collections.abc import Callable

import torch
from torch import nn


class DilatedConvolution(nn.Module):
    """A 3 x 3 convolution whose padding equals its dilation.

    Its forward takes (N, C, H, W), channels last, and returns float32. TorchScript compiles this class, because a trace
    would keep the sizes of its example.

    Args:
        convolution: the convolution to compute.
        pointwise: returns the module that computes a 1 x 1 convolution.
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


class CornerConvolution(nn.Module):
    """A 3 x 3 convolution whose padding equals its dilation, for features of up to twice the dilation.

    At that size no output position uses all three rows or columns of weights. Each of the four corners uses 2 x 2
    weights on the same features, so the corners are one convolution with four times the output channels. The middle
    rows and columns use a third of the weights. At 65 x 65 and dilation 36 that is 43 % of the products. Features of
    other sizes are convolved as usual. TorchScript compiles this class, because a trace would keep the sizes of its
    example.

    Args:
        convolution: the convolution to compute.
    """

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        weight = convolution.weight.detach()
        ends = (slice(1, None), slice(None, 2))
        corners = torch.cat([weight[:, :, rows, columns] for rows in ends for columns in ends])
        self.rate = int(convolution.dilation[0])
        self.weight, self.corners, self.row, self.column = (
            nn.Parameter(part.contiguous(memory_format=torch.channels_last))
            for part in (weight, corners, weight[:, :, 1:2], weight[:, :, :, 1:2])
        )
        self.bias = convolution.bias

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Take (N, C, H, W), channels last."""
        rate, height, width = self.rate, features.shape[2], features.shape[3]
        bias = self.bias
        if not (rate < height < 2 * rate and rate < width < 2 * rate):
            return torch.conv2d(features, self.weight, bias, padding=[rate, rate], dilation=[rate, rate])
        rows, columns = height - rate, width - rate  # of a corner
        four = torch.conv2d(features, self.corners, None if bias is None else bias.repeat(4), dilation=[rate, rate])
        top_left, top_right, bottom_left, bottom_right = four.chunk(4, 1)
        middle_rows = features.narrow(2, rows, rate - rows).contiguous(memory_format=torch.channels_last)
        middle_columns = features.narrow(3, columns, rate - columns).contiguous(memory_format=torch.channels_last)
        middle = torch.conv2d(middle_rows, self.row, bias, padding=[0, rate], dilation=[rate, rate])
        sides = torch.conv2d(middle_columns, self.column, bias, padding=[rate, 0], dilation=[rate, rate])
        top = torch.cat([top_left, sides.narrow(2, 0, rows), top_right], 3)
        bottom = torch.cat([bottom_left, sides.narrow(2, rate, rows), bottom_right], 3)
        return torch.cat([top, middle, bottom], 2)


def use_corners(module: nn.Module, *, side: int) -> None:
    """Replace each convolution whose dilation exceeds half of the features' side by a CornerConvolution."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and is_wide(child, above=side // 2):
            if child.groups == 1:
                setattr(module, name, torch.jit.script(CornerConvolution(child)))
        else:
            use_corners(child, side=side)


def is_wide(convolution: nn.Conv2d, *, above: int) -> bool:
    """Return whether a convolution is 3 x 3 with a dilation above a limit, such as ASPP's."""
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
