"""Shared by every benchmark: the command line, contenders in turns, timers, and the time limit of a run.

A benchmark names its contenders and measures all of them in one run, in turns, so that other load on the machine
affects all of them equally. The results go into a `benchmarks.report.Report`.
"""

from __future__ import annotations

import argparse
import logging
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
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch.utils.benchmark import Measurement

Contender = TypeVar("Contender")

ROOT = Path(__file__).resolve().parents[1]
PHOTOGRAPH = ROOT / "tests" / "assets" / "cat.png"
# torch's timer imports torch.utils.cpp_extension, which warns about CUDA_HOME on machines without a GPU.
logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def save_photograph(file: Path, size: tuple[int, int]) -> None:
    """Save the photograph as a JPEG of a size, width and height in pixels."""
    Image.open(PHOTOGRAPH).convert("RGB").resize(size).save(file, quality=90)


def parser(
    module: str,
    description: str | None,
    *,
    output: str = "out/bench",
    rounds: int | None = None,
    parts: Sequence[str] = (),
) -> Parser:
    """Return a command line with the options that all benchmarks have.

    Args:
        module: for `python -m`.
        description: its first line is shown by --help.
        output: default of `--output`, relative to the repository.
        rounds: default of `--rounds`; without it, there is no such option.
        parts: what the benchmark can measure separately; `options.parts` has the chosen ones, or all.
    """
    found = Parser(prog=f"python -m {module}", description=(description or "").splitlines()[0])
    if rounds is not None:
        found.add_argument(
            "--rounds",
            type=number(1, kind=int),
            default=rounds,
            metavar="N",
            help="number of rounds; each round measures every contender (default: %(default)s)",
        )
    if parts:
        found.add_argument(
            "parts",
            nargs="*",
            type=_one_of(parts),
            default=list(parts),
            metavar="|".join(parts),
            help="what to measure (default: everything)",
        )
    found.add_argument(
        "--output", type=Path, default=ROOT / output, metavar="DIR", help=f"folder for the results (default: {output})"
    )
    return found


def _one_of(names: Sequence[str]) -> Callable[[str], str]:
    # Not `choices`: Python 3.10 compares them with the whole default.
    def checked(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"must be one of {', '.join(names)}, got {text!r}")
        return text

    return checked


def run(main: Callable[[], int]) -> None:
    """Run a benchmark and exit. SIGTERM and Ctrl-C unwind the stack, so that all servers are stopped."""
    # A shell's background jobs ignore SIGINT, and the servers would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    unwind_on_sigterm()
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def in_turns(
    contenders: Mapping[str, Contender], rounds: int, *, warm_up: int = 0
) -> Iterator[tuple[int, str, Contender]]:
    """Yield a round's number, a name and a contender; the order is reversed in every other round.

    Warm-up rounds come first and have negative numbers.
    """
    ordered = list(contenders.items())
    for turn in range(-warm_up, rounds):
        for name, contender in ordered[:: -1 if turn % 2 else 1]:
            yield turn, name, contender


def time_in_turns(
    calls: Mapping[str, Callable[[], object]], *, rounds: int, threads: int, seconds: float = 0.001
) -> dict[str, Measurement]:
    """Time calls with torch's timer, which warms each of them up at the beginning of its turn.

    Args:
        calls: the function to time of each contender.
        rounds: number of turns of each.
        threads: of torch during the calls.
        seconds: minimum duration of a turn, which makes at least one call.
    """
    from torch.utils.benchmark import Measurement, Timer  # noqa: PLC0415 - torch is not needed for --help

    timers = {name: Timer("run()", globals={"run": call}, num_threads=threads) for name, call in calls.items()}
    found: dict[str, list[Measurement]] = {name: [] for name in calls}
    for _, name, timer in in_turns(timers, rounds):
        found[name].append(timer.blocked_autorange(min_run_time=seconds))
    return {name: Measurement.merge(measured)[0] for name, measured in found.items()}


class Deadline:
    """The time limit of a run; parts that do not fit are left out and reported."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the remaining seconds."""
        return self._end - time.monotonic()

    def allows(self, seconds: float) -> bool:
        """Return whether a part that takes about this many seconds still fits."""
        return self.left() >= seconds
