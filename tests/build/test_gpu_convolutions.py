"""How the convolutions of a file for a GPU are computed. All but what cuDNN alone has runs on a CPU too."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from deeplabv3 import model_deeplabv3_resnet50
from deeplabv3.building import dilation, fusion, tracing
from deeplabv3.building.plan import MEAN, STD

if TYPE_CHECKING:
    from collections.abc import Generator

    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

pytestmark = pytest.mark.build


def traced(model: DeepLabV3, *, precision: str = "fp32", cudnn: str = "heuristic") -> torch.jit.ScriptModule:
    tracer = tracing.Tracer(model, precision=tracing.PRECISIONS[precision], device="cuda", cudnn=cudnn)
    return tracer.core(mean=MEAN, std=STD)


def samples(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return PIXELS and IMAGE_ID of N pictures of H x W."""
    pixels = torch.randint(0, 256, (*shape, 3), generator=torch.Generator().manual_seed(1))
    return pixels.to(torch.uint8), torch.zeros(shape[0], 1, dtype=torch.int64)


@pytest.mark.parametrize("cudnn", ["heuristic", "benchmark"])
def test_whether_cudnn_tries_its_algorithms_is_part_of_the_file(cudnn: str) -> None:
    graph: Any = traced(model_deeplabv3_resnet50(width_per_group=4), cudnn=cudnn).graph
    # The tenth argument is `benchmark`, the ninth `groups`.
    found = {list(node.inputs())[9].toIValue() for node in graph.findAllNodes("aten::_convolution")}
    assert found == {cudnn == "benchmark"}
    assert not torch.backends.cudnn.benchmark  # as it was


def test_convolutions_take_in_what_follows_them_on_a_gpu() -> None:
    module = traced(model_deeplabv3_resnet50(width_per_group=8), precision="fp16")
    graph: Any = module.graph
    plain = len(graph.findAllNodes("aten::_convolution"))
    fusion.fuse_for_cudnn(module)
    counts = {
        kind: len(graph.findAllNodes(f"aten::{kind}"))
        for kind in ("cudnn_convolution_relu", "cudnn_convolution_add_relu", "_convolution", "relu", "relu_", "add_")
    }
    # The four downsamplings and the last convolution have no ReLU, and the first has three channels.
    assert counts == {
        "cudnn_convolution_relu": 0,
        "cudnn_convolution_add_relu": plain - 6,
        "_convolution": 6,
        "relu": 0,
        "relu_": 0,
        "add_": 0,
    }


def test_the_fused_operators_mean_what_they_replace() -> None:
    """Compute by hand, in the operators' own order of arguments, what a rewritten graph asks of cuDNN."""
    torch.manual_seed(0)
    module = traced(model_deeplabv3_resnet50(width_per_group=8))
    arguments = samples(2, 33, 47)
    expected = module(*arguments)[0]
    fusion.fuse_for_cudnn(module)
    library = torch.library.Library("aten", "IMPL")
    try:
        library.impl("cudnn_convolution_add_relu", _convolution_add_relu, "CPU")
        torch.testing.assert_close(module(*arguments)[0], expected, rtol=1e-4, atol=1e-5)
    finally:
        library._destroy()  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001


def _convolution_add_relu(*arguments: Any) -> torch.Tensor:  # noqa: ANN401 - torch's
    pixels, weight, other, alpha, bias, stride, padding, dilation, groups = arguments
    sums = torch.nn.functional.conv2d(pixels, weight, bias, stride, padding, dilation, groups)
    # 0 * NaN is NaN: also what is multiplied with 0 must be defined.
    assert other.shape == sums.shape
    assert other.is_contiguous(memory_format=torch.channels_last)
    assert other.isfinite().all()
    return (sums + alpha * other).relu()


@pytest.mark.parametrize("cudnn", ["tensorexpr", "tensorexpr-corners"])
def test_what_can_run_on_a_cpu_computes_the_same_there(cudnn: str) -> None:
    torch.manual_seed(0)
    model = model_deeplabv3_resnet50(width_per_group=8)
    plain, module = traced(model), traced(model, cudnn=cudnn)
    for shape in ((2, 33, 47), (1, 304, 392)):  # the latter has 38 x 49 features, of which 36 is more than half
        arguments = samples(*shape)
        torch.testing.assert_close(module(*arguments)[0], plain(*arguments)[0], rtol=1e-4, atol=1e-5)


def test_the_executor_makes_one_pass_of_what_follows_a_convolution() -> None:
    """Force its TensorExpr fuser, which is on for GPUs, on the CPU."""
    body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 1))

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = body

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            found = self.body(features)
            found += features
            return found.relu_()

    features = torch.randn(1, 8, 3, 3)
    with torch.no_grad(), fused_on_a_cpu():
        before, after = (torch.jit.freeze(torch.jit.trace(Block().eval(), features)) for _ in range(2))
        fusion.separate_pointwise(after)
        groups = [passes_of(module, features) for module in (before, after)]
    assert groups == [[], [["aten::add", "aten::add", "aten::relu"], ["aten::add", "aten::relu"]]]


@contextlib.contextmanager
def fused_on_a_cpu() -> Generator[None]:
    switches: Any = torch._C  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
    switches._jit_override_can_fuse_on_cpu(True)  # noqa: SLF001, FBT003
    switches._jit_set_te_must_use_llvm_cpu(False)  # noqa: SLF001, FBT003
    try:
        yield
    finally:
        switches._jit_override_can_fuse_on_cpu(False)  # noqa: SLF001, FBT003
        switches._jit_set_te_must_use_llvm_cpu(True)  # noqa: SLF001, FBT003


def passes_of(module: torch.jit.ScriptModule, features: torch.Tensor) -> list[list[str]]:
    """Return the operators of each group that the executor compiles, sorted."""
    for _ in range(3):
        module(features)
    graph: Any = torch._C._last_executed_optimized_graph()  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
    groups = [node.g("Subgraph") for node in graph.findAllNodes("prim::TensorExprGroup")]
    kinds = ([node.kind() for node in group.nodes() if node.kind().startswith("aten::")] for group in groups)
    return sorted(kind for kind in kinds)


@pytest.mark.parametrize("bias", [False, True])
def test_a_convolution_by_its_corners_is_the_convolution(*, bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 3, padding=6, dilation=6, bias=bias)
    module = torch.jit.script(dilation.CornerConvolution(convolution))
    for height, width in ((11, 11), (7, 11), (8, 9), (6, 11), (12, 11), (11, 12), (5, 30), (3, 3)):
        features = torch.randn(2, 3, height, width).contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(module(features), convolution(features), rtol=1e-4, atol=1e-5)


def test_only_what_mostly_meets_padding_is_computed_by_its_corners() -> None:
    model = model_deeplabv3_resnet50(width_per_group=8)
    dilation.use_corners(model, side=65)
    found = {name for name, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)}
    assert found == {"classifier.0.convs.3.0"}  # with the dilation 36
