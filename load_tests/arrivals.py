"""When the requests of an open loop leave: a timetable that replies do not move."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random


class Timetable:
    """The moments at which one source sends.

    A source that falls behind sends what is due at once; each request keeps the moment that was meant for it, and its
    latency counts from there.

    Args:
        start: The clock's reading from which the timetable runs, seconds.
        rate: Requests per second, more than 0.
        poisson: Whether pauses are drawn from the exponential distribution, and not all alike.
        random: What draws. The first pause of evenly spaced arrivals is drawn too, or all sources would send at once.
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
