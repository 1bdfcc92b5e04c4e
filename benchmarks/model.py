"""Compare the core models on this CPU with PyTorch, ONNX Runtime and OpenVINO.

    .venv/bin/python -m benchmarks.model [--variant resnet50] [--batch 1] [--rounds 4] [--output out/bench]

Every contender computes the same logits, at stride 8, from the same uint8 pixels, in turns, with one thread for each
core. The weights are untrained, which does not change the time. The results are printed and written to model.json and
model.png: medians, and the ratio of each of our models to the fastest other runtime of its precision. NNCF makes the
int8 model for OpenVINO; for ONNX Runtime, its static quantization does, with a scale for each output channel. All int8
models are calibrated with the same noise.
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownLambdaType=false
# ONNX Runtime and OpenVINO are in a dependency group that only `make bench` installs.

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import harness
from benchmarks.harness import cores
from benchmarks.report import Column, Panel, Report
from deeplabv3 import UNTRAINED, VARIANTS, WeightsSource
from deeplabv3.arguments import number
from deeplabv3.building import tracing
from deeplabv3.building.plan import MEAN, STD
from deeplabv3.models.variants import load_model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

SIZE = tracing.TRAINED_SIZE
# Our models with their precision in build_models.py, and the runtimes to compare each with.
OURS = {"ours fp32": "fp32", "ours bf16": "bf16", "ours int8": "int8"}
BASELINES = {
    "ours fp32": ("ONNX Runtime fp32", "OpenVINO fp32"),
    "ours bf16": ("OpenVINO bf16",),
    "ours int8": ("ONNX Runtime int8", "OpenVINO int8"),
}
COLUMNS = (Column("seconds", "s per image", form=".3f"), Column("rate", "images/s", form=".2f"))


def noise(count: int, side: int = SIZE) -> list[torch.Tensor]:
    """Return pixels (1, side, side, 3) uint8. They also calibrate int8, because ranges do not change the time."""
    return [
        torch.randint(0, 256, (1, side, side, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
        for seed in range(count)
    ]


def possible(precisions: Iterable[str], report: Report) -> list[str]:
    """Return the precisions that this CPU can compute in; report the reason for each of the others."""
    missing = {precision: tracing.missing_on_this_cpu(precision) for precision in precisions}
    for reason in filter(None, missing.values()):
        report.say(f"left out: {reason}")
    return [precision for precision, reason in missing.items() if reason is None]


def write(variant: str, precision: str, folder: Path) -> Path:
    """Write a core model with untrained weights, as build_models.py does."""
    file = folder / f"{variant}-{precision}.pt"
    model = load_model(variant, WeightsSource(UNTRAINED)).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    pictures = [tracing.normalized(pixels, mean, std) for pixels in noise(2)] if precision == "int8" else None
    tracer = tracing.Tracer(model, precision=tracing.PRECISIONS[precision], pictures=pictures)
    tracer.core(mean=MEAN, std=STD).save(str(file))
    return file


class Plain(torch.nn.Module):
    """The core model's computation with PyTorch's own layers."""

    def __init__(self, model: DeepLabV3) -> None:
        super().__init__()
        self.core = tracing.Core(model, mean=MEAN, std=STD)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Take (N, H, W, 3) uint8, return the logits."""
        return self.core(pixels, pixels[:, :1, 0, 0].long())[0]


def contenders(variant: str, precisions: Iterable[str], folder: Path) -> dict[str, Callable[[torch.Tensor], object]]:
    """Return by name the functions that compute the logits of pixels (N, H, W, 3) uint8."""
    plain = Plain(load_model(variant, WeightsSource(UNTRAINED))).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(plain, noise(1)[0], check_trace=False)
        ours = {name: core(write(variant, OURS[name], folder)) for name in OURS if OURS[name] in precisions}
        others = runtimes(plain, folder / f"{variant}.onnx")
    return {"PyTorch eager fp32": plain, "torch.jit.trace fp32": traced, **ours, **others}


def core(file: Path) -> Callable[[torch.Tensor], object]:
    """Return a function that computes the logits with a core model's file."""
    module: Any = torch.jit.load(str(file))
    return lambda pixels: module(pixels, torch.zeros(len(pixels), 1, dtype=torch.int64))


def runtimes(model: torch.nn.Module, file: Path) -> dict[str, Callable[[torch.Tensor], object]]:
    """Return the other runtimes, each set up for low latency as its documentation recommends."""
    import nncf  # noqa: PLC0415 - takes seconds, and is not needed for --help
    import onnxruntime  # noqa: PLC0415 - likewise
    import openvino  # noqa: PLC0415 - likewise
    from onnxruntime import quantization  # noqa: PLC0415 - likewise
    from onnxruntime.quantization import shape_inference  # noqa: PLC0415 - likewise

    torch.onnx.export(
        model,
        (noise(1)[0],),
        str(file),
        dynamo=False,
        input_names=["pixels"],
        output_names=["logits"],
        dynamic_axes={"pixels": {0: "n", 1: "h", 2: "w"}},
        opset_version=17,
    )
    calibration = [{"pixels": pixels.numpy()} for pixels in noise(2)]

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self._rest = iter(calibration)

        def get_next(self) -> Any:  # noqa: ANN401 - a dict, and None at the end, which the base class does not say
            return next(self._rest, None)

    prepared, in_int8 = file.with_suffix(".prepared.onnx"), file.with_suffix(".int8.onnx")
    shape_inference.quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
    quantization.quantize_static(str(prepared), str(in_int8), Reader(), per_channel=True)

    def with_onnxruntime(model: Path) -> Callable[[torch.Tensor], object]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = cores()
        session: Any = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        return lambda pixels: session.run(None, {"pixels": pixels.numpy()})

    compiler = openvino.Core()
    read = compiler.read_model(str(file))

    def with_openvino(model: Any, precision: str) -> Callable[[torch.Tensor], object]:  # noqa: ANN401 - no types here
        hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": cores(), "PERFORMANCE_HINT": "LATENCY"}
        request: Any = compiler.compile_model(model, "CPU", hints).create_infer_request()
        return lambda pixels: request.infer({0: pixels.numpy()})

    quantized = nncf.quantize(read, nncf.Dataset(calibration), subset_size=len(calibration))
    return {
        "ONNX Runtime fp32": with_onnxruntime(file),
        "ONNX Runtime int8": with_onnxruntime(in_int8),
        "OpenVINO fp32": with_openvino(read, "f32"),
        "OpenVINO bf16": with_openvino(read, "bf16"),
        "OpenVINO int8": with_openvino(quantized, "f32"),
    }


def main() -> int:
    """Run the command line."""
    parser = harness.parser("benchmarks.model", __doc__, rounds=4)
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="can be repeated (default: both)")
    parser.add_argument(
        "--batch", action="append", type=number(1, kind=int), metavar="N", help="can be repeated (default: 1)"
    )
    options = parser.parse_args()
    report = Report("model", options.output)
    precisions = possible(OURS.values(), report)
    for variant in options.variant or VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            runs = contenders(variant, precisions, Path(folder))
            for batch in options.batch or [1]:
                report.say(f"{variant}, batch {batch}, rounds: {options.rounds}")
                pixels = torch.cat(noise(batch))
                calls = {name: partial(run, pixels) for name, run in runs.items()}
                with torch.inference_mode():
                    found = harness.time_in_turns(calls, rounds=options.rounds, threads=cores())
                for name, measured in found.items():
                    seconds = [taken / batch for taken in measured.times]
                    figures = {"seconds": seconds, "rate": [1 / each for each in seconds]}
                    report.add("model", name, {"variant": variant, "batch": batch}, figures)
    report.compare("model", "seconds", BASELINES, high_is_good=False)
    report.show(f"{cores()} cores, {SIZE} x {SIZE}", report.of("model"), COLUMNS)
    smallest = min(options.batch or [1])
    panels = [
        Panel("model", "seconds", variant.replace("resnet", "ResNet-"), "seconds per image", where=each)
        for variant in options.variant or VARIANTS
        for each in [{"variant": variant, "batch": smallest}]
    ]
    title = f"Our core models (blue) and other runtimes: batch {smallest}, {SIZE} x {SIZE}, {cores()} cores"
    report.plot(panels, title=title, ours=tuple(OURS))
    return report.end()


if __name__ == "__main__":
    harness.run(main)
