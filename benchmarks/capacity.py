"""Check the simulation of replicas: measure one server, predict two, and measure two.

    .venv/bin/python -m benchmarks.capacity [--seconds 120] [--output out/bench/capacity]

The core model sleeps for the time that a GPU would compute, so that two cores are enough for two servers and the load.
Everything else is real: the ensemble, Triton's dynamic batching, Locust's open loop with Poisson arrivals. Each Locust
user sends to one of the servers, which the simulation calls `random`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import contextlib
import random
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from benchmarks import harness, toy
from benchmarks.harness import ROOT
from deeplabv3 import server_statistics
from deeplabv3.arguments import number
from deeplabv3.console import console
from deeplabv3.embedded.launch import RunningServer
from load_tests import headless, summary
from load_tests.capacity import ServiceTimes, service_times
from load_tests.simulation import Outcome, Replica, poisson, simulate

if TYPE_CHECKING:
    from collections.abc import Sequence

# Seconds of a batch and of each picture in it: at most MAX_BATCH / (FIRST + MAX_BATCH * EACH) = 16 pictures per second.
FIRST, EACH, MAX_BATCH = 0.1, 0.05, 8  # also the largest batch of the ensemble
MOST_PER_SECOND = MAX_BATCH / (FIRST + MAX_BATCH * EACH)
SHARES = (0.5, 0.7, 0.85)  # of the maximum rate of both servers
MEASURED_AT = 0.7  # of the maximum rate of one server
PERCENTILES = (0.5, 0.9, 0.99)
USERS = 20  # an even number: half of them use each server
SIMULATED = 200_000


def measured(servers: Sequence[RunningServer], rate: float, *, seconds: int, file: Path) -> summary.Summary:
    """Run Locust against one server or two, and return its summary.

    Raises:
        subprocess.CalledProcessError: A request failed, or Locust did not run.
    """
    # A run with failures is no measurement. The percentiles are compared below, so they need no objectives.
    (objectives := file.with_suffix(".toml")).write_text("error_share = 0.0\nwrong_replies = 0\n", encoding="utf-8")
    command = [
        *headless.command(users=USERS, seconds=seconds, objectives=objectives, reports=file.with_suffix("")),
        *("--host", f"grpc://{servers[0].grpc_url}", "--variants", "resnet50", "--kinds", "thumbnail=1"),
        *("--loop", "open", "--rate", f"{rate / USERS:.4f}"),
        *(("--second-host", f"grpc://{servers[1].grpc_url}") if len(servers) > 1 else ()),
    ]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)  # noqa: S603 - our own command
    return summary.load(file)


def predicted(times: ServiceTimes, rate: float) -> Outcome:
    """Simulate two replicas at a rate of requests per second."""
    source = random.Random(0)  # noqa: S311 - draws arrivals, not secrets
    replica = Replica(times, max_batch=MAX_BATCH, constant=times.constant)
    arrivals = poisson(rate, number=SIMULATED, source=source)
    return simulate(arrivals, replica, replicas=2, balancing="random", source=source)


def compared(times: ServiceTimes, runs: Sequence[summary.Summary]) -> Table:
    """Return a table of predictions and measurements, at the rate that was sent, which differs from the target."""
    table = Table(title="two servers: predicted from one server / measured, and the ratio")
    for column in (
        "requests/s",
        "utilization",
        "requests",
        "pictures per batch",
        *(f"p{100 * p:g}, s" for p in PERCENTILES),
    ):
        table.add_column(column, justify="right")
    for found in runs:
        rate = found.total.requests / found.seconds
        expected = predicted(times, rate)
        batch = server_statistics.means(found.server[toy.CORE])["batch"]
        cells = [(expected.batch, batch)]
        cells += [(expected.percentile(p), found.total.seconds(p) or float("nan")) for p in PERCENTILES]
        table.add_row(
            f"{rate:.1f}",
            f"{expected.utilization:.0%}",
            str(found.total.requests),
            *(f"{one:.3f} / {other:.3f}  {one / other:.2f}" for one, other in cells),
        )
    return table


def main() -> int:
    """Measure one server, predict and measure two, and print the table."""
    parser = harness.parser("benchmarks.capacity", __doc__, output="out/bench/capacity")
    parser.add_argument(
        "--seconds", type=number(1, kind=int), default=120, help="duration of each of four runs (default: %(default)s)"
    )
    options = parser.parse_args()
    output: Path = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        repository = toy.sleeping(Path(folder) / "models", first=FIRST, each=EACH, max_batch=MAX_BATCH)
        logs = [output / f"serve-{number}.log" for number in (1, 2)]
        servers = [stack.enter_context(RunningServer(repository, log=log)) for log in logs]
        one = measured(servers[:1], MEASURED_AT * MOST_PER_SECOND, seconds=options.seconds, file=output / "one.json")
        times = service_times(one)
        rates = {share: 2 * share * times.most_per_second(MAX_BATCH, 1) for share in SHARES}
        runs = [
            measured(servers, rate, seconds=options.seconds, file=output / f"two-{share:.0%}.json")
            for share, rate in rates.items()
        ]
    console(columns=140).print(compared(times, runs))
    return 0


if __name__ == "__main__":
    harness.run(main)
