"""The traced models on this CPU beside PyTorch's own ways and what ONNX Runtime and OpenVINO make of the same model.

    .venv/bin/python -m benchmarks.model [--variant resnet50] [--batch 1] [--rounds 10] [--output out/bench]

Every contender computes both outputs of the core model on the same pixels, call by call in turns, with as many threads
as the process has cores, so that what else the machine does meets all alike. The weights are untrained: they take the
same time. Printed, and written as model.json and model.png: medians, and each beside the best other runtime of its
precision.
"""

# pyright: reportMissingImports=false
# ONNX Runtime and OpenVINO are in a dependency group that only `make bench` installs.

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from deeplabv3 import VARIANTS, WeightsSource
from deeplabv3.arguments import number
from deeplabv3.building import tracing
from deeplabv3.models.variants import load_model

if TYPE_CHECKING:
    from collections.abc import Callable

SIZE = tracing.TRAINED_SIZE
WARM_UP = 2
# What is ours, and what it is measured against: precision -> (ours, peers).
RIVALS = {
    "fp32": ("ours fp32", ("ONNX Runtime fp32", "OpenVINO fp32")),
    "bf16": ("ours bf16", ("OpenVINO bf16",)),
}


@dataclass(frozen=True, slots=True)
class Result:
    """What one contender took for a batch: the median and the least of all rounds, in seconds."""

    variant: str
    batch: int
    contender: str
    median: float
    least: float


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def contenders(variant: str, folder: Path) -> dict[str, Callable[[torch.Tensor], object]]:
    """Return what computes the logits of pixels (N, 3, H, W), by name."""
    model = load_model(variant, WeightsSource("none")).eval()
    plain = tracing.ServedDeepLabV3(model, aux=False).eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced: Any = torch.jit.trace(plain, torch.zeros(1, 3, SIZE, SIZE), check_trace=False)
        found: dict[str, Callable[[torch.Tensor], object]] = {
            "PyTorch eager fp32": model,
            "torch.jit.trace fp32": traced,
        }
        for precision, (name, _) in RIVALS.items():
            file = folder / f"{variant}-{precision}.pt"
            tracing.trace(model, aux=False, precision=tracing.PRECISIONS[precision]).save(str(file))
            found[name] = torch.jit.load(str(file))
        return found | runtimes(plain, folder / f"{variant}.onnx")


def runtimes(model: torch.nn.Module, file: Path) -> dict[str, Callable[[torch.Tensor], object]]:
    """Return the other runtimes, each set up as its documentation says for the least time of one request."""
    import onnxruntime  # noqa: PLC0415  takes a second, and is not needed for --help
    import openvino  # noqa: PLC0415

    torch.onnx.export(
        model,
        (torch.zeros(1, 3, SIZE, SIZE),),
        str(file),
        dynamo=False,
        input_names=["input"],
        output_names=["out", "logits_os8"],
        dynamic_axes={"input": {0: "n", 2: "h", 3: "w"}},
        opset_version=17,
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = cores()
    session: Any = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def with_onnxruntime(pixels: torch.Tensor) -> object:
        return session.run(None, {"input": pixels.numpy()})

    def with_openvino(precision: str) -> Callable[[torch.Tensor], object]:
        hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": cores(), "PERFORMANCE_HINT": "LATENCY"}
        request: Any = openvino.Core().compile_model(str(file), "CPU", hints).create_infer_request()

        def run(pixels: torch.Tensor) -> object:
            return request.infer({0: pixels.numpy()})

        return run

    return {
        "ONNX Runtime fp32": with_onnxruntime,
        "OpenVINO fp32": with_openvino("f32"),
        "OpenVINO bf16": with_openvino("bf16"),
    }


def measure(variant: str, batch: int, runs: dict[str, Callable[[torch.Tensor], object]], rounds: int) -> list[Result]:
    """Time all contenders in turns."""
    pixels = torch.randn((batch, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0))
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for number in track(range(-WARM_UP, rounds), f"{variant}, batch {batch}", console=Console(stderr=True)):
            for name, run in runs.items():
                start = time.perf_counter()
                run(pixels)
                if number >= 0:
                    seconds[name].append(time.perf_counter() - start)
    return [Result(variant, batch, name, statistics.median(found), min(found)) for name, found in seconds.items()]


def ratios(results: list[Result]) -> list[dict[str, Any]]:
    """Compare ours with the best peer of its precision, for each variant and batch."""
    medians = {(result.variant, result.batch, result.contender): result.median for result in results}
    compared: list[dict[str, Any]] = []
    for variant, batch in dict.fromkeys((result.variant, result.batch) for result in results):
        for precision, (ours, peers) in RIVALS.items():
            best = min(peers, key=lambda peer: medians[variant, batch, peer])
            ratio = medians[variant, batch, ours] / medians[variant, batch, best]
            compared.append(
                {
                    "variant": variant,
                    "batch": batch,
                    "precision": precision,
                    "best_peer": best,
                    "ratio": round(ratio, 3),
                }
            )
    return compared


def table(results: list[Result]) -> Table:
    """Return the medians as seconds an image."""
    shown = Table("model", "batch", "contender", "s an image", "images/s", title=f"{cores()} cores, {SIZE} x {SIZE}")
    for result in results:
        each = result.median / result.batch
        shown.add_row(result.variant, str(result.batch), result.contender, f"{each:.3f}", f"{1 / each:.2f}")
    return shown


def plot(results: list[Result], file: Path) -> None:
    """Draw the seconds an image of every contender at the smallest batch."""
    smallest = min(result.batch for result in results)
    variants = list(dict.fromkeys(result.variant for result in results))
    figure = Figure(figsize=(8, 2.2 * len(variants) + 0.6), layout="constrained")
    for axes, variant in zip(figure.subplots(len(variants), squeeze=False)[:, 0], variants, strict=True):
        chosen = [result for result in results if result.variant == variant and result.batch == smallest]
        colours = ["tab:blue" if result.contender.startswith("ours") else "0.7" for result in chosen]
        bars = axes.barh([result.contender for result in chosen], [r.median / smallest for r in chosen], color=colours)
        axes.bar_label(bars, fmt="%.2f", padding=3)
        axes.invert_yaxis()
        axes.spines[["top", "right"]].set_visible(False)
        axes.set(title=f"DeepLabV3 {variant}", xlabel=f"seconds an image, batch {smallest}, {cores()} cores")
    figure.savefig(file, dpi=150)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="may be repeated (default: both)")
    parser.add_argument(
        "--batch", action="append", type=number(1, kind=int), metavar="N", help="may be repeated (default: 1)"
    )
    parser.add_argument("--rounds", type=number(1, kind=int), default=10, help="calls of each (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("out", "bench"), metavar="DIR")
    options = parser.parse_args()
    torch.set_num_threads(cores())
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as folder:
        for variant in options.variant or VARIANTS:
            runs = contenders(variant, Path(folder))
            for batch in options.batch or [1]:
                results += measure(variant, batch, runs, options.rounds)
    compared = ratios(results)
    options.output.mkdir(parents=True, exist_ok=True)
    record = {"cores": cores(), "torch": torch.__version__, "results": [asdict(r) for r in results], "ratios": compared}
    (options.output / "model.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    plot(results, options.output / "model.png")
    console = Console()
    console.print(table(results))
    for entry in compared:
        console.print(
            f"{entry['variant']}, batch {entry['batch']}, {entry['precision']}: {entry['ratio']:.3f} of the time of "
            f"{entry['best_peer']}"
        )
    console.print(f"written: {options.output}/model.json, model.png")


if __name__ == "__main__":
    main()
