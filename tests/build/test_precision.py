"""The effects of --device and --precision; fused models compute the same as torchvision's model."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cpu import NEEDS
from torchvision.transforms.v2 import functional as transforms

import build_models
from build_models import make_plans, parse_arguments
from deeplabv3 import BuildError, WeightsSource, model_deeplabv3_resnet50
from deeplabv3.building import checking, dilation, fusion, tracing
from deeplabv3.building.plan import Plan
from deeplabv3.repository.config import read_config
from deeplabv3.repository.record import read_record

if TYPE_CHECKING:
    from pathlib import Path

    from torchvision.models.segmentation import DeepLabV3

pytestmark = pytest.mark.build

CPU, GPU = 2, 1  # KIND_CPU and KIND_GPU in Triton's model_config.proto
OPTIONS = ["--variant", "resnet50", "--weights", "none", "--aux-loss", "--width-per-group", "4"]


# precision -> the type of the weights, and the largest error of a logit for logits of order 1
PRECISIONS = {
    "fp32": (torch.float32, 1e-4),
    "tf32": (torch.float32, 1e-4),
    "bf16": (torch.bfloat16, 2**-5),
    "fp16": (torch.float16, 2**-8),
}


@pytest.fixture(scope="module")
def eager() -> DeepLabV3:
    """torchvision's own arithmetic on the weights of an untrained build, in 1 / 16 of the channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return model_deeplabv3_resnet50(aux_loss=True, width_per_group=4).eval()


@pytest.mark.parametrize(
    ("options", "kind", "precision"),
    [
        ([], CPU, "fp32"),
        pytest.param(["--precision", "bf16"], CPU, "bf16", marks=NEEDS["bf16"]),
        (["--device", "cuda"], GPU, "fp16"),
        (["--device", "cuda", "--precision", "tf32"], GPU, "tf32"),
    ],
)
def test_a_build_for_a_device_in_a_precision(
    tmp_path: Path, eager: DeepLabV3, options: list[str], kind: int, precision: str
) -> None:
    dtype, error = PRECISIONS[precision]
    assert build_models.main([*OPTIONS, *options, "--model-repository", str(tmp_path)]) == 0
    modules: dict[str, Any] = {}
    for name in ("core_resnet50", "deeplabv3_resnet50"):
        file = tmp_path / name / "1" / "model.pt"
        config = read_config(tmp_path / name / "config.pbtxt")
        assert [group.kind for group in config.instance_group] == [kind]
        assert config.parameters["precision"].string_value == precision
        record = read_record(file)
        assert record is not None
        assert (record.device, record.fields["precision"]) == ("cpu" if kind == CPU else "cuda", precision)

        module = modules[name] = torch.jit.load(str(file))
        served = [
            parameter
            for part, parameter in eager.named_parameters()
            if name != "core_resnet50" or not part.startswith("aux")
        ]
        weights = sum(parameter.numel() for parameter in served)
        assert file.stat().st_size == pytest.approx(weights * dtype.itemsize, rel=0.02)
        # Only a CPU runs what oneDNN fuses, and there nothing is left to fuse.
        operators = {node.kind() for node in module.graph.nodes()}
        assert ("mkldnn::_convolution_pointwise" in operators) == (kind == CPU)
        # In bf16 ASPP's dilated convolutions are sums, before a ReLU.
        unfused = {"aten::add_", "aten::_convolution"}
        unfused |= set() if precision == "bf16" else {"aten::relu", "aten::relu_"}
        assert bool(operators & unfused) == (kind == GPU)

    samples, pixels = noise(2, 161, 98)
    with torch.inference_mode():
        expected = eager(pixels)
        logits, _ = modules["core_resnet50"](samples, torch.zeros(2, 1, dtype=torch.int64))
        out, aux = modules["deeplabv3_resnet50"](pixels)
    assert out.dtype == logits.dtype == aux.dtype == torch.float32
    upsampled = torch.nn.functional.interpolate(logits, size=(161, 98), mode="bilinear", align_corners=False)
    for found, wanted in ((out, expected["out"]), (upsampled, expected["out"]), (aux, expected["aux"])):
        assert float((found - wanted).abs().max()) <= error * float(wanted.abs().max())


def noise(count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the samples of pictures and the same, normalized as a user of torchvision does it."""
    generator = torch.Generator().manual_seed(3)
    samples = torch.randint(0, 256, (count, height, width, 3), generator=generator).to(torch.uint8)
    planes = samples.permute(0, 3, 1, 2) / 255
    return samples, transforms.normalize(planes, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


@NEEDS["bf16"]
def test_weights_are_packed_once_and_for_all_sizes(tmp_path: Path, eager: DeepLabV3) -> None:
    bf16 = tracing.PRECISIONS["bf16"]
    tracing.Tracer(eager, precision=bf16).direct().save(str(tmp_path / "model.pt"))
    module = torch.jit.load(str(tmp_path / "model.pt"))
    packed = [part.weights for part in module.modules() if part.original_name == "PackedWeights"]
    # The convolutions of a ResNet-50, of ASPP, and after it; of ASPP's three dilated ones each of the nine weights.
    assert len(packed) == 61 - 3 + 3 * 9
    assert all(weights.is_mkldnn for weights in packed)
    pixels = torch.randn((3, 3, 77, 530), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        for part in (pixels, pixels[:1], pixels[:, :, :40, :40]):
            expected = eager(part)["out"]
            assert float((module(part)[0] - expected).abs().max()) <= 2**-5 * float(expected.abs().max())


def test_each_device_has_a_precision_of_its_own() -> None:
    def chosen(*options: str) -> set[tuple[str, str]]:
        return {
            (plan.device, plan.precision)
            for plan in make_plans(parse_arguments([*OPTIONS, *options, "--model-repository", "models/mine"]))
        }

    assert chosen() == {("cpu", "fp32")}
    assert chosen("--device", "cuda") == {("cuda", "fp16")}
    assert chosen("--device", "cuda", "--precision", "bf16") == {("cuda", "bf16")}


def test_a_mode_of_gpus_is_refused_for_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_arguments(["--precision", "tf32"])
    assert "--precision tf32 works only on GPUs; add --device cuda, or use fp32" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("tf32", [False, True])
def test_how_cudnn_computes_is_part_of_the_file(eager: DeepLabV3, device: str, tf32: bool) -> None:  # noqa: FBT001 - a parameter of the test
    precision = tracing.PRECISIONS["tf32" if tf32 else "fp32"]
    graph: Any = tracing.Tracer(eager, precision=precision, device=device).direct().graph
    # The last argument of aten::_convolution is allow_tf32.
    used = {list(node.inputs())[-1].toIValue() for node in graph.findAllNodes("aten::_convolution")}
    assert used == (set() if device == "cpu" else {tf32})
    assert torch.backends.cudnn.allow_tf32  # as it was


def test_a_model_beyond_the_range_of_fp16_is_refused_with_a_remedy(tmp_path: Path, eager: DeepLabV3) -> None:
    model = copy.deepcopy(eager)
    with torch.no_grad():
        dict(model.classifier.named_parameters())["4.bias"].fill_(1e5)
    tracer = tracing.Tracer(model, precision=tracing.PRECISIONS["fp16"], device="cuda")
    tracing.save(tracer.core(mean=[0, 0, 0], std=[1, 1, 1]), tmp_path / "model.pt", {})
    plan = Plan("resnet50", WeightsSource("none"), precision="fp16", direct=False)
    with pytest.raises(BuildError, match=r"not finite in fp16, .* use --precision bf16 or fp32"):
        checking.verify({"core_resnet50": tmp_path / "model.pt"}, model, plan)


@pytest.mark.parametrize("shape", [(1, 5, 1, 1), (3, 256, 65, 65), (2, 7, 9, 130)])
def test_the_pool_for_bf16_is_the_mean(shape: tuple[int, ...]) -> None:
    features = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    pooled = fusion.GlobalAveragePool()(features.contiguous(memory_format=torch.channels_last))
    expected = features.double().mean((2, 3), keepdim=True)
    assert pooled.dtype == torch.bfloat16
    torch.testing.assert_close(pooled.double(), expected, rtol=2**-7, atol=0)  # rounded twice


@pytest.mark.parametrize("size", [(65, 65), (20, 90), (90, 20), (5, 7)])
def test_a_dilated_convolution_is_the_sum_of_its_weights(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    convolution = torch.nn.Conv2d(8, 6, 3, padding=24, dilation=24)
    module = torch.jit.script(dilation.DilatedConvolution(convolution, lambda part: part))
    features = torch.randn(2, 8, *size).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(module(features), convolution(features), rtol=1e-4, atol=1e-5)


class Block(torch.nn.Module):
    """A convolution and what may follow it, with the summands in either order."""

    def __init__(self, *, first: bool, inplace: bool) -> None:
        super().__init__()
        self.convolution = torch.nn.Conv2d(8, 8, 3, padding=1)
        self.other = torch.nn.Conv2d(8, 8, 1)
        self.first, self.inplace = first, inplace

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        found, other = self.convolution(pixels), torch.sigmoid(self.other(pixels))
        left, right = (found, other) if self.first else (other, found)
        total = left.add_(right) if self.inplace else left + right
        return total.relu_() if self.inplace else total.relu()


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_sums_and_activations_are_taken_in_however_they_are_written(first: bool, inplace: bool) -> None:  # noqa: FBT001
    torch.manual_seed(0)
    block, pixels = Block(first=first, inplace=inplace).eval(), torch.randn(2, 8, 13, 11)
    with torch.no_grad():
        expected = block(pixels)
        module = torch.jit.freeze(torch.jit.trace(block, pixels))
        fusion.fuse_convolutions(module)
        assert {node.kind() for node in module.graph.nodes()} & {"aten::relu", "aten::relu_", "aten::add"} == set()
        torch.testing.assert_close(module(pixels), expected, rtol=1e-4, atol=1e-5)
