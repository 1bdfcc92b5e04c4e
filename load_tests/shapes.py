"""The shape of the load: when the requests of an open loop leave, and how the number of users changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from load_tests.options import Options


class Timetable:
    """The moments at which one user of an open loop sends; replies do not move them.

    A user that falls behind sends at once. Each request keeps its own moment, and its latency counts from there.

    Args:
        start: The clock's reading from which the timetable runs, seconds.
        rate: Requests per second, more than 0.
        poisson: Draw the pauses from the exponential distribution; else all are alike.
        random: Draws. The first pause of evenly spaced requests is drawn too, or all users would send at once.
    """

    def __init__(self, start: float, *, rate: float, poisson: bool, random: Random) -> None:
        self._rate = rate
        self._poisson = poisson
        self._random = random
        self.due = start + (self._pause() if poisson else random.uniform(0, 1 / rate))

    def take(self) -> float:
        """Return the moment that is due, and move on to the next."""
        due = self.due
        self.due += self._pause()
        return due

    def wait(self, now: float) -> float:
        """Return the seconds until the next moment, 0 where it has passed."""
        return max(0.0, self.due - now)

    def _pause(self) -> float:
        return self._random.expovariate(self._rate) if self._poisson else 1 / self._rate


@dataclass(frozen=True, slots=True)
class Stage:
    """A constant number of users for some seconds."""

    users: int
    seconds: float


def stages_of(options: Options, users: int) -> list[Stage]:
    """Return the stages of a run's shape; none where the number of users is constant.

    `step` adds `users` in each stage, until the server is full. `spike` multiplies them for one stage, and shows how
    fast the queue empties.
    """
    seconds = options.stage_time
    if options.shape == "step":
        return [Stage(users * number, seconds) for number in range(1, options.stages + 1)]
    if options.shape == "spike":
        return [Stage(many, seconds) for many in (users, round(users * options.spike_factor), users)]
    return []


def stage_at(stages: Sequence[Stage], seconds: float) -> Stage | None:
    """Return the stage that a run is in after some seconds; None when it is over."""
    end = 0.0
    for stage in stages:
        end += stage.seconds
        if seconds < end:
            return stage
    return None
