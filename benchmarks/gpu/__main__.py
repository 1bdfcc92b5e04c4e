"""What a GPU makes of the models, bare and served, in one run that is over before its time is.

    python -m benchmarks.gpu [--minutes 9] [--section card --section bare ...] [--variant resnet50] [--output DIR]
    python -m benchmarks.gpu --device cpu --quick     a dry run: every section on a toy, whose figures mean nothing

Sections, in this order: `card` measures matrix products and a copy; `bare` the traced models in each precision and
mode of cuDNN at each batch, checked against PyTorch's float32; `kernels` where their time goes; `steps` what preprocess
and postprocess cost on the CPU and on the GPU, and whether they agree; `serving` the embedded Triton server under load,
with and without dynamic batching and with the resize on the GPU. `serving` needs the project's environment, the others
torch and torchvision only. Weights are untrained, with batch normalisation that fits: they take the same time.

Results are printed as they come, and are in gpu.json after each step. What does not fit the time is left out and named.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import argparse
import contextlib
import importlib.util
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu import bare, show
from benchmarks.gpu.card import measure_card
from benchmarks.gpu.checkpoint import calibrated
from benchmarks.gpu.kernels import profile_kernels
from benchmarks.gpu.picture import encoded
from benchmarks.gpu.record import NO_GPU, Record
from benchmarks.gpu.settings import ROOT, Deadline, Settings, quick
from benchmarks.gpu.steps import measure_steps
from benchmarks.gpu.targets import verdicts
from deeplabv3 import VARIANTS
from deeplabv3.building.tracing import PRECISIONS

if TYPE_CHECKING:
    from collections.abc import Generator

    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

SECTIONS = ("card", "bare", "kernels", "steps", "serving")
# What the bare models may take of the time that is left when they begin; the sections after them get the rest.
_BARE_SHARE = 0.4
# A server's start, with every batch size warmed up, and a load at one concurrency.
_SETUP_SECONDS = 60
_FAILED = "failed"


def run(settings: Settings, sections: list[str], *, minutes: float) -> Record:
    """Run some sections; return the record of what was found."""
    record = Record(settings)
    deadline = Deadline(60 * minutes)
    if not settings.on_gpu:
        show.say(NO_GPU)
        torch.set_num_threads(1)  # a toy is smaller than what threads cost
    for name, value in record.found["environment"].items():
        show.say(f"{name}: {value}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "card" in sections:
            with _kept_apart(record, "card"):
                record.add("card", measure_card(settings))
                show.show_card(record.found["card"])
        models: dict[str, DeepLabV3] = {}
        if {"bare", "kernels", "serving"} & set(sections):
            models = {
                variant: calibrated(variant, width=settings.width, device=settings.device)
                for variant in settings.variants
            }
        if "bare" in sections:
            with _kept_apart(record, "bare"):
                _run_bare(models, settings, record, Deadline(_BARE_SHARE * deadline.left()), folder)
        if "kernels" in sections:
            with _kept_apart(record, "kernels"):
                _run_kernels(models, settings, record, deadline, folder)
        if "steps" in sections:
            with _kept_apart(record, "steps"):
                record.add("steps", measure_steps(settings))
                show.show_steps(record.found["steps"])
        if "serving" in sections:
            with _kept_apart(record, "serving"):
                _run_serving(models, settings, record, deadline, folder)
    record.add("targets", verdicts(record.found))
    for part, reason in record.found.get("skipped", {}).items():
        show.say(f"not measured: {part}: {reason}")
    show.show_verdicts(record.found["targets"], on_gpu=settings.on_gpu)
    return record


@contextlib.contextmanager
def _kept_apart(record: Record, part: str) -> Generator[None]:
    """Let a part that fails cost the others nothing: it is named among what was not measured."""
    try:
        yield
    except Exception as exc:  # noqa: BLE001  named in the output and the exit code; the next part runs
        traceback.print_exc()
        record.skip(part, f"{_FAILED}: {exc!r}"[:500])


def _run_bare(
    models: dict[str, DeepLabV3], settings: Settings, record: Record, deadline: Deadline, folder: Path
) -> None:
    found: dict[str, Any] = {}
    for number, (variant, model) in enumerate(models.items()):
        share = Deadline(deadline.left() / (len(models) - number))
        for name, found[variant] in bare.measure_bare(model, settings, share, folder, record.found.get("card", {})):
            record.add("bare", found)
            show.show_bare(variant, name, found[variant])


def _run_kernels(
    models: dict[str, DeepLabV3], settings: Settings, record: Record, deadline: Deadline, folder: Path
) -> None:
    variant, model = next(iter(models.items()))
    found: dict[str, Any] = {}
    for cudnn in ("heuristic", "fused") if settings.on_gpu else ("heuristic",):
        if not deadline.allows(20):
            record.skip(f"kernels {cudnn}", "no time was left")
            continue
        with _kept_apart(record, f"kernels {cudnn}"):
            found[cudnn] = profile_kernels(model, settings, folder, cudnn=cudnn)
            record.add("kernels", {variant: found})
            show.show_kernels(variant, found[cudnn])
    if settings.on_gpu:
        torch.cuda.empty_cache()


def _run_serving(
    models: dict[str, DeepLabV3], settings: Settings, record: Record, deadline: Deadline, folder: Path
) -> None:
    missing = [name for name in ("pytriton", "tritonclient", "joblib") if importlib.util.find_spec(name) is None]
    if missing:
        record.skip(
            "serving", f"{', '.join(missing)} not installed: it needs the project's environment, as of `make demo`"
        )
        return
    from benchmarks.gpu.repositories import SETUPS, write_model, write_repository  # noqa: PLC0415  see above
    from benchmarks.gpu.serving import measure_serving  # noqa: PLC0415

    picture = folder / "picture.jpg"
    picture.write_bytes(encoded(settings.picture))
    found: dict[str, Any] = {}
    for variant, model in models.items():
        found[variant] = {}
        file = folder / f"{variant}.pt"
        plan = write_model(model, variant, settings, file, cudnn=_fastest_mode(record.found, variant))
        for number, setup in enumerate(SETUPS):
            part = f"serving {variant}, {setup.name}"
            if setup.preprocess_device == "cuda" and not settings.on_gpu:
                record.skip(part, "there is no GPU")
                continue
            if not deadline.allows(_SETUP_SECONDS if settings.on_gpu else 0):
                record.skip(part, "no time was left")
                continue
            repository = write_repository(folder / f"{variant}-{number}", plan, setup, settings, file)
            with _kept_apart(record, part):
                for partial in measure_serving(repository, plan.ensemble, settings, deadline, picture):
                    found[variant][setup.name] = {"cudnn": plan.cudnn, **partial}
                    record.add("serving", found)
                show.show_serving(variant, setup.name, found[variant][setup.name])


def _fastest_mode(found: dict[str, Any], variant: str) -> str:
    """Return the mode of cuDNN to serve with: the faster bare one whose answers are right.

    Not "benchmark", which tries its algorithms for each of 32 batch sizes before the server is ready.
    """
    contenders = found.get("bare", {}).get(variant, {"contenders": {}})["contenders"]
    usable = {
        name: each
        for name, each in contenders.items()
        if name in {"fp16", "fp16 fused"} and each["check"]["relative_error"] <= PRECISIONS["fp16"].tolerance
    }
    top = bare.best({"contenders": usable})
    return "fused" if top is not None and top[0] == "fp16 fused" else "heuristic"


def parse(arguments: list[str] | None = None) -> tuple[Settings, list[str], float]:
    """Read the command line: what to measure, the sections, the minutes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run (default: cuda)")
    parser.add_argument("--quick", action="store_true", help="tiny models and times: shows that it runs")
    parser.add_argument("--minutes", type=float, default=9.0, help="the time that all may take (default: %(default)s)")
    parser.add_argument("--section", action="append", choices=SECTIONS, help="may be repeated (default: all)")
    parser.add_argument("--variant", action="append", choices=VARIANTS, help="may be repeated (default: both)")
    parser.add_argument("--output", type=Path, default=ROOT / "out" / "bench" / "gpu", metavar="DIR")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch finds no GPU here; --device cpu --quick is a dry run")
    if options.device == "cpu" and not options.quick:
        parser.error("--device cpu is for --quick: its figures would say nothing of a GPU")
    settings = (
        quick(options.device, tuple(options.variant or ["resnet50"]), options.output)
        if options.quick
        else Settings(options.device, tuple(options.variant or VARIANTS), output=options.output)
    )
    return settings, options.section or list(SECTIONS), options.minutes


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return 1 where a part failed, 0 also where one was left out."""
    settings, sections, minutes = parse(arguments)
    record = run(settings, sections, minutes=minutes)
    if reason := show.plot(record.found, settings.output / "gpu.png"):
        show.say(f"no picture: {reason}")
    show.say(f"written: {', '.join(str(path) for path in sorted(settings.output.glob('gpu.*')))}")
    return int(any(reason.startswith(_FAILED) for reason in record.found.get("skipped", {}).values()))


if __name__ == "__main__":
    sys.exit(main())
