"""Estimate how many replicas a rate of requests needs.

    python -m load_tests.capacity out/load/closed.json --rate 2 --p99 6

Reads the summary of a load test of one server (--summary), takes the core model's batch times from it, and simulates
requests that arrive at 1, 2, ... replicas. A replica is modeled as the queue of the core model: when an instance is
free, Triton batches the waiting requests up to the maximum batch size, and may wait for more first. Everything else
that a request passes adds a constant.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from deeplabv3.arguments import number
from deeplabv3.command_line import Parser
from deeplabv3.console import console
from deeplabv3.models.names import CORE_PREFIX, ensemble_name
from deeplabv3.server_statistics import TIMES
from load_tests.simulation import BALANCING, Outcome, Replica, poisson, simulate
from load_tests.summary import SummaryError, load

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping, Sequence

    from load_tests.summary import Summary

EXIT_TOO_FEW = 1

_IN_CORE = tuple(f"{name}_seconds" for name in TIMES)
# Largest share by which the counts of server and client may differ, because of requests in flight at either end.
_COUNT_TOLERANCE = 0.1
_FEW_BATCHES = 50  # a short slowdown of the machine would change the mean of fewer batches
_MORE_ROWS = 2  # after the first number that is enough, to show the effect of another replica
_TINY = 1e-9
# Above these a simulation takes too long to wait for.
_MOST_BATCHED, _MOST_INSTANCES, _MOST = 1024, 256, 10_000_000


class ServiceTimesError(Exception):
    """The run does not show how long batches take; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """Seconds of a batch by its size: the measured mean, or a straight line through the means.

    Attributes:
        model: The core model.
        measured: Mean seconds of a batch, by size.
        first: Intercept of the line: seconds of an empty batch.
        each: Slope of the line: seconds per picture.
        constant: Seconds of a request outside the core model and its queue, including the network.
        batches: Number of measured batches.
        variation: Coefficient of variation of a batch's time; 0 for a constant time.
    """

    model: str
    measured: dict[int, float]
    first: float
    each: float
    constant: float
    batches: int
    variation: float = 0.0

    @property
    def largest(self) -> int:
        """The largest batch that was measured."""
        return max(self.measured)

    def mean(self, size: int) -> float:
        """Return the mean seconds of a batch."""
        return self.measured.get(size) or max(self.first + self.each * size, _TINY)

    def most_per_second(self, max_batch: int, instances: int) -> float:
        """Return the pictures per second of a replica that is never idle."""
        return max(size / self.mean(size) for size in range(1, max_batch + 1)) * instances

    def __call__(self, size: int, source: random.Random) -> float:
        """Draw the seconds of one batch."""
        mean = self.mean(size)
        return source.gammavariate(self.variation**-2, mean * self.variation**2) if self.variation else mean


@dataclass(frozen=True, slots=True)
class Row:
    """Result for one number of replicas.

    Attributes:
        replicas: Number of replicas.
        outcome: Result of the simulation.
        overloaded: More requests arrive than the replicas can answer, so the queues grow without bound.
        is_enough: All requests are answered, and 99 % of them in time.
    """

    replicas: int
    outcome: Outcome
    overloaded: bool
    is_enough: bool


def service_times(run: Summary, *, model: str | None = None, variation: float = 0.0) -> ServiceTimes:
    """Return the service times of a core model in a run.

    Args:
        run: Measured on one server, because Triton's statistics are those of one server.
        model: The core model; may be left out if the run used only one.
        variation: Coefficient of variation of a batch's time, which Triton does not report.

    Raises:
        ServiceTimesError: The run has no statistics of this model, or no request was answered.
    """
    cores = {name: counts for name, counts in run.server.items() if name.startswith(CORE_PREFIX)}
    if not cores:
        raise ServiceTimesError(
            "the run has no statistics of a core model; measure again with --host set to Triton itself, not to a proxy"
        )
    if model is None and len(cores) > 1:
        raise ServiceTimesError(
            f"the run used {' and '.join(sorted(cores))}, which share the GPU or CPU; measure again with one of "
            "--variants, or choose one with --model and ignore the load of the other"
        )
    name = model or next(iter(cores))
    if name not in cores:
        raise ServiceTimesError(f"the run has no statistics of {name}; use one of {', '.join(cores)}")
    core, variant = cores[name], name.removeprefix(CORE_PREFIX)
    if lacking := {"requests", "batches", *_IN_CORE} - core.keys():
        raise ServiceTimesError(f"the statistics of {name} have no {', '.join(sorted(lacking))}; measure again")
    latencies = [kind.milliseconds for kind in run.kinds if kind.name.split()[0] == variant]
    answers = sum(sum(counts.values()) for counts in latencies)
    ensemble = run.server.get(ensemble_name(variant), {}).get("requests", 0)
    if abs(ensemble - answers) > _COUNT_TOLERANCE * answers:
        raise ServiceTimesError(
            f"the server counted {ensemble} pictures, but the run got {answers} replies; measure a single server, "
            "without a load balancer and without other callers"
        )
    batches: Mapping[str, Any] = core["batches"]
    counts = {int(size): batch["executions"] for size, batch in batches.items() if batch["executions"]}
    if not counts or not answers:
        raise ServiceTimesError(
            f"the run has no batches of {name} or no latencies of {ensemble_name(variant)}; measure again"
        )
    measured = {size: batches[str(size)]["seconds"] / count for size, count in counts.items()}
    first, each = _line(measured, counts)
    latency = sum(value * count for kind in latencies for value, count in kind.items()) / answers / 1000
    constant = max(0.0, latency - sum(core[part] for part in _IN_CORE) / max(core["requests"], 1))
    return ServiceTimes(name, measured, first, each, constant, sum(counts.values()), variation)


def _line(measured: Mapping[int, float], counts: Mapping[int, int]) -> tuple[float, float]:
    """Fit seconds = first + each x size, with each size weighted by its number of batches."""
    sizes = sorted(measured)
    if len(sizes) == 1:
        return 0.0, measured[sizes[0]] / sizes[0]  # no evidence that a larger batch is cheaper per picture
    weights = np.sqrt([counts[size] for size in sizes])
    each, first = np.polyfit(sizes, [measured[size] for size in sizes], 1, w=weights)
    # A falling line is noise, and would make large batches take no time.
    return (max(0.0, float(first)), float(each)) if each > 0 else (measured[sizes[-1]], 0.0)


def search(times: ServiceTimes, replica: Replica, wanted: argparse.Namespace) -> list[Row]:
    """Simulate increasing numbers of replicas, from the fewest that are possible to a few more than are enough.

    Args:
        times: Service times of the core model.
        replica: The settings of each replica.
        wanted: The command line: rate, p99, balancing, requests, most and seed.
    """
    most = times.most_per_second(replica.max_batch, replica.instances)
    rows: list[Row] = []
    for replicas in range(max(1, math.floor(wanted.rate / most)), wanted.most + 1):
        source = random.Random(wanted.seed)  # noqa: S311 - draws arrivals, not secrets
        arrivals = poisson(wanted.rate, number=wanted.requests, source=source)
        outcome = simulate(arrivals, replica, replicas=replicas, balancing=wanted.balancing, source=source)
        overloaded = wanted.rate >= replicas * most
        in_time = not outcome.refused and outcome.percentile(0.99) <= wanted.p99
        rows.append(Row(replicas, outcome, overloaded, is_enough=in_time and not overloaded))
        if sum(row.is_enough for row in rows) > _MORE_ROWS:
            break
    return rows


def _table(rows: list[Row], wanted: argparse.Namespace) -> Table:
    shown = Table(title=f"{wanted.rate:g} requests per second, p99 at most {wanted.p99:g} s, {wanted.balancing}")
    for column in ("replicas", "utilization", "pictures per batch", "p50, s", "p99, s", "refused", ""):
        shown.add_column(column, justify="right")
    for row in rows:
        outcome = row.outcome
        seconds = [f"{outcome.percentile(share):.3f}" for share in (0.5, 0.99)]
        if row.overloaded and not outcome.refused:
            seconds = ["unbounded"] * 2  # the value depends only on the number of simulated requests
        shown.add_row(
            str(row.replicas),
            f"{outcome.utilization:.0%}",
            f"{outcome.batch:.2f}",
            *seconds,
            str(outcome.refused),
            "[green]enough[/]" if row.is_enough else "[red]too few[/]",
        )
    return shown


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="python -m load_tests.capacity", description=(__doc__ or "").split("\n")[0])
    add, positive = parser.add_argument, number(_TINY)
    most, batched, instances = (number(1, top, kind=int) for top in (_MOST, _MOST_BATCHED, _MOST_INSTANCES))
    add("run", type=Path, metavar="SUMMARY", help="summary of a load test of one server (Locust with --summary)")
    add("--rate", type=positive, required=True, help="requests per second to all replicas together")
    add(
        "--p99",
        type=positive,
        required=True,
        metavar="SECONDS",
        help="objective for the 99th percentile of the latency",
    )
    add("--model", help="core model (default: the only one in the run)")
    add("--balancing", choices=BALANCING, default="round-robin",
        help="how requests are spread over the replicas (default: %(default)s)")  # fmt: skip
    add("--max-batch", type=batched, help="maximum batch size of the core model (default: the largest in the run)")
    add(
        "--queue-delay",
        type=positive,
        default=0.0,
        metavar="SECONDS",
        help="queue delay of the core model (default: 0)",
    )
    add("--instances", type=instances, default=1, help="instances of the core model in a replica (default: 1)")
    add("--max-queue", type=most, help="maximum queue size of the core model in a replica (default: no limit)")
    add("--variation", type=positive, default=0.0,
        help="standard deviation of a batch's time divided by its mean (default: 0)")  # fmt: skip
    add("--requests", type=most, default=20_000, help="requests to simulate (default: %(default)s)")
    add("--most", type=most, default=64, help="maximum number of replicas to try (default: %(default)s)")
    add("--seed", type=int, default=0, help="random seed (default: %(default)s)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if some number of replicas is enough."""
    parser = _parser()
    options = parser.parse_args(arguments)
    out = console()
    try:
        run = load(options.run)
        times = service_times(run, model=options.model, variation=options.variation)
    except (SummaryError, ServiceTimesError) as error:
        parser.error(str(error))
    replica = Replica(
        service=times,
        max_batch=options.max_batch or times.largest,
        queue_delay=options.queue_delay,
        instances=options.instances,
        max_queue=options.max_queue,
        constant=times.constant,
    )
    most = times.most_per_second(replica.max_batch, replica.instances)
    for problem in run.problems:
        out.print(f"[yellow]the run had a problem: {problem}[/]")
    sizes = ", ".join(f"{size}: {1000 * seconds:.1f}" for size, seconds in sorted(times.measured.items()))
    out.print(f"{times.model}: milliseconds per batch, by batch size: {sizes}")
    if replica.max_batch > times.largest:
        out.print(f"[yellow]batches above {times.largest} were not measured; their times are extrapolated[/]")
    if times.batches < _FEW_BATCHES:
        out.print(f"[yellow]only {times.batches} batches were measured; measure for longer[/]")
    out.print(f"one replica answers at most {most:.1f} pictures per second")
    out.print(f"a request takes {times.constant:.3f} s outside the core model and its queue")
    rows = search(times, replica, options)
    if not rows:
        out.print(
            f"[red]{options.rate:g}/s is more than {options.most} replicas can answer ({most * options.most:.1f}/s); "
            "raise --most[/]"
        )
        return EXIT_TOO_FEW
    out.print(_table(rows, options))
    return 0 if any(row.is_enough for row in rows) else EXIT_TOO_FEW


if __name__ == "__main__":
    sys.exit(main())
