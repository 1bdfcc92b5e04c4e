"""What a run measured, as values: from Locust's statistics, to a table and to JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rich.table import Table

from load_tests.histogram import mean, percentile
from load_tests.replies import WRONG
from load_tests.strain import Strain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

SHOWN_PERCENTILES = (0.5, 0.9, 0.95, 0.99)
FORMAT = 1

_LATENCIES = (*(f"p{100 * share:g}, s" for share in SHOWN_PERCENTILES), "mean, s")


class SummaryError(Exception):
    """A file is no summary of a run; the message says why."""


class Entry(Protocol):
    """Locust's statistics of one kind of request, as far as they are used here."""

    method: str
    name: str
    num_requests: int
    num_failures: int
    response_times: dict[int, int]


@dataclass(frozen=True, slots=True)
class Kind:
    """The requests of one protocol, model and kind of picture.

    Attributes:
        protocol: gRPC or HTTP; empty for all together.
        name: Variant and kind of picture.
        requests: How many ended, well or not.
        failures: How many of them failed.
        milliseconds: How often each latency was seen, rounded; refusals, which take no time, are left out.
    """

    protocol: str
    name: str
    requests: int
    failures: int
    milliseconds: dict[int, int]

    @property
    def title(self) -> str:
        """Protocol and name, which objectives match."""
        return f"{self.protocol} {self.name}".strip()

    def seconds(self, share: float) -> float | None:
        """Return a percentile of the latency; None where there is none."""
        value = percentile(self.milliseconds, share)
        return None if value is None else value / 1000


@dataclass(frozen=True, slots=True)
class StageResult:
    """What came of one stage of a shape, by when the replies came.

    Attributes:
        users: Its constant number.
        seconds: How long it took.
        total: All requests that ended meanwhile; of the last stage, those before its end was waited for.
    """

    users: int
    seconds: float
    total: Kind

    @property
    def answered_per_second(self) -> float:
        """Right replies per second."""
        return (self.total.requests - self.total.failures) / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class Summary:
    """One run.

    Attributes:
        setting: How it was made: host, loop, users and so on.
        seconds: In which requests were sent.
        answered: Right replies that came in that time, without those that were waited for at the end.
        kinds: Requests by kind.
        total: All requests.
        failures: How many failed for each reason.
        strain: Of the load generator.
        server: What Triton counted meanwhile, by model; of one server, where several share the address.
        stages: Of a shape; empty where the number of users was constant.
        problems: What kept the load test from being what it was meant to be.
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

    @property
    def answered_per_second(self) -> float:
        """Right replies per second."""
        return self.answered / self.seconds if self.seconds > 0 else 0.0

    @property
    def wrong_replies(self) -> int:
        """Replies with a mask that is not the picture's."""
        return sum(count for reason, count in self.failures.items() if reason.startswith(WRONG))

    def table(self) -> Table:
        """Return latencies and failures by kind."""
        table = Table(
            title=f"{self.setting.get('loop', '')} loop: {self.answered_per_second:.2f} right replies per second"
        )
        table.add_column("requests of", overflow="fold")
        for column in ("replies", "failed", *_LATENCIES):
            table.add_column(column, justify="right")
        for kind in self.kinds:
            table.add_row(kind.title, *_cells(kind))
        table.add_section()
        table.add_row("all", *_cells(self.total), style="bold")
        return table

    def stages_table(self) -> Table:
        """Return throughput and latencies by stage: where more users bring no more replies, the server is full."""
        table = Table(title=f"{self.setting.get('loop', '')} loop, by stage")
        for column in ("users", "s", "right replies/s", "failed", *_LATENCIES):
            table.add_column(column, justify="right")
        for stage in self.stages:
            _, failed, *latencies = _cells(stage.total)
            rate = f"{stage.answered_per_second:.2f}"
            table.add_row(str(stage.users), f"{stage.seconds:.0f}", rate, failed, *latencies)
        return table

    def save(self, file: Path, **more: object) -> None:
        """Write it as JSON, with what else there is to say."""
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
    """Read what `save` wrote.

    Raises:
        SummaryError: The file cannot be read, or is something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise SummaryError(f"{file} has format {content['format']}, and this is {FORMAT}: measure again")
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
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SummaryError(f"{file} is no summary of a run ({error!r}): write one with --summary") from error


def kinds_of(entries: Iterable[Entry]) -> list[Kind]:
    """Return the kinds of Locust's entries in the order of their titles."""
    kinds = [
        Kind(entry.method, entry.name, entry.num_requests, entry.num_failures, dict(entry.response_times))
        for entry in entries
    ]
    return sorted(kinds, key=lambda kind: kind.title)


def between(before: Kind, after: Kind) -> Kind:
    """Return what was counted between two moments."""
    milliseconds = {value: count - before.milliseconds.get(value, 0) for value, count in after.milliseconds.items()}
    return Kind(
        after.protocol,
        after.name,
        after.requests - before.requests,
        after.failures - before.failures,
        {value: count for value, count in milliseconds.items() if count},
    )


def all_of(kinds: Iterable[Kind]) -> Kind:
    """Return all kinds as one."""
    milliseconds: dict[int, int] = {}
    requests = failures = 0
    for kind in kinds:
        requests += kind.requests
        failures += kind.failures
        for value, count in kind.milliseconds.items():
            milliseconds[value] = milliseconds.get(value, 0) + count
    return Kind("", "all", requests, failures, milliseconds)


def _kind(content: Mapping[str, Any]) -> Kind:
    # JSON has no numbers as keys.
    milliseconds = {int(value): int(count) for value, count in content["milliseconds"].items()}
    if not content["name"].split():
        raise ValueError("a kind of request without a name")
    return Kind(content["protocol"], content["name"], content["requests"], content["failures"], milliseconds)


def _cells(kind: Kind) -> list[str]:
    average = mean(kind.milliseconds)
    values = [*(kind.seconds(share) for share in SHOWN_PERCENTILES), None if average is None else average / 1000]
    return [
        str(kind.requests - kind.failures),
        f"[red]{kind.failures}[/]" if kind.failures else "0",
        *("-" if value is None else f"{value:.3f}" for value in values),
    ]
