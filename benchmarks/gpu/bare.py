"""The traced models without a server: images per second, the share of the card's peak, and the error of the logits."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.card import COPY, fill_free_memory_with_nan, seconds_of, tensor_float_32, watched
from benchmarks.gpu.models import Work, count_work, loaded, traced
from deeplabv3.building import tracing
from deeplabv3.building.plan import MEAN, STD

if TYPE_CHECKING:
    from pathlib import Path

    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

    from benchmarks.gpu.settings import Settings
    from benchmarks.harness import Deadline
    from benchmarks.report import Report, Row

_CHECKED_PICTURES = 2
_ANY_NUMBER = 1_000_000
_KERNELS_SHOWN = 12
_KERNELS_BATCH = 32  # the largest batch of the server


class Contender(NamedTuple):
    """One way to build a model for a GPU: a precision and a cuDNN mode of build_models.py."""

    precision: str
    cudnn: str = "heuristic"

    @property
    def name(self) -> str:
        """The name in the results."""
        return self.precision if self.cudnn == "heuristic" else f"{self.precision} {self.cudnn}"

    def load(self, model: DeepLabV3, folder: Path, device: str) -> Any:  # noqa: ANN401 - a module of TorchScript
        """Return the loaded model; its file is written once."""
        file = folder / f"{self.name}.pt"
        if not file.exists():
            folder.mkdir(exist_ok=True)
            traced(model, file, device="cuda", precision=self.precision, cudnn=self.cudnn)
        return loaded(file, device)


# The most important first, because the last ones are left out if the time is short.
CONTENDERS = (
    Contender("fp16"),
    Contender("fp16", "fused"),
    Contender("fp16", "tensorexpr"),
    Contender("fp16", "fused-corners"),
    Contender("fp16", "tensorexpr-corners"),
    Contender("fp16", "benchmark"),
    Contender("tf32"),
    Contender("fp32"),
)


def measure_bare(
    report: Report, variant: str, model: DeepLabV3, settings: Settings, *, deadline: Deadline, folder: Path
) -> None:
    """Measure one variant in each precision and cuDNN mode at each batch size, and the fastest of fp16 for longer.

    Args:
        report: gets the rows, with shares of the card's peak if the card was measured before.
        variant: its name.
        model: on the CPU, in inference mode.
        settings: of the run.
        deadline: after it, the remaining contenders are left out.
        folder: for the traced files, by variant.
    """
    work = count_work(model, settings.size)
    report.add("work", variant, {}, {name: float(value) for name, value in asdict(work).items()})
    with torch.inference_mode(), tensor_float_32(allowed=False):
        core = tracing.Core(model, mean=MEAN, std=STD).to(settings.device)
        reference = core(*noise(_CHECKED_PICTURES, settings))[0].cpu()
    model.cpu()
    for contender in CONTENDERS:
        part = f"bare {variant}, {contender.name}"
        if contender.cudnn.startswith("fused") and not settings.on_gpu:
            report.skip(part, "its operators run on GPUs only")
            continue
        if not deadline.allows(5 + settings.sustained_seconds + len(settings.batches) * 3 * settings.call_seconds):
            report.skip(part, "no time was left")
            continue
        try:
            module = contender.load(model, folder / variant, settings.device)
            with torch.inference_mode():
                seconds = seconds_by_batch(module, settings)
                if not seconds:
                    report.skip(part, "no batch fits into the memory")
                    continue
                best = max(seconds, key=lambda batch: batch / seconds[batch])
                check = compare(*answers(module, best, reference, settings))
        except RuntimeError as exc:  # out of memory, or an operator that cuDNN has no algorithm for on this card
            report.skip(part, str(exc).splitlines()[0])
            continue
        for batch, taken in seconds.items():
            figures = rates(report, taken, batch, work, contender)
            report.add("bare", contender.name, {"variant": variant, "batch": batch}, {**figures, **check})
        report.say(f"{variant}, {contender.name}: {best / seconds[best]:.1f} images/s at batch {best}")
        if settings.on_gpu:
            torch.cuda.empty_cache()
    if top := fastest(report, variant):
        contender, batch = by_name(top.contender), top.condition["batch"]
        module = contender.load(model, folder / variant, settings.device)
        notes: dict[str, str] = {}
        watched_figures: dict[str, float] = {}
        with torch.inference_mode():
            run = partial(module, *noise(batch, settings))
            seconds_of(run, settings.call_seconds)
            with watched(watched_figures, notes, device=settings.device):
                taken = seconds_of(run, settings.sustained_seconds, most=_ANY_NUMBER)
        figures = rates(report, taken, batch, work, contender) | watched_figures
        report.add("sustained", contender.name, {"variant": variant, "batch": batch}, figures, **notes)


def fastest(report: Report, variant: str, *, tries_algorithms: bool = True) -> Row | None:
    """Return the row of the fastest fp16 contender with correct logits, at its best batch size.

    Args:
        report: with the rows of this section.
        variant: one of VARIANTS.
        tries_algorithms: whether the mode that tries cuDNN's algorithms for each batch size is included.
    """
    rows = [
        row
        for contender in CONTENDERS
        if contender.precision == "fp16" and (tries_algorithms or contender.cudnn != "benchmark")
        for row in [report.best("bare", "rate", variant=variant, contender=contender.name)]
        if row and row.figures["relative_error"].median <= tracing.PRECISIONS["fp16"].tolerance
    ]
    return max(rows, key=lambda row: row.figures["rate"].median, default=None)


def by_name(name: str) -> Contender:
    """Return the contender with a name."""
    return next(contender for contender in CONTENDERS if contender.name == name)


def noise(batch: int, settings: Settings) -> tuple[torch.Tensor, torch.Tensor]:
    """Return PIXELS and IMAGE_ID of a random batch, on the device."""
    generator = torch.Generator().manual_seed(1)
    shape = (batch, settings.size, settings.size, 3)
    pixels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return pixels.to(settings.device), torch.zeros((batch, 1), dtype=torch.int64, device=settings.device)


def seconds_by_batch(module: Any, settings: Settings) -> dict[int, float]:  # noqa: ANN401 - a module of TorchScript
    """Return the seconds of a call by batch size; batches that do not fit into the memory are left out.

    The largest batch runs first, as in the server's warm-up, because the executor compiles for the first shapes.
    """
    found: dict[int, float] = {}
    for batch in sorted(settings.batches, reverse=True):
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            found[batch] = seconds_of(partial(module, *noise(batch, settings)), settings.call_seconds)
    return dict(sorted(found.items()))


def answers(
    module: Any,  # noqa: ANN401 - a module of TorchScript
    batch: int,
    reference: torch.Tensor,
    settings: Settings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits of the last pictures of a batch, and the expected ones; fill free memory with NaN before."""
    pixels, image_id = noise(len(reference), settings)
    chosen = torch.arange(batch) % len(reference)
    arguments = pixels[chosen.to(pixels.device)], image_id.new_zeros((batch, 1))
    fill_free_memory_with_nan(settings.device)
    found = module(*arguments)[0]
    return found[-len(reference) :].cpu(), reference[chosen[-len(reference) :]]


def compare(logits: torch.Tensor, expected: torch.Tensor) -> dict[str, float]:
    """Return the largest error relative to the largest logit, and the share of pixels with the same class."""
    return {
        "finite": float(torch.isfinite(logits).all()),
        "largest_logit": float(expected.abs().max()),
        "relative_error": float((logits - expected).abs().max() / expected.abs().max()),
        "same_class": float((logits.argmax(1) == expected.argmax(1)).double().mean()),
    }


def rates(report: Report, seconds: float, batch: int, work: Work, contender: Contender) -> dict[str, float]:
    """Return the rates for the time of one batch, and their shares of the card's measured peak."""
    images = batch / seconds
    moved = images * work.bytes_moved(contender.precision, batch, cudnn=contender.cudnn)
    found = {"seconds": seconds, "rate": images, "flops_per_second": images * work.flops, "bytes_per_second": moved}
    for part, name, product in (
        ("of_matrix_product", "flops_per_second", contender.precision),
        ("of_copy", "bytes_per_second", COPY),
    ):
        for row in report.of("card", contender=product):
            found[part] = found[name] / row.figures[name].median
    return found


def profile_kernels(
    report: Report, variant: str, model: DeepLabV3, settings: Settings, *, folder: Path, cudnn: str
) -> None:
    """Add the kernels that take most of the time in fp16, with a batch of at most 32."""
    batch = max(batch for batch in settings.batches if batch <= _KERNELS_BATCH)
    module = Contender("fp16", cudnn).load(model, folder / variant, settings.device)
    arguments = noise(batch, settings)
    calls = 3 if settings.on_gpu else 1
    activity = ProfilerActivity.CUDA if settings.on_gpu else ProfilerActivity.CPU
    with torch.inference_mode():
        for _ in range(calls):
            module(*arguments)
        with profile(activities=[activity], acc_events=True) as profiler:
            for _ in range(calls):
                module(*arguments)
            if settings.on_gpu:
                torch.cuda.synchronize()
    spent = "self_device_time_total" if settings.on_gpu else "self_cpu_time_total"
    events: list[Any] = sorted(profiler.key_averages(), key=lambda event: -getattr(event, spent))
    total = sum(getattr(event, spent) for event in events) or 1
    condition = {"variant": variant, "cudnn": cudnn, "batch": batch}
    report.add("kernels", "all", condition, {"share": 1.0, "ms": total / 1e3 / calls})
    for event in events[:_KERNELS_SHOWN]:
        taken = getattr(event, spent)
        figures = {"share": taken / total, "ms": taken / 1e3 / calls, "calls": event.count / calls}
        report.add("kernels", event.key[:80], condition, figures)
