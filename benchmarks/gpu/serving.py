"""The whole pipeline under load: serve.py on a repository, images a second, latency, and the time by stage."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tritonclient.grpc

from benchmarks.gpu.settings import ROOT
from deeplabv3.embedded.launch import LaunchError, RunningServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from benchmarks.gpu.settings import Deadline, Settings

_START_SECONDS = 240.0
# A process of Python's sends and takes some hundreds of requests a second; each has this many in flight.
_REQUESTS_PER_PROCESS = 8
_MAX_PROCESSES = 8
# Above this share of a core the load itself may hold up what is measured.
_BUSY = 0.85


def measure_serving(
    repository: Path, model: str, settings: Settings, deadline: Deadline, picture: Path
) -> Iterator[dict[str, Any]]:
    """Measure one set-up at each concurrency; yield what is found so far after each."""
    began = time.monotonic()
    log = settings.output / f"{repository.name}.log"
    # A toy on a CPU is smaller than what threads cost.
    variables = None if settings.on_gpu else {"OMP_NUM_THREADS": "1"}
    seconds = min(_START_SECONDS, max(30.0, deadline.left()))
    with RunningServer(repository, log=log, environment=variables, start_seconds=seconds) as server:
        address = server.grpc_url
        found: dict[str, Any] = {"ready_after_seconds": time.monotonic() - began, "concurrencies": {}, "skipped": {}}
        for concurrency in settings.concurrencies:
            if not deadline.allows(2 * settings.load_seconds + 5):
                found["skipped"][str(concurrency)] = "no time was left"
            else:
                before = statistics_of(address)
                row = run_load(address, model, picture, concurrency, settings.load_seconds)
                row["stages"] = stages(before, statistics_of(address))
                found["concurrencies"][str(concurrency)] = row
            yield found


def run_load(address: str, model: str, picture: Path, concurrency: int, seconds: float) -> dict[str, Any]:
    """Keep so many requests in flight from processes of their own; return what came in a time after a ramp."""
    count = min(_MAX_PROCESSES, max(1, concurrency // _REQUESTS_PER_PROCESS))
    shares = [concurrency // count + (number < concurrency % count) for number in range(count)]
    command = [sys.executable, "-m", "benchmarks.gpu.load", address, model, str(picture)]
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(  # noqa: S603  our own module
                    [*command, str(share)],
                    cwd=ROOT,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for share in shares
        ]
        try:
            counted = _counts(processes, seconds)
        except BaseException:
            for process in processes:
                process.kill()
            raise
    taken = sorted(second for each in counted for second in each["seconds"])
    errors: dict[str, int] = {}
    for each in counted:
        for message, times in each["errors"].items():
            errors[message] = errors.get(message, 0) + times
    busiest = max(each["busy"] for each in counted)
    return {
        "images_per_second": len(taken) / seconds,
        "latency_ms": {
            f"p{percent}": 1e3 * taken[min(len(taken) - 1, len(taken) * percent // 100)] for percent in (50, 95, 99)
        }
        if taken
        else None,
        "errors": errors,
        "load_processes": count,
        "busiest_load_process": busiest,
        "load_may_hold_it_up": busiest > _BUSY,
    }


def _counts(processes: list[subprocess.Popen[str]], seconds: float) -> list[dict[str, Any]]:
    for process in processes:
        assert process.stdout is not None  # noqa: S101  it was asked for
        if process.stdout.readline() != "ready\n":
            raise LaunchError("a process of the load had no answer from the server")
    begin = time.monotonic() + 0.1
    counts_from = begin + seconds / 3
    for process in processes:
        assert process.stdin is not None  # noqa: S101  it was asked for
        process.stdin.write(f"{begin} {counts_from} {counts_from + seconds}\n")
        process.stdin.flush()
    return [json.loads(process.stdout.readline()) for process in processes if process.stdout is not None]


@dataclass(frozen=True, slots=True)
class Totals:
    """What Triton counted of one model since it was loaded; times in nanoseconds."""

    inferences: int
    executions: int
    requests: int
    queue: int
    compute_input: int
    compute_infer: int
    compute_output: int


def statistics_of(address: str) -> dict[str, Totals]:
    """Return Triton's statistics of every model."""
    with contextlib.closing(tritonclient.grpc.InferenceServerClient(address)) as client:
        reply: Any = client.get_inference_statistics()
    return {
        model.name: Totals(
            model.inference_count,
            model.execution_count,
            model.inference_stats.success.count,
            model.inference_stats.queue.ns,
            model.inference_stats.compute_input.ns,
            model.inference_stats.compute_infer.ns,
            model.inference_stats.compute_output.ns,
        )
        for model in reply.model_stats
    }


def stages(before: dict[str, Totals], after: dict[str, Totals]) -> dict[str, dict[str, float]]:
    """Return the mean batch of each step that ran, and the mean milliseconds that a request spent in it."""
    found: dict[str, dict[str, float]] = {}
    for model, end in after.items():
        start = before.get(model, Totals(*[0] * 7))
        requests, executions = end.requests - start.requests, end.executions - start.executions
        if not requests or not executions:
            continue
        times = {
            f"{name}_ms": (getattr(end, name) - getattr(start, name)) / requests / 1e6
            for name in ("queue", "compute_input", "compute_infer", "compute_output")
        }
        found[model] = {"mean_batch": (end.inferences - start.inferences) / executions, **times}
    return found
