"""What makes a traced DeepLabV3 as fast on a CPU as the inference runtimes: the fusions that oneDNN offers.

A frozen TorchScript leaves each ReLU and each residual sum a pass over memory of its own. oneDNN computes them at the
end of the convolution before them, and PyTorch has the operators for it (`mkldnn::_convolution_pointwise`, which
torch.compile emits for CPUs too). They run on CPUs only.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torchvision.ops import FrozenBatchNorm2d

# The arguments of aten::_convolution; the last four choose implementations.
_ARGUMENTS = (
    "%x, %weight, %bias, %stride, %padding, %dilation, %transposed, %output_padding, %groups, %b1, %b2, %b3, %b4"
)
_POINTWISE = "%weight, %bias, %padding, %stride, %dilation, %groups"
_NAMES = {"%add": "add", "%relu": "relu", "%none": "none"}


def fold_batch_norm(module: nn.Module) -> None:
    """Fold each batch normalisation into the convolution registered right before it, in the weights' own precision.

    That is the order in which torchvision's ResNet and heads register and apply them. `torch.jit.freeze` would do it
    too, but after the weights were rounded to a lower precision.
    """
    for child in module.children():
        fold_batch_norm(child)
    for (_, before), (name, norm) in pairwise(list(module.named_children())):
        if isinstance(before, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d | FrozenBatchNorm2d):
            before.weight, before.bias = fuse_conv_bn_weights(
                before.weight, before.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            setattr(module, name, nn.Identity())


def fuse_convolutions(module: torch.jit.ScriptModule) -> None:
    """Let each convolution of a frozen module apply what follows it: a sum and a ReLU, a ReLU, or nothing.

    The last so that convolutions of 1 x 1, too, run in oneDNN whatever the number of threads.
    """
    for relu in ("aten::relu", "aten::relu_"):
        for add in ("aten::add", "aten::add_"):
            for summands in ("%y, %other", "%other, %y"):
                _rewrite(
                    module,
                    [f"%s = {add}({summands}, %alpha)", f"%r = {relu}(%s)"],
                    f"%x, %other, {_POINTWISE}, %add, %alpha, %relu, %empty, %missing",
                    names=", %other, %alpha",
                )
        _rewrite(module, [f"%r = {relu}(%y)"], f"%x, {_POINTWISE}, %relu, %empty, %missing")
    _rewrite(module, [], f"%x, {_POINTWISE}, %none, %empty, %missing")


def _rewrite(module: torch.jit.ScriptModule, following: Sequence[str], replacement: str, *, names: str = "") -> None:
    """Replace a convolution and what follows it, up to the value %r, by one operator."""
    result = "%y" if following else "%r"
    pattern = [f"{result} = aten::_convolution({_ARGUMENTS})", *following]
    constants = [f'{name} : str = prim::Constant[value="{text}"]()' for name, text in _NAMES.items()]
    constants += ["%empty : Scalar?[] = prim::ListConstruct()", "%missing : NoneType = prim::Constant()"]
    graphs = [
        "\n  ".join([f"graph({_ARGUMENTS}{names}):", *lines, "return (%r)"])
        for lines in (pattern, [*constants, f"%r = mkldnn::_convolution_pointwise({replacement})"])
    ]
    torch._C._jit_pass_custom_pattern_based_rewrite_graph(*graphs, module.graph)  # noqa: SLF001
