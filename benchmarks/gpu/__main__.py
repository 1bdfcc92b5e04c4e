"""Measure the models on a GPU, bare and served, in one run with a time limit.

    python -m benchmarks.gpu [--minutes 9] [--section card --section bare ...] [--variant resnet50] [--output DIR]
    python -m benchmarks.gpu --device cpu --quick     a dry run: tiny models, whose figures mean nothing

Sections, in this order: `card` measures matrix products and a copy; `bare` the traced models in each precision and
cuDNN mode at each batch size, checked against PyTorch in float32, and the fastest for 5 s with the card's clocks;
`steps` the time of preprocess and postprocess on the CPU and on the GPU, and whether the results agree; `serving` the
embedded Triton server under load over HTTP, with and without dynamic batching, with the masks on the CPU and with the
resize on the GPU; `kernels` which kernels take the time of the bare models. Each setup is measured with both variants
before the next. The weights are untrained, with calibrated batch normalization, which does not change the time.

Results are printed at once and written to gpu.json after each step. Parts that do not fit the time are listed and left
out.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import harness
from benchmarks.gpu.bare import by_name, fastest, measure_bare, profile_kernels
from benchmarks.gpu.card import environment, measure_card
from benchmarks.gpu.models import calibrated
from benchmarks.gpu.settings import Settings, quick
from benchmarks.gpu.targets import add_verdicts
from benchmarks.harness import Deadline
from benchmarks.report import Column, Panel, Report
from deeplabv3 import VARIANTS, server_statistics
from deeplabv3.arguments import number
from deeplabv3.embedded.processes import SHARED_MEMORY

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

    from deeplabv3.building.plan import Plan

NO_GPU = "MEASURED ON A CPU: a dry run of the script. Its figures say nothing about a GPU."
# The sections of the report that each section fills.
SECTIONS = {
    "card": ("card",),
    "bare": ("bare", "sustained"),
    "steps": ("steps", "steps agree"),
    "serving": ("serving", "stages"),
    "kernels": ("kernels",),
}
# The share of the remaining time that the bare models may take; the sections after them get the rest.
_BARE_SHARE = 0.4
# The start of a server, with the warm-up of its batch sizes, and a load at one concurrency.
_SETUP_SECONDS = 45
_KERNELS_SECONDS = 20

_COLUMNS = {
    "card": (Column("flops_per_second", "TFLOP/s", 1e-12, ".2f"), Column("bytes_per_second", "GB/s", 1e-9, ".1f")),
    "bare": (
        Column("rate", "images/s", form=".1f"),
        Column("seconds", "ms per batch", 1e3, ".2f"),
        Column("flops_per_second", "TFLOP/s", 1e-12, ".2f"),
        Column("of_matrix_product", "of the matrix product", form=".1%"),
        Column("bytes_per_second", "GB/s, estimated", 1e-9, ".1f"),
        Column("of_copy", "of the copy", form=".1%"),
        Column("relative_error", "error relative to the largest logit", form=".1e"),
        Column("same_class", "pixels of the same class", form=".3%"),
    ),
    "sustained": (
        Column("rate", "images/s", form=".1f"),
        Column("flops_per_second", "TFLOP/s", 1e-12, ".2f"),
        Column("of_matrix_product", "of the matrix product", form=".1%"),
        Column("sm_mhz", "SM MHz", form=".0f"),
        Column("memory_mhz", "memory MHz", form=".0f"),
        Column("watts", "W", form=".0f"),
        Column("celsius", "°C", form=".0f"),
        Column("throttle", "throttled by"),
    ),
    "kernels": (Column("share", "share", form=".1%"), Column("ms", "ms", form=".3f"), Column("calls", "calls")),
    "steps": (Column("cpu_ms", "CPU code, ms", form=".2f"), Column("device_ms", "GPU code, ms", form=".2f")),
    "steps agree": (Column("equal", "equal", form=".4%"), Column("largest_difference", "largest difference")),
    "serving": (
        Column("rate", "images/s", form=".1f"),
        *(Column(f"p{percent}", f"p{percent}, ms", 1e3, ".1f") for percent in (50, 95, 99)),
        Column("failed", "failed", form=".0f"),
        Column("differing", "wrong masks", form=".0f"),
        Column("server_share", "CPU share of the server", form=".0%"),
        Column("load_share", "of the load", form=".0%"),
        Column("busy", "busiest process of the load", form=".0%"),
        Column("limited", ""),
    ),
    "stages": (
        Column("batch", "batch", form=".1f"),
        *(Column(f"{kind}_ms", f"{kind.replace('_', ' ')} ms", form=".2f") for kind in server_statistics.TIMES),
    ),
    "targets": (
        Column("required", "at least", form="g"),
        Column("found", "found", form=".2f"),
        Column("verdict", ""),
        Column("of", "of"),
    ),
}


class Run:
    """The sections of one run, as methods."""

    def __init__(self, settings: Settings, report: Report, deadline: Deadline, folder: Path) -> None:
        self._settings = settings
        self._report = report
        self._deadline = deadline
        self._folder = folder
        self._picture = folder / "picture.jpg"
        harness.save_photograph(self._picture, settings.picture)

    def card(self, _models: Mapping[str, DeepLabV3]) -> None:
        """Measure the card."""
        measure_card(self._report, self._settings)

    def bare(self, models: Mapping[str, DeepLabV3]) -> None:
        """Measure the bare models; each variant gets an equal share of the time."""
        deadline = Deadline(_BARE_SHARE * self._deadline.left())
        for turn, (variant, model) in enumerate(models.items()):
            share = Deadline(deadline.left() / (len(models) - turn))
            measure_bare(self._report, variant, model, self._settings, deadline=share, folder=self._folder)

    def kernels(self, models: Mapping[str, DeepLabV3]) -> None:
        """Profile the first variant, with PyTorch's defaults and with the fastest cuDNN mode."""
        variant, model = next(iter(models.items()))
        top = fastest(self._report, variant)
        for cudnn in dict.fromkeys(("heuristic", by_name(top.contender).cudnn if top else "heuristic")):
            if not self._deadline.allows(_KERNELS_SECONDS):
                self._report.skip(f"kernels {cudnn}", "no time was left")
                continue
            with self._report.part(f"kernels {cudnn}"):
                profile_kernels(self._report, variant, model, self._settings, folder=self._folder, cudnn=cudnn)
        if self._settings.on_gpu:
            torch.cuda.empty_cache()

    def steps(self, _models: Mapping[str, DeepLabV3]) -> None:
        """Measure the steps around the model."""
        from benchmarks.gpu.steps import measure_steps  # noqa: PLC0415 - it changes sys.path

        measure_steps(self._report, self._settings, self._picture)

    def serving(self, models: Mapping[str, DeepLabV3]) -> None:
        """Measure each variant in each setup."""
        from benchmarks.gpu.serving import SETUPS, Served, measure_serving, write_model, write_repository  # noqa: PLC0415 - only this section needs Triton

        settings, report = self._settings, self._report
        if lacking := shared_memory_lacking(settings):
            report.skip("serving", lacking)
            return
        # Leave time for the two profiles of `kernels`.
        needed = _SETUP_SECONDS + 2 * _KERNELS_SECONDS if settings.on_gpu else 0
        plans: dict[str, Plan] = {}
        for setup, variant in itertools.product(SETUPS, models):
            part, file = f"serving {variant}, {setup.name}", self._folder / f"{variant}.pt"
            if setup.of_gpus and not settings.on_gpu:
                report.skip(part, "there is no GPU")
            elif not self._deadline.allows(needed):
                report.skip(part, "no time was left")
            else:
                with report.part(part):
                    if variant not in plans:
                        mode = self._served_mode(variant)
                        plans[variant] = write_model(models[variant], variant, settings, file, cudnn=mode)
                    folder = self._folder / f"{variant}-{SETUPS.index(setup)}"
                    repository = write_repository(folder, plans[variant], setup, settings, file)
                    served = Served(plans[variant], setup, repository, self._picture)
                    measure_serving(report, served, settings, self._deadline)

    def _served_mode(self, variant: str) -> str:
        """Return the cuDNN mode to serve with: the fastest bare one with correct logits.

        Not "benchmark", because it tries cuDNN's algorithms for each batch size before the server is ready.
        """
        top = fastest(self._report, variant, tries_algorithms=False)
        return by_name(top.contender).cudnn if top else "heuristic"


def shared_memory_lacking(settings: Settings) -> str:
    """Return an error if /dev/shm is too small for the served models, with the remedy; otherwise an empty string."""
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, settings.shared_memory_bytes
    if free >= needed:
        return ""
    return (
        f"{SHARED_MEMORY} has {free / 1e6:.0f} MB free, and the server needs {needed / 1e6:.0f} MB; enlarge it, for "
        "example with docker run --shm-size"
    )


def parse(arguments: Sequence[str] | None = None) -> tuple[Settings, list[str], float, Path]:
    """Return the settings, the sections, the minutes and the folder for the results from the command line."""
    parser = harness.parser("benchmarks.gpu", __doc__, output="out/bench/gpu")
    parser.add_argument(
        "--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run with --quick (default: cuda)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny models and short times, to check that everything runs"
    )
    parser.add_argument("--minutes", type=number(0.1), default=9.0, help="time limit of the run (default: %(default)s)")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="can be repeated (default: all)")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="can be repeated (default: both)")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU; use --device cpu --quick for a dry run")
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu needs --quick, because figures of a CPU say nothing about a GPU")
    settings = (
        quick(options.device, tuple(options.variant or ["resnet50"]))
        if options.quick
        else Settings(options.device, tuple(options.variant or VARIANTS))
    )
    sections = [section for section in SECTIONS if section in (options.section or SECTIONS)]
    return settings, sections, options.minutes, options.output


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 1 if a part failed. Parts that were left out do not count."""
    settings, sections, minutes, output = parse(arguments)
    warning = "" if settings.on_gpu else NO_GPU
    about = environment(settings.device)
    report = Report("gpu", output, environment=about, warning=warning)
    for name, value in about.items():
        report.say(f"{name}: {value}")
    report.say(warning)
    report.say(shared_memory_lacking(settings) if "serving" in sections else "")
    deadline = Deadline(60 * minutes)
    if not settings.on_gpu:
        torch.set_num_threads(1)  # for a tiny model, threads cost more than they gain
    with tempfile.TemporaryDirectory() as name:
        models = {
            variant: calibrated(variant, width=settings.width, device=settings.device)
            for variant in (settings.variants if {"bare", "kernels", "serving"} & set(sections) else ())
        }
        run = Run(settings, report, deadline, Path(name))
        for section in sections:
            with report.part(section):
                getattr(run, section)(models)
            most = {"in flight": max(settings.concurrencies)}
            for shown in SECTIONS[section]:
                report.show(shown, report.of(shown, **(most if shown == "stages" else {})), _COLUMNS[shown])
    add_verdicts(report, on_gpu=settings.on_gpu)
    report.show("targets, on an H100", report.of("targets"), _COLUMNS["targets"])
    panels: list[Panel] = []
    for variant in settings.variants:
        rate: dict[str, Any] = {"label": "images/s", "high_is_good": True, "log": True, "where": {"variant": variant}}
        name = variant.replace("resnet", "ResNet-")
        bare, served = f"{name}: model without server", f"{name}: JPEG in, mask out"
        panels.append(Panel("bare", "rate", bare, over="batch", over_label="images per batch", **rate))
        panels.append(Panel("serving", "rate", served, over="in flight", over_label="requests in flight", **rate))
    report.plot(panels, title=f"Throughput on {about.get('card', 'a CPU')}", warning=warning)
    report.say(warning)
    return report.end()


if __name__ == "__main__":
    harness.run(main)
