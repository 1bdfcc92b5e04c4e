"""How hard the load generator itself works: a client that is late measures itself and not the server."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psutil

from load_tests.histogram import percentile, rounded

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

BUSY_CPU = 0.8  # of one core: Locust's greenlets share one
LATE_SECONDS = 0.05


class ProcessStrain:
    """What one process of the load test knows about itself."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._began = time.perf_counter()
        self._cpu_before = self._cpu()
        self._late: Counter[int] = Counter()
        self.most_unfinished = 0
        self._share: float | None = None  # of a core, once the run has ended
        self.answered = 0  # right replies that came while requests were sent

    def late(self, seconds: float) -> None:
        """Take note of something that was done later than it was meant to be."""
        self._late[rounded(1000 * seconds)] += 1

    def unfinished(self, number: int) -> None:
        """Take note of how many requests are under way."""
        self.most_unfinished = max(self.most_unfinished, number)

    def report(self) -> dict[str, Any]:
        """Return what to tell the master; numbers since the start of the run, up to its end."""
        return {
            "cpu": self._share_of_a_core() if self._share is None else self._share,
            "late": {str(value): count for value, count in self._late.items()},
            "most_unfinished": self.most_unfinished,
            "answered": self.answered,
        }

    def end(self) -> None:
        """Take note that the run has ended: what the process does from now on is none of it."""
        self._share = self._share_of_a_core()

    def _share_of_a_core(self) -> float:
        return (self._cpu() - self._cpu_before) / max(time.perf_counter() - self._began, 1e-9)

    def _cpu(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system


@dataclass(frozen=True, slots=True)
class Strain:
    """What all processes say together.

    Attributes:
        processes: How many made requests.
        busiest_cpu: Share of one core that the busiest used.
        late_p99: Seconds by which the 99th percentile of what was to happen at a certain moment was late.
        most_unfinished: Most requests that were under way in one process.
    """

    processes: int
    busiest_cpu: float
    late_p99: float
    most_unfinished: int

    @property
    def warning(self) -> str | None:
        """What to say where the client may have limited the measurement."""
        reasons: list[str] = []
        if self.busiest_cpu > BUSY_CPU:
            reasons.append(f"its busiest process used {self.busiest_cpu:.0%} of a core")
        if self.late_p99 > LATE_SECONDS:
            reasons.append(f"1 % of its actions were more than {1000 * self.late_p99:.0f} ms late")
        if not reasons:
            return None
        return f"the load generator may be the limit: {' and '.join(reasons)}; give it more workers or cores"


def together(reports: Iterable[Mapping[str, Any]]) -> Strain:
    """Return one strain for the reports of all processes."""
    late: Counter[int] = Counter()
    known = list(reports)
    for report in known:
        late.update({int(value): count for value, count in report["late"].items()})
    return Strain(
        processes=len(known),
        busiest_cpu=max((report["cpu"] for report in known), default=0.0),
        late_p99=(percentile(late, 0.99) or 0.0) / 1000,
        most_unfinished=max((report["most_unfinished"] for report in known), default=0),
    )
