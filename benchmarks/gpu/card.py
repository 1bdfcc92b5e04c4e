"""The card itself: what it is, and what it can do by matrix products and copies, as torch reaches them."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.benchmark import Timer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from benchmarks.gpu.settings import Settings
    from benchmarks.report import Report

_MAX_RUNS = 50
COPY = "copy"


def seconds_of(run: Callable[[], object], seconds: float) -> float:
    """Return the seconds of a call: of 3 to 50 calls one after the other, in about so many seconds.

    On a GPU they are queued, and waited for at the end; what torch compiles for a shape is ready before.
    """
    timer = Timer("run()", globals={"run": run})
    once = timer.timeit(1).median
    return timer.timeit(min(_MAX_RUNS, max(3, int(seconds / once)))).median


@contextlib.contextmanager
def tensor_float_32(*, allowed: bool) -> Generator[None]:
    """Allow float32 products and convolutions to round their factors to TensorFloat-32, or not."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def measure_card(report: Report, settings: Settings) -> None:
    """Measure square matrix products of random numbers, and a copy."""
    types = {"fp16": torch.float16, "bf16": torch.bfloat16, "tf32": torch.float32, "fp32": torch.float32}
    side = settings.matrix
    for name, dtype in types.items():
        # Random numbers: a card computes faster with zeros, because it draws less power.
        left, right = (torch.randn((side, side), device=settings.device).to(dtype) for _ in range(2))
        product = torch.empty_like(left)
        with tensor_float_32(allowed=name == "tf32"):

            def multiply(left: torch.Tensor = left, right: torch.Tensor = right, out: torch.Tensor = product) -> None:
                torch.mm(left, right, out=out)

            taken = seconds_of(multiply, settings.call_seconds)
        report.add("card", name, {"of": f"{side} x {side}"}, {"flops_per_second": 2 * side**3 / taken})
    source = torch.empty(settings.copy_bytes, dtype=torch.uint8, device=settings.device).random_()
    target = torch.empty_like(source)
    taken = seconds_of(lambda: target.copy_(source), settings.call_seconds)
    moved = {"bytes_per_second": 2 * settings.copy_bytes / taken}
    report.add("card", COPY, {"of": f"{settings.copy_bytes} bytes, read and written"}, moved)


def environment(device: str) -> dict[str, Any]:
    """Return what the figures depend on: the card, its driver and libraries."""
    found: dict[str, Any] = {
        "device": device,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "shared_memory_bytes": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,  # noqa: S108 - of the kernel
    }
    if device == "cuda":
        properties: Any = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "nvidia-smi": _nvidia_smi(),
        }
    return found


def _nvidia_smi() -> str | None:
    """Return the driver, the clocks and the power limit, which decide what a card can do."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    fields = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
    done = subprocess.run(  # noqa: S603 - the driver's own program
        [program, f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
