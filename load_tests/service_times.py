"""What a batch costs the core model, from what Triton counted during a measured run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from load_tests.summary import Kind, Summary

_CORE, _ENSEMBLE = "deeplabv3_", "segment_"
_NEEDED = {
    *("requests", "batches", "queue_seconds"),
    *("compute_input_seconds", "compute_infer_seconds", "compute_output_seconds"),
}
# Of the pictures, that the server may not have counted as the client did: those in flight at either end.
_SHARE_MISSING = 0.1


class ServiceTimesError(Exception):
    """The run says nothing about batches; the message says why."""


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """Seconds of a batch by its size: measured sizes as they were, others on a straight line through them.

    Attributes:
        model: The core model.
        measured: Mean seconds of a batch, by size.
        first: Seconds of the line's batch of none.
        each: Seconds that each picture adds to it.
        constant: Seconds of a request outside the core's queue and the core, the client's way included.
        batches: How many were measured.
        variation: Coefficient of variation of a batch's time; 0 for one that is always the same.
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
        return self.measured.get(size) or max(self.first + self.each * size, 1e-9)

    def most_per_second(self, max_batch: int, instances: int) -> float:
        """Return the pictures per second of a replica that is never idle."""
        return max(size / self.mean(size) for size in range(1, max_batch + 1)) * instances

    def __call__(self, size: int, source: random.Random) -> float:
        """Draw the seconds of one batch."""
        mean = self.mean(size)
        if not self.variation:
            return mean
        shape = self.variation**-2
        return source.gammavariate(shape, mean / shape)


def from_run(run: Summary, *, model: str | None = None, variation: float = 0.0) -> ServiceTimes:
    """Return the service times of a core model in a run.

    Args:
        run: Measured where one server answered, for Triton's numbers are one server's.
        model: The core model; the only one that was asked, where it is left out.
        variation: Of the batches' times, which Triton does not tell.

    Raises:
        ServiceTimesError: The run has no statistics of such a model, or nothing was answered.
    """
    cores = {name: counts for name, counts in run.server.items() if name.startswith(_CORE)}
    if not cores:
        raise ServiceTimesError(
            "the run has no statistics of a core model: measure with --host at Triton itself, not at a proxy"
        )
    if model is None and len(cores) > 1:
        raise ServiceTimesError(
            f"the run asked {' and '.join(sorted(cores))}, which share what computes: measure with --variants of one, "
            "or name one with --model and leave the other's share out of account"
        )
    name = model or next(iter(cores))
    if name not in cores:
        raise ServiceTimesError(f"the run has no statistics of {name}: it has {', '.join(cores)}")
    core = cores[name]
    if lacking := _NEEDED - core.keys():
        raise ServiceTimesError(f"the statistics of {name} lack {', '.join(sorted(lacking))}: measure again")
    ensemble = run.server.get(f"{_ENSEMBLE}{name.removeprefix(_CORE)}", {}).get("requests", 0)
    answers = _answers(run, name)
    if abs(ensemble - answers) > _SHARE_MISSING * answers:
        raise ServiceTimesError(
            f"the server counted {ensemble} pictures, and {answers} were answered: measure one server alone, without a "
            "balancer before it or other callers beside"
        )
    batches: Mapping[str, Any] = core["batches"]
    counts = {int(size): batch["executions"] for size, batch in batches.items() if batch["executions"]}
    if not counts:
        raise ServiceTimesError(f"the run has no batches of {name}")
    measured = {size: batches[str(size)]["seconds"] / count for size, count in counts.items()}
    first, each = _line(measured, counts)
    return ServiceTimes(name, measured, first, each, _constant(run, name, core), sum(counts.values()), variation)


def _line(measured: Mapping[int, float], counts: Mapping[int, int]) -> tuple[float, float]:
    """Fit seconds = first + each x size, each size with the weight of its number of batches."""
    sizes = sorted(measured)
    if len(sizes) == 1:
        return 0.0, measured[sizes[0]] / sizes[0]  # nothing says that a larger batch is cheaper
    weights = np.sqrt([counts[size] for size in sizes])
    each, first = np.polyfit(sizes, [measured[size] for size in sizes], 1, w=weights)
    # A line that leaves the quadrant is noise, and would make large batches free.
    return (max(0.0, float(first)), float(each)) if each > 0 else (measured[sizes[-1]], 0.0)


def _constant(run: Summary, name: str, core: Mapping[str, Any]) -> float:
    """Return the mean latency of a request less what it spent in the core's queue and in the core."""
    answers = _answers(run, name)
    if not answers:
        raise ServiceTimesError(f"the run has no latencies of {_ENSEMBLE}{name.removeprefix(_CORE)}")
    kinds = _kinds(run, name)
    latency = sum(value * count for kind in kinds for value, count in kind.milliseconds.items()) / answers / 1000
    in_core = core["queue_seconds"] + core["compute_input_seconds"]
    in_core += core["compute_infer_seconds"] + core["compute_output_seconds"]
    return max(0.0, latency - in_core / max(core["requests"], 1))


def _kinds(run: Summary, name: str) -> list[Kind]:
    return [kind for kind in run.kinds if kind.name.split()[0] == name.removeprefix(_CORE)]


def _answers(run: Summary, name: str) -> int:
    return sum(count for kind in _kinds(run, name) for count in kind.milliseconds.values())
