"""What a load got back, and the figures that are made of it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ANSWERED = "200"


@dataclass(frozen=True, slots=True)
class Reply:
    """One request.

    Attributes:
        sent: seconds since the load began.
        seconds: until the last byte of the reply, or until there was none.
        status: the HTTP status, or the name of the exception that came in its place.
        pixels: of the mask that was expected.
        differing: pixels of it that are another class; all of them for a reply that is no such mask.
    """

    sent: float
    seconds: float
    status: str
    pixels: int
    differing: int

    @property
    def answered(self) -> bool:
        """Tell whether a mask came."""
        return self.status == ANSWERED


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return the least of the values that at least this share of them does not exceed; None where there are none."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def elapsed(replies: Sequence[Reply]) -> float:
    """Return the seconds from the first request to the last reply."""
    return max(reply.sent + reply.seconds for reply in replies) - min(reply.sent for reply in replies)


def throughput(replies: Sequence[Reply]) -> float:
    """Return the masks a second."""
    return sum(reply.answered for reply in replies) / elapsed(replies)


def latencies(replies: Sequence[Reply]) -> list[float]:
    """Return the seconds of each mask."""
    return [reply.seconds for reply in replies if reply.answered]


def in_time(replies: Sequence[Reply], seconds: float) -> int:
    """Return how many masks came within some seconds of their request."""
    return sum(taken <= seconds for taken in latencies(replies))


def errors(replies: Sequence[Reply]) -> dict[str, int]:
    """Return how many requests failed in each way."""
    return dict(Counter(reply.status for reply in replies if not reply.answered))


def worst_difference(replies: Sequence[Reply]) -> float:
    """Return the largest share of a mask's pixels that differed; 0 for no mask."""
    return max((reply.differing / reply.pixels for reply in replies if reply.answered), default=0.0)
