"""How many replicas does a rate of requests need?

    python -m load_tests.capacity out/load/closed.json --rate 2 --p99 6

Reads a run that Locust measured on one server (--summary), takes the core model's batch times from it, and simulates
requests that arrive at 1, 2, ... replicas.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import argparse
import math
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from load_tests.replicas import BALANCING, Balancing, Outcome, Replica, poisson, simulate
from load_tests.service_times import ServiceTimesError, from_run
from load_tests.summary import SummaryError, load

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from load_tests.service_times import ServiceTimes

EXIT_TOO_FEW = 1
_FEW_BATCHES = 50  # whose mean a slow moment of the machine would move
_MORE_ROWS = 2  # after the first that is enough, to see what another replica would bring
_COLUMNS = 110
# Above, a simulation does not end while somebody waits for it.
_MOST_BATCHED, _MOST_INSTANCES, _MOST = 1024, 256, 10_000_000


@dataclass(frozen=True, slots=True)
class Target:
    """What is wanted.

    Attributes:
        rate: Requests per second.
        p99: Seconds.
        balancing: How requests are spread.
        number: Requests to simulate.
        most: Replicas to try.
        seed: Of arrivals and batch times.
    """

    rate: float
    p99: float
    balancing: Balancing
    number: int
    most: int
    seed: int


@dataclass(frozen=True, slots=True)
class Row:
    """What some replicas make of a target.

    Attributes:
        replicas: How many.
        outcome: Of the simulation.
        overloaded: More comes than they can do at all: the queues grow for as long as it lasts.
        is_enough: All are answered, and 99 % of them in time.
    """

    replicas: int
    outcome: Outcome
    overloaded: bool
    is_enough: bool


def search(times: ServiceTimes, replica: Replica, target: Target) -> list[Row]:
    """Simulate from the fewest replicas that could do the work on, until a few more than are enough."""
    most = times.most_per_second(replica.max_batch, replica.instances)
    fewest = max(1, math.floor(target.rate / most))
    rows: list[Row] = []
    enough = 0
    for replicas in range(fewest, target.most + 1):
        source = random.Random(target.seed)  # noqa: S311 draws arrivals, keeps no secret
        arrivals = poisson(target.rate, number=target.number, source=source)
        outcome = simulate(arrivals, replica, replicas=replicas, balancing=target.balancing, source=source)
        overloaded = target.rate >= replicas * most
        in_time = outcome.refused == 0 and outcome.percentile(0.99) <= target.p99
        rows.append(Row(replicas, outcome, overloaded, is_enough=in_time and not overloaded))
        enough += rows[-1].is_enough
        if enough > _MORE_ROWS:
            break
    return rows


def table(rows: list[Row], target: Target) -> Table:
    """Return what each number of replicas gives."""
    shown = Table(title=f"{target.rate:g} requests per second, p99 at most {target.p99:g} s, {target.balancing}")
    for column in ("replicas", "busy", "pictures a batch", "p50, s", "p99, s", "refused", ""):
        shown.add_column(column, justify="right")
    for row in rows:
        outcome = row.outcome
        seconds = [f"{outcome.percentile(share):.3f}" for share in (0.5, 0.99)]
        if row.overloaded and not outcome.refused:
            seconds = ["grows"] * 2  # to what depends on nothing but the number of requests simulated
        shown.add_row(
            str(row.replicas),
            f"{outcome.utilisation:.0%}",
            f"{outcome.batch:.2f}",
            *seconds,
            str(outcome.refused),
            "[green]enough[/]" if row.is_enough else "[red]too few[/]",
        )
    return shown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 where some number of replicas is enough."""
    parser = argparse.ArgumentParser(prog="python -m load_tests.capacity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, metavar="SUMMARY", help="JSON that a run on one server wrote (--summary)")
    parser.add_argument("--rate", type=_positive, required=True, help="requests per second that all replicas get")
    parser.add_argument("--p99", type=_positive, required=True, metavar="SECONDS", help="what 99 of 100 may take")
    parser.add_argument("--model", help="core model (default: the only one that was asked)")
    parser.add_argument("--balancing", choices=BALANCING, default="round-robin", help="(default: %(default)s)")
    parser.add_argument(
        "--max-batch", type=_up_to(_MOST_BATCHED), help="of the core (default: the largest that was measured)"
    )
    parser.add_argument("--queue-delay", type=_positive, default=0.0, metavar="SECONDS", help="of the core's batches")
    parser.add_argument(
        "--instances", type=_up_to(_MOST_INSTANCES), default=1, help="of the core in a replica (default: 1)"
    )
    parser.add_argument(
        "--max-queue", type=_up_to(_MOST), help="requests that wait in a replica at most (default: any)"
    )
    parser.add_argument(
        "--variation", type=_positive, default=0.0, help="standard deviation of a batch's time / its mean"
    )
    parser.add_argument("--requests", type=_up_to(_MOST), default=20_000, help="to simulate (default: %(default)s)")
    parser.add_argument("--most", type=_up_to(_MOST), default=64, help="replicas to try (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _COLUMNS)
    try:
        run = load(options.run)
        times = from_run(run, model=options.model, variation=options.variation)
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
    target = Target(options.rate, options.p99, options.balancing, options.requests, options.most, options.seed)
    for problem in run.problems:
        console.print(f"[yellow]the run was not as it was meant to be: {problem}[/]")
    _explain(console, times, replica)
    rows = search(times, replica, target)
    if not rows:
        most = times.most_per_second(replica.max_batch, replica.instances) * target.most
        console.print(
            f"[red]{target.rate:g}/s is more than {target.most} replicas can do ({most:.1f}/s): see --most[/]"
        )
        return EXIT_TOO_FEW
    console.print(table(rows, target))
    return 0 if any(row.is_enough for row in rows) else EXIT_TOO_FEW


def _explain(console: Console, times: ServiceTimes, replica: Replica) -> None:
    sizes = ", ".join(f"{size}: {1000 * seconds:.1f}" for size, seconds in sorted(times.measured.items()))
    most = times.most_per_second(replica.max_batch, replica.instances)
    console.print(f"{times.model}: milliseconds of a batch by its pictures: {sizes}")
    if replica.max_batch > times.largest:
        console.print(
            f"[yellow]batches above {times.largest} were not measured and lie on a line through the others[/]"
        )
    if times.batches < _FEW_BATCHES:
        console.print(f"[yellow]only {times.batches} batches were measured: measure for longer[/]")
    console.print(f"a replica does {most:.1f} pictures per second at most")
    console.print(f"outside the core model and its queue a request takes {times.constant:.3f} s")


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is no number greater than 0")
    return value


def _up_to(most: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {most}")
        return int(text)

    return whole


if __name__ == "__main__":
    sys.exit(main())
