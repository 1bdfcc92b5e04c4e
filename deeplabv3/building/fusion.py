"""Fuse convolutions with the operators after them, as oneDNN and cuDNN can but a frozen TorchScript does not.

Unfused, each ReLU and each residual sum is a separate pass over memory, and on a GPU each bias too. oneDNN and cuDNN
compute them at the end of the preceding convolution, and PyTorch has operators for it: for CPUs
`mkldnn::_convolution_pointwise`, which torch.compile emits too, for GPUs `aten::cudnn_convolution_add_relu`. Each runs
only on its device.
"""

# pyright: reportPrivateUsage=false
# torch's rewriting of TorchScript has no public name.

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

# The arguments of aten::_convolution; the last four choose implementations.
_ARGUMENTS = (
    "%x, %weight, %bias, %stride, %padding, %dilation, %transposed, %output_padding, %groups, %b1, %b2, %b3, %b4"
)
_POINTWISE = "%weight, %bias, %padding, %stride, %dilation, %groups"
_RELUS = ("aten::relu", "aten::relu_")
_CUDNN_CHANNELS = 8
_CUDNN = "%bias, %stride, %padding, %dilation, %groups"
_ALONE = f"aten::cudnn_convolution_relu(%x, %weight, {_CUDNN})"
_NAMES = {"%add": "add", "%relu": "relu", "%none": "none"}


def fold_batch_norm(module: nn.Module) -> None:
    """Fold each batch normalization into the convolution registered right before it, in the weights' own precision.

    torchvision's ResNet and heads register and apply them in that order. `torch.jit.freeze` would fold them too, but
    after the weights were rounded to a lower precision.
    """
    for child in module.children():
        fold_batch_norm(child)
    for (_, convolution), (name, norm) in pairwise(list(module.named_children())):
        if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            _fold(convolution, norm)
            setattr(module, name, nn.Identity())


def _fold(convolution: nn.Conv2d, norm: Any) -> None:  # noqa: ANN401 - buffers have no types
    convolution.weight, convolution.bias = fuse_conv_bn_weights(
        convolution.weight,
        convolution.bias,
        norm.running_mean,
        norm.running_var,
        norm.eps,
        norm.weight,
        norm.bias,
    )


class GlobalAveragePool(nn.Module):
    """AdaptiveAvgPool2d(1) for channels-last bfloat16, as a matrix product that oneDNN accumulates in float32.

    PyTorch's own takes seven times as long on a CPU, because it copies its input to float32 first.
    """

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Take (N, C, H, W), return (N, C, 1, 1)."""
        count, channels, height, width = features.shape
        rows = features.permute(0, 2, 3, 1).reshape(count, height * width, channels)
        sums = torch.matmul(features.new_ones((count, 1, height * width)), rows)
        return (sums / (height * width)).permute(0, 2, 1).reshape(count, channels, 1, 1)


def replace_pooling(module: nn.Module) -> None:
    """Replace each AdaptiveAvgPool2d(1) by a GlobalAveragePool."""
    for name, child in module.named_children():
        if isinstance(child, nn.AdaptiveAvgPool2d):
            setattr(module, name, GlobalAveragePool())
        else:
            replace_pooling(child)


def inline(module: torch.jit.ScriptModule) -> None:
    """Inline the submodules into one graph."""
    torch._C._jit_pass_inline(module.graph)  # noqa: SLF001


def fuse_convolutions(module: torch.jit.ScriptModule) -> None:
    """Fuse each convolution of an inlined module with the sum and ReLU, or the ReLU, that follow it, if any.

    Convolutions without them are replaced too, so that 1 x 1 convolutions run in oneDNN with any number of threads. The
    sum overwrites its other summand, the input of the block or the output of its downsampling, which nothing in a
    ResNet reads later.
    """
    _fuse_relu(
        module,
        alone=f"mkldnn::_convolution_pointwise(%x, {_POINTWISE}, %relu, %empty, %missing)",
        after_sum=f"mkldnn::_convolution_pointwise_(%other, %x, {_POINTWISE}, %add, %alpha, %relu, %empty, %missing)",
    )
    _rewrite(module, [], f"mkldnn::_convolution_pointwise(%x, {_POINTWISE}, %none, %empty, %missing)")


def fuse_for_cudnn(module: torch.jit.ScriptModule) -> None:
    """Make each convolution of an inlined module add its bias, the residual sum and the ReLU before it writes.

    On a GPU PyTorch adds the bias of `aten::_convolution` in a separate pass (ATen/native/Convolution.cpp). These
    convolutions are not changed: those without a ReLU; those whose input channels are no multiple of 8, here the first
    with 3 channels, as a precaution, because a convolution that cuDNN cannot fuse is an error; those with only a ReLU
    and more output than input channels, see _convolution_relu. The operators choose algorithms and TensorFloat-32 by
    the switches of the running process, by default heuristics and yes.
    """
    _exclude_unsuitable(module)
    _fuse_relu(
        module,
        alone=_ALONE,
        after_sum=f"aten::cudnn_convolution_add_relu(%x, %weight, %other, %alpha, {_CUDNN})",
    )
    before = f"graph(%x, %weight, {_CUDNN}):\n  %r = {_ALONE}\n  return (%r)"
    after = str(torch.jit.script(_convolution_relu).graph)
    torch._C._jit_pass_custom_pattern_based_rewrite_graph(before, after, module.graph)  # noqa: SLF001


def _convolution_relu(  # noqa: PLR0917 - the arguments of the operator
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> torch.Tensor:
    """Compute `aten::cudnn_convolution_relu` with a defined operand. TorchScript compiles this function.

    PyTorch's operator computes relu(convolution + 0 * z + bias) in cuDNN, where z is its uninitialized output
    (ATen/native/cudnn/ConvShared.cpp): if that memory holds a NaN, 0 * NaN is NaN. Here z is the start of the input,
    read with the output's shape. That costs nothing and is finite as long as the network is: if fp16 overflows in one
    picture, another of its batch may get NaN too.
    """
    channels = weight.size(0)
    height = (x.size(2) + 2 * padding[0] - dilation[0] * (weight.size(2) - 1) - 1) // stride[0] + 1
    width = (x.size(3) + 2 * padding[1] - dilation[1] * (weight.size(3) - 1) - 1) // stride[1] + 1
    shape = [x.size(0), channels, height, width]
    z = x.as_strided(shape, [channels * height * width, 1, channels * width, channels])  # channels last
    return torch.ops.aten.cudnn_convolution_add_relu(x, weight, z, 0, bias, stride, padding, dilation, groups)


def separate_pointwise(module: torch.jit.ScriptModule) -> None:
    """Make the bias, the sum and the ReLU after each convolution of an inlined module separate, fusible operators.

    On a GPU the TensorExpr fuser of TorchScript's executor, which is on by default, turns them into one pass over
    memory. It fuses neither a bias inside of a convolution nor in-place operators.
    """
    graph: Any = module.graph
    torch._C._jit_pass_remove_mutation(graph)  # noqa: SLF001
    for convolution in graph.findAllNodes("aten::_convolution"):
        bias = list(convolution.inputs())[2].toIValue()
        if bias is None:
            continue
        with graph.insert_point_guard(convolution):
            none, one = graph.insertConstant(None), graph.insertConstant(1)
            addend = graph.insertConstant(bias.reshape(1, -1, 1, 1))
        convolution.replaceInput(2, none)
        found = convolution.output()
        add = graph.create("aten::add", [found, addend, one])
        add.insertAfter(convolution)
        found.replaceAllUsesWith(add.output())
        add.replaceInput(0, found)


def _exclude_unsuitable(module: torch.jit.ScriptModule) -> None:
    """Replace the ReLU after an unsuitable convolution by a clamp, so that the two are not fused."""
    graph: Any = module.graph
    for convolution in graph.findAllNodes("aten::_convolution"):
        inputs = list(convolution.inputs())
        outputs, channels = inputs[1].toIValue().shape[:2]
        grows = outputs > channels * inputs[8].toIValue()  # of each group
        for relu in [use.user for use in convolution.output().uses()]:
            if (channels % _CUDNN_CHANNELS or grows) and relu.kind() in _RELUS:
                with graph.insert_point_guard(relu):  # otherwise the graph would continue at a removed node
                    clamp = graph.create("aten::clamp_min", [convolution.output(), graph.insertConstant(0)])
                    graph.insertNode(clamp)
                relu.output().replaceAllUsesWith(clamp.output())
                relu.destroy()


def _fuse_relu(module: torch.jit.ScriptModule, *, alone: str, after_sum: str) -> None:
    """Replace a convolution and its ReLU by one operator, or by another operator if there is a sum between them."""
    for relu in _RELUS:
        for add in ("aten::add", "aten::add_"):
            for summands in ("%y, %other", "%other, %y"):
                following = [f"%s = {add}({summands}, %alpha)", f"%r = {relu}(%s)"]
                _rewrite(module, following, after_sum, names=", %other, %alpha")
        _rewrite(module, [f"%r = {relu}(%y)"], alone)


def _rewrite(module: torch.jit.ScriptModule, following: Sequence[str], replacement: str, *, names: str = "") -> None:
    """Replace a convolution and the operators after it, up to the value %r, by one operator."""
    result = "%y" if following else "%r"
    pattern = [f"{result} = aten::_convolution({_ARGUMENTS})", *following]
    constants = [f'{name} : str = prim::Constant[value="{text}"]()' for name, text in _NAMES.items()]
    constants += ["%empty : Scalar?[] = prim::ListConstruct()", "%missing : NoneType = prim::Constant()"]
    before, after = (
        "\n  ".join([f"graph({_ARGUMENTS}{names}):", *lines, "return (%r)"])
        for lines in (pattern, [*constants, f"%r = {replacement}"])
    )
    torch._C._jit_pass_custom_pattern_based_rewrite_graph(before, after, module.graph)  # noqa: SLF001
