"""Weights that a CPU finds in oneDNN's own layout, into which they are brought when a TorchScript file is loaded."""

from collections.abc import Mapping
from typing import Any, List, Optional, Tuple  # noqa: UP035 - TorchScript compiles with these, see PackedWeights

import torch
from torch import nn
from torch.nn import functional

from deeplabv3.building.dilation import DilatedConvolution, is_wide

_NARROW = 8  # the largest dilation of a ResNet of output stride 8 is 4, ASPP's least is 12


class PackedWeights(nn.Module):
    """The weights of a convolution, which oneDNN's layout for an input takes the place of when the file is loaded.

    PyTorch would bring them into that layout at every call. Only for bfloat16, where one layout does for inputs of all
    sizes; in float32 small inputs want another, and to get from one to the other takes longer than to start anew.
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
        """Return them."""
        return self.weights

    # TorchScript reads these types when it compiles, and knows the names of typing only.
    @torch.jit.export
    def __getstate__(self) -> Tuple[torch.Tensor, List[int], List[int], List[int], int, List[int], bool]:  # noqa: UP006  # pyright: ignore[reportIncompatibleMethodOverride]  TorchScript's, not copy's
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
    """A PackedConvolution that TorchScript compiles."""

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
    """A DilatedConvolution with PackedWeights, in the features' type."""

    def __init__(self, convolution: nn.Conv2d, input_size: list[int]) -> None:
        super().__init__()

        def pointwise(part: nn.Conv2d) -> nn.Module:
            return PackedPointwise(part, input_size)

        self.convolution = torch.jit.script(DilatedConvolution(convolution, pointwise))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Take (N, C, H, W)."""
        return self.convolution(features).to(features.dtype)


def pack_weights(module: nn.Module, input_sizes: Mapping[nn.Module, list[int]]) -> None:
    """Put PackedConvolution in the place of each Conv2d, for inputs of the size given for it."""
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d):
            packed = PackedDilation if is_wide(child, above=_NARROW) else PackedConvolution
            setattr(module, name, packed(child, input_sizes[child]))
        else:
            pack_weights(child, input_sizes)


def input_sizes(model: nn.Module, pixels: torch.Tensor) -> dict[nn.Module, list[int]]:
    """Return the size of each convolution's input when a model takes pixels."""
    found: dict[nn.Module, list[int]] = {}

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], _: object) -> None:
        found[module] = list(inputs[0].shape)

    hooks = [module.register_forward_hook(note) for module in model.modules() if isinstance(module, nn.Conv2d)]
    with torch.inference_mode():
        model(pixels)
    for hook in hooks:
        hook.remove()
    return found
