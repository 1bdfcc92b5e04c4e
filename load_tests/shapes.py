"""How the number of users changes over a run, as stages of constant numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class Stage:
    """A while with a constant number of users.

    Attributes:
        users: How many.
        seconds: For how long.
    """

    users: int
    seconds: float


def step(users: int, *, stages: int, seconds: float) -> list[Stage]:
    """Return stages of `users`, twice, three times as many and so on, until the server's knee is seen."""
    return [Stage(users * number, seconds) for number in range(1, stages + 1)]


def spike(users: int, *, factor: float, seconds: float) -> list[Stage]:
    """Return an even load, one stage of `factor` times it, and the even load again: how fast does the queue empty?"""
    return [Stage(users, seconds), Stage(round(users * factor), seconds), Stage(users, seconds)]


def stage_at(stages: Sequence[Stage], seconds: float) -> Stage | None:
    """Return the stage that a run is in after so many seconds; None when it is over."""
    end = 0.0
    for stage in stages:
        end += stage.seconds
        if seconds < end:
            return stage
    return None
