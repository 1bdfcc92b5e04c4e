"""The shape of the load: the schedule of an open loop, and the stages of the number of users."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from random import Random

    from load_tests.options import Options


class Timetable:
    """The times at which one user of an open loop sends, independent of replies.

    A user that falls behind sends at once. Each request keeps its scheduled time, from which its latency counts.

    Args:
        start: Start of the timetable in seconds on the clock.
        rate: Requests per second, more than 0.
        poisson: Draw the pauses from the exponential distribution, instead of using equal ones.
        random: Random source. It also draws the first pause of equal ones, so that users do not send simultaneously.
    """

    def __init__(self, start: float, *, rate: float, poisson: bool, random: Random) -> None:
        self._rate = rate
        self._poisson = poisson
        self._random = random
        self.due = start + (self._pause() if poisson else random.uniform(0, 1 / rate))

    def take(self) -> float:
        """Return the time of the request that is due, and advance to the next."""
        due = self.due
        self.due += self._pause()
        return due

    def wait(self, now: float) -> float:
        """Return the seconds until the next request, or 0 if its time has passed."""
        return max(0.0, self.due - now)

    def _pause(self) -> float:
        return self._random.expovariate(self._rate) if self._poisson else 1 / self._rate


@dataclass(frozen=True, slots=True)
class Stage:
    """A constant number of users for some seconds."""

    users: int
    seconds: float


def stages_of(options: Options, users: int) -> list[Stage]:
    """Return the stages of a run's shape; an empty list if the number of users is constant.

    `step` adds `users` in each stage, to find the rate at which the server is fully used. `spike` multiplies them for
    one stage, to show how fast the queue empties.
    """
    seconds = options.stage_time
    if options.shape == "step":
        return [Stage(users * number, seconds) for number in range(1, options.stages + 1)]
    if options.shape == "spike":
        return [Stage(many, seconds) for many in (users, round(users * options.spike_factor), users)]
    return []


def stage_at(stages: Sequence[Stage], seconds: float) -> Stage | None:
    """Return the stage of a run after some seconds; None after the last."""
    end = 0.0
    for stage in stages:
        end += stage.seconds
        if seconds < end:
            return stage
    return None
