"""The measurements of a run, as values and as JSON."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from load_tests.replies import WRONG

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

SHOWN_PERCENTILES = (0.5, 0.9, 0.95, 0.99)
FORMAT = 1
BUSY_CPU = 0.8  # of one core: Locust's greenlets share one
LATE_SECONDS = 0.05


class SummaryError(Exception):
    """A file is not the summary of a run; the message gives the reason."""


class Entry(Protocol):
    """The part of Locust's statistics of one kind of request that is used here."""

    method: str
    name: str
    num_requests: int
    num_failures: int
    response_times: dict[int, int]


def rounded(milliseconds: float) -> int:
    """Round to three significant digits, whole milliseconds at most: half a percent of error, or half a millisecond.

    Locust's own rounding keeps two digits, which moves a percentile by up to 5 %.
    """
    whole = round(milliseconds)
    return round(whole, min(0, 3 - len(str(abs(whole)))))


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """Return a percentile of values with their counts; None without values."""
    values = np.repeat(list(counts), list(counts.values()))
    return float(np.quantile(values, share, method="inverted_cdf")) if values.size else None


@dataclass(frozen=True, slots=True)
class Kind:
    """The requests of one protocol, model and kind of picture.

    Attributes:
        protocol: gRPC or HTTP; empty for all together.
        name: Variant and kind of picture.
        requests: Number of finished requests, including failures.
        failures: Number of failed requests.
        milliseconds: Number of requests by rounded latency, without refusals, which take no time.
    """

    protocol: str
    name: str
    requests: int
    failures: int
    milliseconds: dict[int, int]

    @classmethod
    def of(cls, entry: Entry) -> Kind:
        """Return the counts of Locust."""
        times = dict(entry.response_times)
        return cls(entry.method, entry.name, entry.num_requests, entry.num_failures, times)

    @property
    def title(self) -> str:
        """Protocol and name, which objectives match."""
        return f"{self.protocol} {self.name}".strip()

    def seconds(self, share: float) -> float | None:
        """Return a percentile of the latency in seconds; None without latencies."""
        value = percentile(self.milliseconds, share)
        return None if value is None else value / 1000

    def mean_seconds(self) -> float | None:
        """Return the mean latency in seconds; None without latencies."""
        number = sum(self.milliseconds.values())
        return sum(value * count for value, count in self.milliseconds.items()) / number / 1000 if number else None


@dataclass(frozen=True, slots=True)
class StageResult:
    """The requests of one stage of a shape, by the time of their replies.

    Attributes:
        users: Number of users, which is constant.
        seconds: Duration of the stage.
        total: All requests that ended during the stage.
    """

    users: int
    seconds: float
    total: Kind

    @property
    def answered_per_second(self) -> float:
        """Correct replies per second."""
        return (self.total.requests - self.total.failures) / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Strain:
    """The load of the load generator itself, because one that is late measures itself instead of the server.

    Attributes:
        processes: Number of processes that sent requests.
        busiest_cpu: Share of one core that the busiest process used.
        late_p99: 99th percentile of the seconds by which scheduled actions were late.
        most_unfinished: Largest number of requests in flight in one process.
    """

    processes: int
    busiest_cpu: float
    late_p99: float
    most_unfinished: int

    @classmethod
    def of(cls, reports: Iterable[Mapping[str, Any]]) -> Strain:
        """Return the totals of the reports of all processes."""
        known = list(reports)
        late: Counter[int] = Counter()
        for report in known:
            late.update({int(value): count for value, count in report["late"].items()})
        return cls(
            processes=len(known),
            busiest_cpu=max((report["cpu"] for report in known), default=0.0),
            late_p99=(percentile(late, 0.99) or 0.0) / 1000,
            most_unfinished=max((report["most_unfinished"] for report in known), default=0),
        )

    @property
    def warning(self) -> str | None:
        """Why the load generator may have limited the measurement; None if it did not."""
        reasons: list[str] = []
        if self.busiest_cpu > BUSY_CPU:
            reasons.append(f"its busiest process used {self.busiest_cpu:.0%} of a core")
        if self.late_p99 > LATE_SECONDS:
            reasons.append(f"1 % of its actions were more than {1000 * self.late_p99:.0f} ms late")
        if not reasons:
            return None
        return f"the load generator may be the bottleneck: {' and '.join(reasons)}; give it more workers or cores"


@dataclass(frozen=True, slots=True)
class Summary:
    """One run.

    Attributes:
        setting: Configuration of the run: host, loop, users and so on.
        seconds: Time in which requests were sent.
        answered: Correct replies that arrived in that time, without those that were awaited at the end.
        kinds: Requests by kind.
        total: All requests.
        failures: Number of failures for each reason.
        strain: Load of the load generator.
        server: Triton's statistics of the run, by model; those of one server if several share the address.
        stages: Stages of a shape; empty if the number of users was constant.
        problems: Why the load test did not run as configured.
        models: Version and weights of each model that answered.
    """

    setting: dict[str, Any]
    seconds: float
    answered: int
    kinds: list[Kind]
    total: Kind
    failures: dict[str, int]
    strain: Strain
    server: dict[str, dict[str, Any]] = field(default_factory=dict[str, "dict[str, Any]"])
    stages: list[StageResult] = field(default_factory=list[StageResult])
    problems: list[str] = field(default_factory=list[str])
    models: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def answered_per_second(self) -> float:
        """Correct replies per second."""
        return self.answered / self.seconds if self.seconds > 0 else 0.0

    @property
    def wrong_replies(self) -> int:
        """Number of replies with a wrong mask."""
        return sum(count for reason, count in self.failures.items() if reason.startswith(WRONG))

    def save(self, file: Path, **more: object) -> None:
        """Write the summary as JSON, with additional keys."""
        content = {
            "format": FORMAT,
            "answered_per_second": self.answered_per_second,
            "latency_seconds": {f"p{100 * share:g}": self.total.seconds(share) for share in SHOWN_PERCENTILES},
            **asdict(self),
            **more,
        }
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(file: Path) -> Summary:
    """Read a file that `save` has written.

    Raises:
        SummaryError: The file cannot be read, or is not a summary.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise SummaryError(f"{file} has format {content['format']}, but this version reads {FORMAT}; measure again")
        return Summary(
            setting=content["setting"],
            seconds=content["seconds"],
            answered=content["answered"],
            kinds=[_kind(kind) for kind in content["kinds"]],
            total=_kind(content["total"]),
            failures=content["failures"],
            strain=Strain(**content["strain"]),
            server={model: dict(counts) for model, counts in content["server"].items()},
            stages=[
                StageResult(stage["users"], stage["seconds"], _kind(stage["total"])) for stage in content["stages"]
            ],
            problems=content["problems"],
            models=content.get("models", {}),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SummaryError(f"{file} is not the summary of a run ({error!r}); write one with --summary") from error


def all_of(kinds: Sequence[Kind]) -> Kind:
    """Return the sum of all kinds."""
    milliseconds: Counter[int] = Counter()
    for kind in kinds:
        milliseconds.update(kind.milliseconds)
    requests, failures = sum(kind.requests for kind in kinds), sum(kind.failures for kind in kinds)
    return Kind("", "all", requests, failures, dict(milliseconds))


def _kind(content: Mapping[str, Any]) -> Kind:
    if not content["name"].split():
        raise ValueError("a kind of request without a name")
    # Keys are strings in JSON.
    milliseconds = {int(value): int(count) for value, count in content["milliseconds"].items()}
    return Kind(content["protocol"], content["name"], content["requests"], content["failures"], milliseconds)
