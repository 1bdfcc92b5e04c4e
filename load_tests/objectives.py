"""The objectives of a run, read from a TOML file, and by how much a run missed them."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tomli

from load_tests.replies import BETWEEN_WORKERS

if TYPE_CHECKING:
    from pathlib import Path

    from load_tests.summary import Kind, Summary

_PERCENTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")
UNMEASURED = "not measured"
_FORM = "error_share, wrong_replies, throughput, and tables such as [p99] of seconds by kind of request"


class ObjectivesError(Exception):
    """The file cannot be used; the message gives the reason."""


@dataclass(frozen=True, slots=True)
class Objectives:
    """The objectives of a run.

    Attributes:
        bounds: Limits of the whole run: upper for error_share and wrong_replies, lower for throughput.
        latency: Upper limits in seconds, by percentile (a share) and pattern of the requests' titles.
    """

    bounds: dict[str, float]
    latency: dict[float, dict[str, float]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One objective and whether the run met it.

    Attributes:
        what: Name of the objective.
        bound: The limit, with its unit.
        measured: The measured value.
        missed_by: By how much the objective was missed; empty if it was met.
    """

    what: str
    bound: str
    measured: str
    missed_by: str = ""

    @property
    def met(self) -> bool:
        """Whether the run met the objective."""
        return not self.missed_by


def read(file: Path) -> Objectives:
    """Read a file of objectives.

    Raises:
        ObjectivesError: The file cannot be read, or its content is not valid.
    """
    try:
        content: dict[str, Any] = tomli.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # TOML's own error is a ValueError
        raise ObjectivesError(f"{file} cannot be read: {error}") from error
    bounds: dict[str, float] = {}
    latency: dict[float, dict[str, float]] = {}
    for name, value in content.items():
        found = _PERCENTILE.fullmatch(name)
        if found is not None and isinstance(value, dict):
            if not value or not float(found[1]):
                raise ObjectivesError(
                    f"{file}: [{name}] must be a percentile above 0 with at least one kind of request"
                )
            if float(found[1]) / 100 in latency:
                raise ObjectivesError(f"{file}: [{name}] is the percentile of another table too; merge the two")
            latency[float(found[1]) / 100] = {
                pattern: _number(file, f"{name}.{pattern!r}", seconds) for pattern, seconds in value.items()
            }
        elif name in _BOUNDS:
            bounds[name] = _number(file, name, value)
        else:
            raise ObjectivesError(f"{file}: {name!r} is not an objective; use {_FORM}")
    if bounds.get("error_share", 0) > 1:
        raise ObjectivesError(f"{file}: error_share must be from 0 to 1, got {bounds['error_share']:g}")
    if not bounds and not latency:
        raise ObjectivesError(f"{file} has no objectives; use {_FORM}")
    return Objectives(bounds, latency)


def judge(summary: Summary, objectives: Objectives) -> list[Verdict]:
    """Compare a run with its objectives; an objective about requests that were never made counts as missed."""
    verdicts: list[Verdict] = []
    verdicts += [Verdict("load test", "no problem", problem, UNMEASURED) for problem in summary.problems]
    if not summary.total.requests:
        return [*verdicts, Verdict("requests", "at least 1", "0", UNMEASURED)]
    for name, bound in objectives.bounds.items():
        verdicts.append(_BOUNDS[name](summary, bound))
    for share, patterns in objectives.latency.items():
        for pattern, seconds in patterns.items():
            matching = [kind for kind in summary.kinds if fnmatch.fnmatchcase(kind.title, pattern)]
            matching = [kind for kind in matching if not kind.name.endswith(BETWEEN_WORKERS)]
            if pattern == "all":
                matching = [summary.total]
            verdicts += [_latency(kind, share, seconds) for kind in matching]
            if not matching:
                verdicts.append(
                    Verdict(f"p{100 * share:g} of {pattern}", f"at most {seconds:g} s", "no such request", UNMEASURED)
                )
    return verdicts


def _number(file: Path, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ObjectivesError(f"{file}: {name} must be a number that is not negative, got {value!r}")
    return float(value)


def _error_share(summary: Summary, bound: float) -> Verdict:
    share = summary.total.failures / summary.total.requests
    over = f"{100 * (share - bound):.2f} percentage points" if share > bound else ""
    return Verdict("failed requests", f"at most {bound:.2%}", f"{share:.2%}", over)


def _wrong_replies(summary: Summary, bound: float) -> Verdict:
    wrong = summary.wrong_replies
    return Verdict("wrong masks", f"at most {bound:g}", str(wrong), f"{wrong - bound:g}" if wrong > bound else "")


def _throughput(summary: Summary, bound: float) -> Verdict:
    rate = summary.answered_per_second
    under = f"{bound - rate:.2f}/s ({(bound - rate) / bound:.0%})" if rate < bound else ""
    return Verdict("correct replies per second", f"at least {bound:g}", f"{rate:.2f}", under)


_BOUNDS = {"error_share": _error_share, "wrong_replies": _wrong_replies, "throughput": _throughput}


def _latency(kind: Kind, share: float, bound: float) -> Verdict:
    what = f"p{100 * share:g} of {kind.title}"
    seconds = kind.seconds(share)
    if seconds is None:
        return Verdict(what, f"at most {bound:g} s", "no reply", UNMEASURED)
    over = f"{seconds - bound:.3f} s ({(seconds - bound) / bound:.0%})" if bound and seconds > bound else ""
    if not bound and seconds:
        over = f"{seconds:.3f} s"
    number = sum(kind.milliseconds.values())
    few = f" (of {number})" if number * (1 - share) < 1 else ""  # then it is the slowest
    return Verdict(what, f"at most {bound:g} s", f"{seconds:.3f} s{few}", over)
