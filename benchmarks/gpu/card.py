"""What the card itself can do: matrix products and copies, as torch reaches them."""

from __future__ import annotations

import contextlib
import statistics
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from benchmarks.gpu.settings import Settings

# What torch compiles for a shape is ready after its second run.
_WARM_UP = {"cuda": 3, "cpu": 1}
_MIN_RUNS = {"cuda": 3, "cpu": 2}
_MAX_RUNS = 50


def seconds_of(run: Callable[[], object], *, device: str, seconds: float) -> float:
    """Return the median seconds of a call, by the clock of a device, over about so many seconds and 2 to 50 calls."""
    for _ in range(_WARM_UP[device]):
        run()
    return statistics.median(_timed_on_gpu(run, seconds) if device == "cuda" else _timed_on_cpu(run, seconds))


def _timed_on_gpu(run: Callable[[], object], seconds: float) -> list[float]:
    torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    runs = min(_MAX_RUNS, max(_MIN_RUNS["cuda"], int(seconds / max(time.perf_counter() - started, 1e-6))))
    events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(runs + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) / 1e3 for before, after in pairwise(events)]


def _timed_on_cpu(run: Callable[[], object], seconds: float) -> list[float]:
    end, found = time.perf_counter() + seconds, list[float]()
    while len(found) < _MIN_RUNS["cpu"] or (time.perf_counter() < end and len(found) < _MAX_RUNS):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return found


@contextlib.contextmanager
def tensor_float_32(*, allowed: bool) -> Generator[None]:
    """Allow float32 products and convolutions to round their factors to TensorFloat-32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def measure_card(settings: Settings) -> dict[str, Any]:
    """Measure square matrix products of random numbers, in TFLOP/s, and a copy, in bytes read and written a second."""
    found: dict[str, Any] = {"matrix": settings.matrix, "tflops": {}}
    types = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
    for name, dtype in types.items():
        # Random numbers: a card computes faster with zeros, for it draws less power.
        left, right = (
            torch.randn((settings.matrix, settings.matrix), device=settings.device).to(dtype) for _ in range(2)
        )
        product = torch.empty_like(left)
        with tensor_float_32(allowed=name == "tf32"):

            def multiply(left: torch.Tensor = left, right: torch.Tensor = right, out: torch.Tensor = product) -> None:
                torch.mm(left, right, out=out)

            taken = seconds_of(multiply, device=settings.device, seconds=settings.call_seconds)
        found["tflops"][name] = 2 * settings.matrix**3 / taken / 1e12
    source = torch.empty(settings.copy_bytes, dtype=torch.uint8, device=settings.device).random_()
    target = torch.empty_like(source)
    taken = seconds_of(lambda: target.copy_(source), device=settings.device, seconds=settings.call_seconds)
    found["copy_bytes_per_second"] = 2 * settings.copy_bytes / taken
    return found
