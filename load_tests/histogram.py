"""Durations as counts of rounded values: small enough to send, exact enough to judge by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


def rounded(milliseconds: float) -> int:
    """Round to three significant digits, whole milliseconds at most: half a percent of error, or half a millisecond.

    Locust's own rounding keeps two, which moves a percentile by up to 5 %.
    """
    whole = round(milliseconds)
    return round(whole, min(0, 3 - len(str(abs(whole)))))


def percentile(counts: Mapping[int, int], share: float) -> float | None:
    """Return the smallest value that at least `share` of the counted ones do not exceed; None of nothing.

    Args:
        counts: How often each value was seen.
        share: From 0 to 1.
    """
    # A share such as 0.99 of 100 must stay 99 in binary fractions too.
    rank = max(1, math.ceil(round(share * sum(counts.values()), 6)))
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= rank:
            return value
    return None


def mean(counts: Mapping[int, int]) -> float | None:
    """Return the mean of the counted values; None of nothing."""
    number = sum(counts.values())
    return sum(value * count for value, count in counts.items()) / number if number else None
