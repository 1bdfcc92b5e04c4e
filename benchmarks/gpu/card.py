"""The card: its name and driver, and its peak for matrix products and copies with torch."""

from __future__ import annotations

import contextlib
import functools
import operator
import shutil
import statistics
import subprocess
import threading
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
_FILLED_BYTES = 8 << 30
_SMALL_BYTES = 1 << 20  # torch's allocator has a separate pool for blocks of at most this size
_SAMPLE_SECONDS = 0.2
_PATIENCE_SECONDS = 5.0
_WATCHED = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")
_REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # of newer drivers, and of older ones
# Meaning of the bits, from NVIDIA's nvml.h. The lowest bit marks an idle card.
_THROTTLES = (
    "",
    "applications clocks",
    "software power cap",
    "hardware slowdown",
    "sync boost",
    "software thermal",
    "hardware thermal",
    "hardware power brake",
    "display clocks",
)


def seconds_of(run: Callable[[], object], seconds: float, *, most: int = _MAX_RUNS) -> float:
    """Return the seconds of a call, from at least 3 calls in about this many seconds.

    On a GPU the calls are queued, and the timer waits for all of them. A call before that compiles for the shape.
    """
    timer = Timer("run()", globals={"run": run})
    once = timer.timeit(1).median
    return timer.timeit(min(most, max(3, int(seconds / once)))).median


@contextlib.contextmanager
def tensor_float_32(*, allowed: bool) -> Generator[None]:
    """Set whether float32 products and convolutions may round their factors to TensorFloat-32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def measure_card(report: Report, settings: Settings) -> None:
    """Measure products of square random matrices, and a copy."""
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


def fill_free_memory_with_nan(device: str) -> None:
    """Fill the memory that torch's allocator uses next on a GPU with NaN, in any floating-point type.

    A result that depends on uninitialized memory then becomes NaN.
    """
    if device != "cuda":
        return
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    large = min(_FILLED_BYTES, free // 2) // 8
    blocks = [
        torch.full((size,), 0xFF, dtype=torch.uint8, device=device) for size in [large] * 8 + [_SMALL_BYTES // 2] * 128
    ]
    torch.cuda.synchronize()
    blocks.clear()


@contextlib.contextmanager
def watched(found: dict[str, float], notes: dict[str, str], *, device: str) -> Generator[None]:
    """Sample the card: clocks, power and temperature go into `found`, the reasons for throttling into `notes`.

    The figures are medians: the clocks of the multiprocessors and of the memory in MHz, watts, degrees Celsius. If the
    reasons are unknown, the note says why.
    """
    program = shutil.which("nvidia-smi") if device == "cuda" else None
    if program is None:
        notes["throttle"] = "unknown: no nvidia-smi" if device == "cuda" else "unknown: no GPU"
        yield
        return
    known = _output([program, "--help-query-gpu"])
    fields = (*_WATCHED, next((name for name in _REASONS if name in known), _REASONS[-1]))
    command = [program, "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    said: list[str] = []
    done = threading.Event()

    def sample() -> None:
        while True:
            said.extend(
                _output(command).splitlines()
            )  # one call for each sample, because output of nvidia-smi's own loop can be lost
            if done.wait(_SAMPLE_SECONDS):
                return

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    samples = [line.split(", ") for line in said if line.count(", ") == len(fields) - 1]
    if not samples:
        notes["throttle"] = f"unknown: {''.join(said[:1])[:200]}"
        return
    for place, name in enumerate(("sm_mhz", "memory_mhz", "watts", "celsius")):
        with contextlib.suppress(ValueError):  # "[N/A]"
            found[name] = statistics.median(float(sample[place]) for sample in samples)
    notes["throttle"] = "unknown: nvidia-smi does not report it"
    with contextlib.suppress(ValueError):
        bits = functools.reduce(operator.or_, (int(sample[-1], 16) for sample in samples))
        reasons = [name for bit, name in enumerate(_THROTTLES) if name and bits >> bit & 1]
        notes["throttle"] = ", ".join(reasons) or "nothing"


def _output(command: list[str]) -> str:
    """Return a program's output, with stderr; empty after a timeout."""
    try:
        done = subprocess.run(  # noqa: S603 - the driver's own program
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=_PATIENCE_SECONDS
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout


def environment(device: str) -> dict[str, Any]:
    """Return the card, its driver and libraries, which the figures depend on."""
    found: dict[str, Any] = {
        "device": device,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "shared_memory_bytes": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,  # noqa: S108 - the kernel's shared memory
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
    """Return the driver, the maximum clocks and the power limit."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    fields = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
    return _output([program, f"--query-gpu={fields}", "--format=csv,noheader"]).strip() or None
