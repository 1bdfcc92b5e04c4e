"""What every benchmark shares: its command line, contenders in turns, timers, and the time that a run may take.

A benchmark gives each contender a name and measures all of them in one run, in turns, so that whatever else the machine
does meets them alike. What was measured goes into a `benchmarks.report.Report`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from deeplabv3.arguments import number
from deeplabv3.command_line import Parser, unwind_on_sigterm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch.utils.benchmark import Measurement

Contender = TypeVar("Contender")

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPH = ROOT / "tests" / "assets" / "cat.png"


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def save_photograph(file: Path, size: tuple[int, int]) -> None:
    """Save the photograph as a JPEG with a width and height in pixels."""
    Image.open(PHOTOGRAPH).convert("RGB").resize(size).save(file, quality=90)


def parser(module: str, description: str | None, *, rounds: int | None = None) -> Parser:
    """Return a command line with the options that all benchmarks have; `--rounds` only where there is a default."""
    found = Parser(prog=f"python -m {module}", description=(description or "").splitlines()[0])
    if rounds is not None:
        found.add_argument(
            "--rounds",
            type=number(1, kind=int),
            default=rounds,
            metavar="N",
            help="in each of them every contender has its turn (default: %(default)s)",
        )
    found.add_argument("--output", type=Path, default=ROOT / "out" / "bench", metavar="DIR", help="default: out/bench")
    return found


def run(main: Callable[[], int]) -> None:
    """Run a benchmark and exit. SIGTERM and Ctrl-C unwind, so that no server stays behind."""
    # A shell lets its background jobs ignore SIGINT, and the servers would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    unwind_on_sigterm()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def in_turns(
    contenders: Mapping[str, Contender], rounds: int, *, warm_up: int = 0
) -> Iterator[tuple[int, str, Contender]]:
    """Yield a round's number, a name and a contender; the order turns around from round to round.

    Rounds that warm up come first and have negative numbers.
    """
    ordered = list(contenders.items())
    for turn in range(-warm_up, rounds):
        for name, contender in ordered[:: -1 if turn % 2 else 1]:
            yield turn, name, contender


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, threads: int, seconds: float = 0.001
) -> dict[str, Measurement]:
    """Time calls by torch's timer, which warms each of them up at the begin of its turn.

    Args:
        calls: what to time, by contender.
        rounds: turns of each.
        threads: of torch during the calls.
        seconds: how long a turn measures at least, with one call at least.
    """
    from torch.utils.benchmark import Measurement, Timer  # noqa: PLC0415 - torch is not needed for --help

    timers = {name: Timer("run()", globals={"run": call}, num_threads=threads) for name, call in calls.items()}
    found: dict[str, list[Measurement]] = {name: [] for name in calls}
    for _, name, timer in in_turns(timers, rounds):
        found[name].append(timer.blocked_autorange(min_run_time=seconds))
    return {name: Measurement.merge(measured)[0] for name, measured in found.items()}


class Deadline:
    """The time that a run may take; a part that does not fit is left out and named."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.monotonic()

    def allows(self, seconds: float) -> bool:
        """Return whether a part that takes about so long still fits."""
        return self.left() >= seconds
