"""How the time of a picture grows with its size, the batch, the variant, the precision and the cores, on this CPU.

    .venv/bin/python -m benchmarks.scaling [--rounds 2] [--output out/bench]

The models run by themselves in this process, each axis varied from one picture of 520 x 520 on all cores; decoding with
resizing and the making of the mask, in one thread, grow with the picture as it is sent. The weights are untrained: they
take the same time. Printed, and written as scaling.json and scaling.png.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import stand_in
from benchmarks.model import SIZE, cores
from benchmarks.pipeline import measure_stages
from deeplabv3 import VARIANTS, WeightsSource
from deeplabv3.arguments import number
from deeplabv3.building import tracing
from deeplabv3.models.variants import load_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

PRECISIONS = ("fp32", "bf16")
BATCHES = (1, 2, 4, 8)
SIDES = (260, 520, 780, 1040)
PICTURES = ((320, 240), (640, 480), (1280, 960), (2560, 1920), (4000, 3000))
# The axes of the models' measurements, with the label of each.
AXES = {"variant": "variant", "batch": "pictures a batch", "side": "side of the picture, pixels", "threads": "cores"}


def settings() -> list[dict[str, Any]]:
    """Return what the models are measured with; `axis` says what is varied."""
    base = {"variant": "resnet50", "batch": 1, "side": SIZE, "threads": cores()}
    values: dict[str, Sequence[object]] = {
        "variant": VARIANTS,
        "batch": BATCHES,
        "side": SIDES,
        "threads": range(1, cores() + 1),
    }
    return [
        base | {"axis": axis, axis: value, "precision": precision}
        for precision in PRECISIONS
        for axis, found in values.items()
        for value in found
    ]


def measure_models(rounds: int) -> list[dict[str, Any]]:
    """Return the settings with the seconds of a call: the median of some rounds after one that warms up."""
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        files = {
            (variant, precision): write(variant, precision, Path(folder))
            for variant in VARIANTS
            for precision in PRECISIONS
        }
        for setting in track(settings(), "models", console=Console(stderr=True)):
            torch.set_num_threads(setting["threads"])
            model: Any = torch.jit.load(str(files[setting["variant"], setting["precision"]]))
            pixels = torch.randn((setting["batch"], 3, setting["side"], setting["side"]))
            seconds: list[float] = []
            for _ in range(rounds + 1):
                start = time.perf_counter()
                model(pixels)
                seconds.append(time.perf_counter() - start)
            results.append(setting | {"seconds": statistics.median(seconds[1:])})
    torch.set_num_threads(cores())
    return results


def write(variant: str, precision: str, folder: Path) -> Path:
    """Write a model as build_models.py does."""
    file = folder / f"{variant}-{precision}.pt"
    with torch.inference_mode(mode=False):
        model = load_model(variant, WeightsSource("none")).eval()
        tracing.trace(model, aux=False, precision=tracing.PRECISIONS[precision]).save(str(file))
    return file


def measure_steps() -> list[dict[str, Any]]:
    """Return the seconds of each stage of pre- and postprocessing by the picture's size."""
    from PIL import Image  # noqa: PLC0415  not needed for --help

    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        repository = stand_in.build(Path(folder) / "models")
        photograph = Image.open(stand_in.REPOSITORY.parent / "tests" / "assets" / "cat.png").convert("RGB")
        for size in track(PICTURES, "steps", console=Console(stderr=True)):
            file = Path(folder) / "picture.jpg"
            photograph.resize(size).save(file, quality=90)
            results.append({"size": size, "stages": measure_stages(repository, file)})
    return results


def model_table(results: list[dict[str, Any]]) -> Table:
    """Return seconds a picture, one row for each value of an axis."""
    table = Table("varied", "value", *(f"{precision}, s an image" for precision in PRECISIONS))
    for axis, label in AXES.items():
        found = [result for result in results if result["axis"] == axis]
        for value in dict.fromkeys(result[axis] for result in found):
            cells = [f"{r['seconds'] / r['batch']:.3f}" for r in found if r[axis] == value]
            table.add_row(label, str(value), *cells)
        table.add_section()
    return table


def step_table(results: list[dict[str, Any]]) -> Table:
    """Return milliseconds by stage and size."""
    table = Table("picture", *(f"{stage}, ms" for stage in results[0]["stages"]))
    for result in results:
        width, height = result["size"]
        table.add_row(f"{width} x {height}", *(f"{1e3 * seconds:.1f}" for seconds in result["stages"].values()))
    return table


def plot(models: list[dict[str, Any]], steps: list[dict[str, Any]], file: Path) -> None:
    """Draw seconds an image against batch, side and cores, and the steps against the picture's pixels."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    axes = figure.subplots(1, 4)
    for each, axis in zip(axes, ("batch", "side", "threads"), strict=False):
        plot_axis(each, models, axis)
    for stage in steps[0]["stages"]:
        megapixels = [step["size"][0] * step["size"][1] / 1e6 for step in steps]
        axes[3].plot(megapixels, [1e3 * step["stages"][stage] for step in steps], marker="o", label=stage)
    axes[3].set(xlabel="megapixels of the picture", title="steps, ms, one thread")
    for each in axes:
        each.set_ylim(bottom=0)
        each.spines[["top", "right"]].set_visible(False)
        each.legend(frameon=False)
    figure.savefig(file, dpi=150)


def plot_axis(axes: Axes, results: list[dict[str, Any]], axis: str) -> None:
    """Draw seconds an image in each precision."""
    for precision in PRECISIONS:
        found = [result for result in results if (result["axis"], result["precision"]) == (axis, precision)]
        values = [result[axis] for result in found]
        axes.plot(values, [result["seconds"] / result["batch"] for result in found], marker="o", label=precision)
        axes.set_xticks(values)
    axes.set(xlabel=AXES[axis], title="ResNet-50, s an image")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--rounds", type=number(1, kind=int), default=2, help="calls of each model (default: %(default)s)"
    )
    parser.add_argument("--output", type=Path, default=Path("out", "bench"), metavar="DIR")
    options = parser.parse_args()
    models, steps = measure_models(options.rounds), measure_steps()
    options.output.mkdir(parents=True, exist_ok=True)
    record = {"cores": cores(), "torch": torch.__version__, "models": models, "steps": steps}
    (options.output / "scaling.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    plot(models, steps, options.output / "scaling.png")
    console = Console()
    console.print(model_table(models), step_table(steps))
    console.print(f"written: {options.output}/scaling.json, scaling.png")


if __name__ == "__main__":
    main()
