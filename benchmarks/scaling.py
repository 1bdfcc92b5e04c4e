"""Measure how the time of a picture grows with its size, the batch, the variant, the precision and the cores.

    .venv/bin/python -m benchmarks.scaling [--rounds 2] [--output out/bench]

The models run alone in this process; each axis is varied, starting from one picture of 520 x 520 on all cores. The
other steps depend on the size of the picture that is sent, and are timed in one thread. The weights are untrained,
which does not change the time. The results are printed and written to scaling.json and scaling.png.
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
from benchmarks.model import OURS, core, noise, possible, write
from benchmarks.pipeline import measure_stages
from benchmarks.report import Column, Panel, Report
from deeplabv3 import VARIANTS
from deeplabv3.building.tracing import TRAINED_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

PICTURES = ((320, 240), (640, 480), (1280, 960), (2560, 1920), (4000, 3000))
# Name of an axis, its label, and its values.
AXES: dict[str, tuple[str, Sequence[Any]]] = {
    "variant": ("variant", VARIANTS),
    "batch": ("pictures a batch", (1, 2, 4, 8)),
    "side": ("side of the picture, pixels", (260, 520, 780, 1040)),
    "threads": ("cores", range(1, cores() + 1)),
}


def measure_models(report: Report, rounds: int) -> None:
    """Vary one axis after another; a setting that is on several axes is measured once."""
    base: dict[str, Any] = {"variant": "resnet50", "batch": 1, "side": TRAINED_SIZE, "threads": cores()}
    known: dict[tuple[Any, ...], dict[str, list[float]]] = {}
    precisions = possible(OURS.values(), report)
    with tempfile.TemporaryDirectory() as folder:
        models: dict[tuple[str, str], Any] = {
            (variant, precision): core(write(variant, precision, Path(folder)))
            for variant in VARIANTS
            for precision in precisions
        }
    for axis, (label, values) in AXES.items():
        for value in values:
            setting = base | {axis: value}
            if (key := tuple(setting.values())) not in known:
                report.say(f"{label}: {value}")
                pixels = torch.cat(noise(setting["batch"], setting["side"]))
                calls = {precision: partial(models[setting["variant"], precision], pixels) for precision in precisions}
                with torch.inference_mode():
                    found = harness.time_in_turns(calls, rounds=rounds, threads=setting["threads"])
                known[key] = {name: [each / setting["batch"] for each in m.times] for name, m in found.items()}
            for precision, seconds in known[key].items():
                report.add(axis, precision, {label: value}, {"seconds": seconds})


def measure_steps(report: Report) -> None:
    """Measure each stage of pre- and postprocessing for pictures of several sizes."""
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
        report.show(f"varied: {label}", report.of(axis), (Column("seconds", "s per image", form=".3f"),))
    report.show("steps, one thread", report.of("steps"), (Column("seconds", "ms", 1e3, ".1f"),))
    drawn = {
        "batch": ("ResNet-50: batch size", "images per batch"),
        "side": ("ResNet-50: image size", "side of the image, pixels"),
        "threads": ("ResNet-50: cores", "cores"),
    }
    panels = [
        Panel(axis, "seconds", title, "seconds per image", over=AXES[axis][0], over_label=label, log=axis == "batch")
        for axis, (title, label) in drawn.items()
    ]
    size = "megapixels of the picture that is sent"
    steps = Panel("steps", "seconds", "Steps around the model", "ms", over="megapixels", over_label=size, scale=1e3)
    title = f"Time of an image on a CPU with {cores()} cores; the steps use one thread"
    report.plot([*panels, steps], title=title)
    return report.end()


if __name__ == "__main__":
    harness.run(main)
