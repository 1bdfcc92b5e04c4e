"""Weights for CPUs that are converted to oneDNN's own layout when a TorchScript file is loaded."""

from collections.abc import Mapping
from typing import Any, List, Optional, Tuple  # noqa: UP035 - TorchScript compiles with these, see PackedWeights

import torch
from torch import nn
from torch.nn import functional

from deeplabv3.building.dilation import DilatedConvolution, is_wide

_NARROW = 8  # the largest dilation of a ResNet with output stride 8 is 4, the smallest of ASPP is 12


class PackedWeights(nn.Module):
    """The weights of a convolution, converted to oneDNN's layout for an input size when the file is loaded.

    PyTorch would convert them at every call. Only for bfloat16, where one layout fits inputs of all sizes; in float32
    small inputs need another layout, and a conversion between the two takes longer than one from the plain layout.
    """

    def __init__(self, convolution: nn.Conv2d, input_size: list[int]) -> None:
        super().__init__()
        self.weights = convolution.weight.detach()
        self.padding = [int(side) for side in convolution.padding]
        self.stride = list(convolution.stride)
        self.dilation = list(convolution.dilation)
        self.groups = convolution.groups
        self.input_size = input_size

    def forward(self) -> torch.Tensor:
        """Return the weights."""
        return self.weights

    # TorchScript reads these types when it compiles, and knows only the names of typing.
    @torch.jit.export
    def __getstate__(self) -> Tuple[torch.Tensor, List[int], List[int], List[int], int, List[int], bool]:  # noqa: UP006  # pyright: ignore[reportIncompatibleMethodOverride] - TorchScript's, not copy's
        weights, size = self.weights, self.input_size
        return weights, self.padding, self.stride, self.dilation, self.groups, size, self.training

    @torch.jit.export
    def __setstate__(
        self,
        state: Tuple[torch.Tensor, List[int], List[int], List[int], int, List[int], bool],  # noqa: UP006
    ) -> None:
        weights, self.padding, self.stride, self.dilation, self.groups, self.input_size, self.training = state
        self.weights = torch.ops.mkldnn._reorder_convolution_weight(  # noqa: SLF001 - the name of the operator
            weights, self.padding, self.stride, self.dilation, self.groups, self.input_size
        )


class PackedConvolution(nn.Module):
    """A convolution with PackedWeights."""

    def __init__(self, convolution: nn.Conv2d, input_size: list[int]) -> None:
        super().__init__()
        self.packed = torch.jit.script(PackedWeights(convolution, input_size))
        self.bias = convolution.bias
        self.options: Any = (convolution.stride, convolution.padding, convolution.dilation, convolution.groups)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Take (N, C, H, W)."""
        return functional.conv2d(features, self.packed(), self.bias, *self.options)


class PackedPointwise(nn.Module):
    """A 1 x 1 convolution with PackedWeights, which TorchScript compiles."""

    def __init__(self, convolution: nn.Conv2d, input_size: list[int]) -> None:
        super().__init__()
        self.packed = PackedWeights(convolution, input_size)
        self.bias = convolution.bias
        self.padding = [int(side) for side in convolution.padding]
        self.stride, self.dilation, self.groups = (
            list(convolution.stride),
            list(convolution.dilation),
            convolution.groups,
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Take (N, C, H, W)."""
        no_scalars: List[Optional[number]] = []  # noqa: F821, UP006, UP045  # pyright: ignore - a type of TorchScript
        return torch.ops.mkldnn._convolution_pointwise(  # noqa: SLF001 - the name of the operator
            features,
            self.packed(),
            self.bias,
            self.padding,
            self.stride,
            self.dilation,
            self.groups,
            "none",
            no_scalars,
            "",
        )


class PackedDilation(nn.Module):
    """A DilatedConvolution with PackedWeights; returns the dtype of the features."""

    def __init__(self, convolution: nn.Conv2d, input_size: list[int]) -> None:
        super().__init__()

        def pointwise(part: nn.Conv2d) -> nn.Module:
            return PackedPointwise(part, input_size)

        self.convolution = torch.jit.script(DilatedConvolution(convolution, pointwise))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Take (N, C, H, W)."""
        return self.convolution(features).to(features.dtype)


def pack_weights(module: nn.Module, input_sizes: Mapping[nn.Module, list[int]]) -> None:
    """Replace each Conv2d by a module with PackedWeights for the input size given for it."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            packed = PackedDilation if is_wide(child, above=_NARROW) else PackedConvolution
            setattr(module, name, packed(child, input_sizes[child]))
        else:
            pack_weights(child, input_sizes)


def input_sizes(model: nn.Module, pixels: torch.Tensor) -> dict[nn.Module, list[int]]:
    """Return the input size of each convolution when a model runs on pixels (N, 3, H, W) float32."""
    found: dict[nn.Module, list[int]] = {}

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        found[module] = list(inputs[0].shape)

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d)]
    with torch.inference_mode():
        model(pixels)
    for hook in hooks:
        hook.remove()
    return found
