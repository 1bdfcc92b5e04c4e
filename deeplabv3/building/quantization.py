"""int8 for CPUs: a DeepLabV3 whose convolutions multiply 8-bit integers, in one TorchScript file.

Weights are rounded to int8, with one scale for each output channel. Activations are rounded to uint8, with one scale
for each tensor, from the range that torch.ao's observers found in calibration pictures. Each convolution also computes
the ReLU, or the residual sum and the ReLU, that follow it, and the rounding to the scale of the next tensor, so layers
pass on uint8. The operators are those that torch.compile emits for CPUs, `onednn::qconv2d_pointwise` in libtorch. The
1 x 1 convolution after the image-level pooling and the auxiliary head stay in float32.
"""

import copy
import re
from collections.abc import Iterable
from typing import Any, List, NamedTuple, Optional, Tuple  # noqa: UP035 - TorchScript compiles with these names

import torch
from torch import nn
from torch.ao.quantization import HistogramObserver, PerChannelMinMaxObserver
from torchvision.models.segmentation.deeplabv3 import DeepLabV3

from deeplabv3.building.dilation import DilatedConvolution, is_wide
from deeplabv3.building.fusion import GlobalAveragePool, fold_batch_norm
from deeplabv3.errors import InvalidOptionError

_WIDE = 12  # up to this dilation, oneDNN's own kernel is as fast at 65 x 65
# Symmetric, because oneDNN's weights have no zero points.
_WEIGHT_RANGE = (-127, 127)
_ACTIVATION_RANGE = (0, 255)
# Convolutions that stay in float32, or have the same input as another one.
_UNOBSERVED = re.compile(r"aux_classifier\.|classifier\.0\.convs\.[1-4]\.")


class Grid(NamedTuple):
    """The quantization of a uint8 tensor: it stands for (value - zero_point) * scale."""

    scale: float
    zero_point: int


class Int8Weights(nn.Module):
    """The int8 weights of a convolution, converted to oneDNN's layout when the file is loaded."""

    def __init__(self, convolution: nn.Conv2d, grid: Grid, input_size: list[int]) -> None:
        super().__init__()
        weight = convolution.weight.detach()
        least, most = _WEIGHT_RANGE
        observer = PerChannelMinMaxObserver(
            dtype=torch.qint8, qscheme=torch.per_channel_symmetric, quant_min=least, quant_max=most
        )
        observer(weight)
        scales, zero_points = observer.calculate_qparams()
        self.scales = scales.float()
        self.plain = torch.quantize_per_channel(weight, scales.double(), zero_points, 0, torch.qint8).int_repr()
        self.input_scale, self.input_zero_point = grid
        self.stride, self.dilation = list(convolution.stride), list(convolution.dilation)
        self.padding = [int(side) for side in convolution.padding]
        self.groups = convolution.groups
        self.input_size = input_size
        self.packed = self._pack()

    def forward(self) -> torch.Tensor:
        """Return the packed weights."""
        return self.packed

    def _pack(self) -> torch.Tensor:
        return torch.ops.onednn.qconv_prepack(
            self.plain,
            self.scales,
            self.input_scale,
            self.input_zero_point,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.input_size,
        )

    # TorchScript reads these types when it compiles, and knows only the names of typing.
    @torch.jit.export
    def __getstate__(  # pyright: ignore[reportIncompatibleMethodOverride] - TorchScript's, not copy's
        self,
    ) -> Tuple[torch.Tensor, torch.Tensor, float, int, List[int], List[int], List[int], int, List[int], bool]:  # noqa: UP006
        return (
            self.plain,
            self.scales,
            self.input_scale,
            self.input_zero_point,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.input_size,
            self.training,
        )

    @torch.jit.export
    def __setstate__(
        self,
        state: Tuple[torch.Tensor, torch.Tensor, float, int, List[int], List[int], List[int], int, List[int], bool],  # noqa: UP006
    ) -> None:
        (
            self.plain,
            self.scales,
            self.input_scale,
            self.input_zero_point,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.input_size,
            self.training,
        ) = state
        self.packed = self._pack()
        self.plain = torch.zeros([0], dtype=torch.int8)  # a loaded model is not saved again


class QuantizedConvolution(nn.Module):
    """A convolution of uint8 that adds its bias and, if given, a residual, and applies the ReLU before it writes.

    Its forward takes (N, C, H, W) uint8 and returns uint8 on the output grid, or float32 if there is no output grid.
    TorchScript compiles this class, because its tracer does not know the operators' lists of scalars.
    """

    def __init__(
        self,
        convolution: nn.Conv2d,
        grid: Grid,
        output: Grid | None,
        input_size: list[int],
        *,
        relu: bool = True,
        residual: Grid | None = None,
    ) -> None:
        super().__init__()
        self.weights = Int8Weights(convolution, grid, input_size)
        self.scales = self.weights.scales
        self.zero_points = torch.zeros(len(self.scales), dtype=torch.int32)
        bias = convolution.bias
        self.bias = torch.zeros(len(self.scales)) if bias is None else bias.detach()
        self.input_scale, self.input_zero_point = grid
        self.output_scale, self.output_zero_point = output or Grid(1.0, 0)
        self.residual_scale, self.residual_zero_point = residual or Grid(1.0, 0)
        self.dtype = torch.float32 if output is None else torch.uint8
        self.activation = "relu" if relu else "none"
        self.stride, self.dilation = list(convolution.stride), list(convolution.dilation)
        self.padding = [int(side) for side in convolution.padding]
        self.groups = convolution.groups

    def forward(self, features: torch.Tensor, residual: Optional[torch.Tensor] = None) -> torch.Tensor:  # noqa: UP045
        """Convolve; a residual, which has the size of the output, is overwritten."""
        no_scalars: List[Optional[number]] = []  # noqa: F821, UP006, UP045  # pyright: ignore - a type of TorchScript
        if residual is None:
            return torch.ops.onednn.qconv2d_pointwise(
                features,
                self.input_scale,
                self.input_zero_point,
                self.weights(),
                self.scales,
                self.zero_points,
                self.bias,
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
                self.output_scale,
                self.output_zero_point,
                self.dtype,
                self.activation,
                no_scalars,
                "",
            )
        return torch.ops.onednn.qconv2d_pointwise(
            features,
            self.input_scale,
            self.input_zero_point,
            self.weights(),
            self.scales,
            self.zero_points,
            residual,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            self.output_scale,
            self.output_zero_point,
            self.dtype,
            self.residual_scale,
            self.residual_zero_point,
            "sum",
            1.0,
            self.activation,
            no_scalars,
            "",
        )


class QuantizedDilation(nn.Module):
    """A DilatedConvolution from uint8 to uint8, with a ReLU."""

    def __init__(self, convolution: nn.Conv2d, grid: Grid, output: Grid, input_size: list[int]) -> None:
        super().__init__()

        def pointwise(part: nn.Conv2d) -> nn.Module:
            return QuantizedConvolution(part, grid, None, input_size, relu=False)

        self.convolution = torch.jit.script(DilatedConvolution(convolution, pointwise))
        self.grid = output

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Convolve (N, C, H, W)."""
        return _rounded(torch.relu(self.convolution(features)), self.grid)


class Ranges:
    """The ranges of a model's tensors, observed while it runs on calibration pictures.

    Args:
        model: float32, its batch normalization folded.
    """

    def __init__(self, model: DeepLabV3) -> None:
        self._model = model
        least, most = _ACTIVATION_RANGE
        self._convolutions = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
        self._of_outputs = {module for name, module in self._convolutions.items() if "downsample" in name}
        self._observers: dict[nn.Module, HistogramObserver] = {
            module: HistogramObserver(dtype=torch.quint8, quant_min=least, quant_max=most)
            for name, module in self._convolutions.items()
            if not _UNOBSERVED.match(name)
        }
        self.input_sizes: dict[nn.Module, list[int]] = {}

    def observe(self, pictures: Iterable[torch.Tensor]) -> None:
        """Run the model on pictures, which are pixels (1, 3, H, W) float32, normalized."""
        hooks = [module.register_forward_hook(self._note) for module in self._convolutions.values()]
        with torch.inference_mode():
            for pixels in pictures:
                self._model(pixels)
        for hook in hooks:
            hook.remove()

    def _note(self, module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        self.input_sizes.setdefault(module, list(inputs[0].shape))
        if module in self._observers:
            self._observers[module](output if module in self._of_outputs else inputs[0])

    def grid(self, convolution: nn.Module) -> Grid:
        """Return the grid of a convolution's input, or of its output if it is part of a downsampling."""
        scale, zero_point = self._observers[convolution].calculate_qparams()
        return Grid(float(scale), int(zero_point))

    def quantized(
        self,
        convolution: nn.Conv2d,
        grid: Grid,
        output: Grid | None,
        *,
        relu: bool = True,
        residual: Grid | None = None,
    ) -> nn.Module:
        """Return the convolution in int8, from one grid to another."""
        size = self.input_sizes[convolution]
        if output is not None and is_wide(convolution, above=_WIDE):
            return QuantizedDilation(convolution, grid, output, size)
        return torch.jit.script(QuantizedConvolution(convolution, grid, output, size, relu=relu, residual=residual))


def _rounded(features: torch.Tensor, grid: Grid) -> torch.Tensor:
    return torch.quantize_per_tensor(features, grid.scale, grid.zero_point, torch.quint8).int_repr()


class QuantizedBottleneck(nn.Module):
    """A block of ResNet from uint8 to uint8."""

    def __init__(self, block: Any, output: Grid, ranges: Ranges) -> None:  # noqa: ANN401 - a Bottleneck of torchvision
        super().__init__()
        taken, between, last = (ranges.grid(part) for part in (block.conv1, block.conv2, block.conv3))
        residual = taken
        self.downsample = None
        if block.downsample is not None:
            convolution = block.downsample[0]
            residual = ranges.grid(convolution)
            self.downsample = ranges.quantized(convolution, taken, residual, relu=False)
        self.conv1 = ranges.quantized(block.conv1, taken, between)
        self.conv2 = ranges.quantized(block.conv2, between, last)
        self.conv3 = ranges.quantized(block.conv3, last, output, residual=residual)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Take (N, C, H, W) uint8; without downsampling, the output overwrites it."""
        found = self.conv2(self.conv1(features))
        residual = features if self.downsample is None else self.downsample(features)
        return self.conv3(found, residual)


class QuantizedBackbone(nn.Module):
    """The ResNet of a DeepLabV3: takes pixels (N, 3, H, W) float32, returns `out` uint8 and, if kept, `aux` float32."""

    def __init__(self, backbone: nn.Module, output: Grid, ranges: Ranges, *, aux: bool) -> None:
        super().__init__()
        layers: dict[str, nn.Module] = dict(backbone.named_children())
        stem: Any = layers["conv1"]
        self.pool = layers["maxpool"]
        stages: list[list[Any]] = [list(layers[f"layer{number}"].children()) for number in range(1, 5)]
        blocks = [block for stage in stages for block in stage]
        grids = [ranges.grid(block.conv1) for block in blocks] + [output]
        self.pixels, self.grid = ranges.grid(stem), grids[0]
        self.stem = ranges.quantized(stem, self.pixels, self.grid)
        self.blocks = nn.ModuleList(
            QuantizedBottleneck(block, grid, ranges) for block, grid in zip(blocks, grids[1:], strict=True)
        )
        self.aux_after = len(blocks) - len(stages[3]) if aux else None
        self.aux_grid = grids[-1 - len(stages[3])]

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the features for the heads."""
        features = self.stem(torch.quantize_per_tensor(pixels, *self.pixels, torch.quint8).int_repr())
        # As a quantized tensor, because torch has a fast pooling for it.
        features = self.pool(torch.ops.aten._make_per_tensor_quantized_tensor(features, *self.grid)).int_repr()  # noqa: SLF001 - its only name
        found: dict[str, torch.Tensor] = {}
        for number, block in enumerate(self.blocks):
            if number == self.aux_after:
                scale, zero_point = self.aux_grid
                found["aux"] = (features.float() - zero_point) * scale
            features = block(features)
        found["out"] = features
        return found


class QuantizedHead(nn.Module):
    """ASPP and the classifier after it: takes uint8 features, returns float32 logits at their resolution."""

    def __init__(self, head: Any, ranges: Ranges) -> None:  # noqa: ANN401 - a Sequential of torchvision
        super().__init__()
        aspp, convolution, _, _, last = head
        *branches, pooling = aspp.convs
        project = aspp.project[0]
        self.grid, self.joined = ranges.grid(branches[0][0]), ranges.grid(project)
        projected, classified = ranges.grid(convolution), ranges.grid(last)
        self.branches = nn.ModuleList(ranges.quantized(branch[0], self.grid, self.joined) for branch in branches)
        self.mean = GlobalAveragePool()
        self.pooled = nn.Sequential(pooling[1], nn.ReLU())
        self.project = ranges.quantized(project, self.joined, projected)
        self.convolution = ranges.quantized(convolution, projected, classified)
        self.last = ranges.quantized(last, classified, None, relu=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Take (N, 2048, h, w) uint8, return (N, classes, h, w) float32."""
        # bfloat16 holds 0 to 255 exactly, and oneDNN sums it in float32 in a fifth of the time of torch's integer sum.
        mean = self.mean(features.to(torch.bfloat16)).float()
        pooled = _rounded(self.pooled((mean - self.grid.zero_point) * self.grid.scale), self.joined)
        parts = [branch(features) for branch in self.branches]
        # Concatenation is ten times as fast if all parts have the same layout.
        parts.append(pooled.expand_as(parts[0]).contiguous(memory_format=torch.channels_last))
        return self.last(self.convolution(self.project(torch.cat(parts, 1))))


def quantize(model: DeepLabV3, pictures: Iterable[torch.Tensor]) -> DeepLabV3:
    """Return a copy of a model in int8; the model itself is not changed.

    Args:
        model: float32, in evaluation mode.
        pictures: pixels (1, 3, H, W) float32, normalized, from which the ranges of activations are taken.

    Raises:
        InvalidOptionError: the model has InstanceNorm2d, which depends on the picture and cannot be folded.
    """
    model = copy.deepcopy(model)
    fold_batch_norm(model)
    if any(isinstance(module, nn.InstanceNorm2d) for module in model.modules()):
        raise InvalidOptionError(
            "--precision int8 does not support InstanceNorm2d, which this model has; use another --precision"
        )
    ranges = Ranges(model)
    ranges.observe(pictures)
    head: Any = model.classifier
    output = ranges.grid(head[0].convs[0][0])
    model.backbone = QuantizedBackbone(model.backbone, output, ranges, aux=model.aux_classifier is not None)  # pyright: ignore[reportAttributeAccessIssue]
    model.classifier = QuantizedHead(head, ranges)
    return model.eval()
