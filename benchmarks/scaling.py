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

import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import harness, toy
from benchmarks.harness import cores
from benchmarks.model import core, noise, write
from benchmarks.pipeline import measure_stages
from benchmarks.report import Column, Panel, Report
from deeplabv3 import VARIANTS
from deeplabv3.building.tracing import TRAINED_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

PRECISIONS = ("fp32", "bf16", "int8")
PICTURES = ((320, 240), (640, 480), (1280, 960), (2560, 1920), (4000, 3000))
# What is varied, with its label, and the values.
AXES: dict[str, tuple[str, Sequence[Any]]] = {
    "variant": ("variant", VARIANTS),
    "batch": ("pictures a batch", (1, 2, 4, 8)),
    "side": ("side of the picture, pixels", (260, 520, 780, 1040)),
    "threads": ("cores", range(1, cores() + 1)),
}


def measure_models(report: Report, rounds: int) -> None:
    """Vary one axis after the other; a setting that is on several axes is measured once."""
    base: dict[str, Any] = {"variant": "resnet50", "batch": 1, "side": TRAINED_SIZE, "threads": cores()}
    known: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        models: dict[tuple[str, str], Any] = {
            (variant, precision): core(write(variant, precision, Path(folder)))
            for variant in VARIANTS
            for precision in PRECISIONS
        }
    for axis, (label, values) in AXES.items():
        for value in values:
            setting = base | {axis: value}
            if (key := tuple(setting.values())) not in known:
                report.say(f"{label}: {value}")
                pixels = torch.cat(noise(setting["batch"], setting["side"]))
                calls = {precision: partial(models[setting["variant"], precision], pixels) for precision in PRECISIONS}
                with torch.inference_mode():
                    found = harness.time_in_turns(calls, rounds=rounds, threads=setting["threads"])
                known[key] = {name: [each / setting["batch"] for each in m.times] for name, m in found.items()}
            for precision, seconds in known[key].items():
                report.add(axis, precision, {label: value}, {"seconds": seconds})


def measure_steps(report: Report) -> None:
    """Measure each stage of pre- and postprocessing by the picture's size."""
    with tempfile.TemporaryDirectory() as folder:
        repository = toy.build(Path(folder) / "models", core="objects")
        file = Path(folder) / "picture.jpg"
        for width, height in PICTURES:
            harness.save_photograph(file, (width, height))
            condition = {"picture": f"{width} x {height}", "megapixels": width * height / 1e6}
            for stage, seconds in measure_stages(repository, file).items():
                report.add("steps", stage, condition, {"seconds": seconds})


def main() -> int:
    """Run the command line."""
    options = harness.parser("benchmarks.scaling", __doc__, rounds=2).parse_args()
    report = Report("scaling", options.output)
    measure_models(report, options.rounds)
    measure_steps(report)
    for axis, (label, _) in AXES.items():
        report.show(f"varied: {label}", report.of(axis), (Column("seconds", "s an image", form=".3f"),))
    report.show("steps, one thread", report.of("steps"), (Column("seconds", "ms", 1e3, ".1f"),))
    panels = [
        Panel(axis, "seconds", "seconds an image", "ResNet-50", over=label)
        for axis, (label, _) in AXES.items()
        if axis != "variant"
    ]
    steps = Panel("steps", "seconds", "ms", "steps, one thread", over="megapixels", scale=1e3)
    report.plot([*panels, steps], columns=4)
    return report.end()


if __name__ == "__main__":
    harness.run(main)
