"""The traced models by themselves: images a second, how that compares with the card, and whether they are right."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.gpu.arithmetic import Work, count_work
from benchmarks.gpu.card import seconds_of, tensor_float_32
from deeplabv3.building import tracing
from deeplabv3.building.fusion import fuse_for_cudnn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

    from benchmarks.gpu.settings import Deadline, Settings

_CHECKED_BATCH = 2


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to build a model for a GPU: a precision and a mode of cuDNN, as build_models.py takes them."""

    precision: str
    cudnn: str

    @property
    def name(self) -> str:
        """What it is called in the results."""
        return self.precision if self.cudnn == "heuristic" else f"{self.precision} {self.cudnn}"


CONTENDERS = (
    Contender("fp16", "heuristic"),
    Contender("fp16", "fused"),
    Contender("fp16", "benchmark"),
    Contender("tf32", "heuristic"),
    Contender("fp32", "heuristic"),
)


def traced(model: DeepLabV3, contender: Contender, file: Path) -> Path:
    """Write a contender's file, as build_models.py would."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        precision = tracing.PRECISIONS[contender.precision]
        module = tracing.trace(model, aux=False, precision=precision, device="cuda", cudnn=contender.cudnn)
        if contender.cudnn == "fused":
            fuse_for_cudnn(module)
        tracing.save(module, file, {})
    return file


def load(file: Path, device: str) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
    """Load a file as Triton's PyTorch backend does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        module: Any = torch.jit.load(str(file), map_location=device)
    return module


def measure_bare(
    model: DeepLabV3, settings: Settings, deadline: Deadline, folder: Path, card: dict[str, Any]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure one variant; yield the name of each contender and what is found so far.

    Args:
        model: on the CPU, in inference mode.
        settings: of the run.
        deadline: when to leave out what is left.
        folder: for the traced files.
        card: what `measure_card` found; empty where it did not run.
    """
    work = count_work(model, settings.size)
    found: dict[str, Any] = {"work": asdict(work), "contenders": {}, "skipped": {}}
    pixels = torch.randn((_CHECKED_BATCH, 3, settings.size, settings.size), generator=torch.Generator().manual_seed(1))
    reference = eager_logits(model, pixels, settings.device)
    for contender in CONTENDERS:
        if contender.cudnn == "fused" and not settings.on_gpu:
            found["skipped"][contender.name] = "its operators run on GPUs only"
        elif not deadline.allows(5 + len(settings.batches) * 3 * settings.call_seconds):
            found["skipped"][contender.name] = "no time was left"
        else:
            try:
                module = load(traced(model, contender, folder / "model.pt"), settings.device)
                with torch.inference_mode():
                    check = compare(module(pixels.to(settings.device))[0].float().cpu(), reference)
                    seconds = seconds_by_batch(module, settings)
            except RuntimeError as exc:  # out of memory, or an operator that cuDNN has no algorithm for on this card
                found["skipped"][contender.name] = str(exc).splitlines()[0]
            else:
                batches = {str(batch): rates(taken, batch, work, contender, card) for batch, taken in seconds.items()}
                found["contenders"][contender.name] = {"check": check, "batches": batches}
        if settings.on_gpu:
            torch.cuda.empty_cache()
        yield contender.name, found


def seconds_by_batch(module: Callable[[torch.Tensor], object], settings: Settings) -> dict[int, float]:
    """Return the seconds of a call by the size of its batch, where memory suffices.

    The largest runs first, as in the server's warm-up: the executor compiles for the shapes that it sees first.
    """
    found: dict[int, float] = {}
    for batch in sorted(settings.batches, reverse=True):
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            pixels = torch.randn((batch, 3, settings.size, settings.size), device=settings.device)
            found[batch] = seconds_of(partial(module, pixels), device=settings.device, seconds=settings.call_seconds)
    return dict(sorted(found.items()))


def eager_logits(model: DeepLabV3, pixels: torch.Tensor, device: str) -> torch.Tensor:
    """Return torchvision's own logits in IEEE float32, on the CPU."""
    with torch.inference_mode(), tensor_float_32(allowed=False):
        logits: torch.Tensor = model.to(device)(pixels.to(device))["out"].float().cpu()
    model.cpu()
    return logits


def compare(logits: torch.Tensor, expected: torch.Tensor) -> dict[str, float | bool]:
    """Return how far logits are off, as a share of the largest, and the share of pixels that get the same class."""
    return {
        "finite": bool(torch.isfinite(logits).all()),
        "largest_logit": float(expected.abs().max()),
        "relative_error": float((logits - expected).abs().max() / expected.abs().max()),
        "same_class": float((logits.argmax(1) == expected.argmax(1)).double().mean()),
    }


def rates(seconds: float, batch: int, work: Work, contender: Contender, card: dict[str, Any]) -> dict[str, float]:
    """Return what the time of one batch comes to, and what part of the card's own measured best that is."""
    images = batch / seconds
    itemsize = tracing.PRECISIONS[contender.precision].dtype.itemsize
    moved = images * work.bytes_moved(itemsize, batch, fused=contender.cudnn == "fused")
    found = {
        "seconds": seconds,
        "images_per_second": images,
        "tflops": images * work.flops / 1e12,
        "estimated_bytes_per_second": moved,
    }
    if card:
        found["of_matrix_product"] = found["tflops"] / card["tflops"][contender.precision]
        found["of_copy"] = moved / card["copy_bytes_per_second"]
    return found


def best(bare: dict[str, Any], prefix: str = "fp16") -> tuple[str, str, float] | None:
    """Return the fastest contender of a precision, its best batch, and its images a second."""
    rows = [
        (name, batch, row["images_per_second"])
        for name, contender in bare["contenders"].items()
        if name.split()[0] == prefix
        for batch, row in contender["batches"].items()
    ]
    return max(rows, key=lambda row: row[2], default=None)
