"""Types of argparse that the command lines share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_STD = 0.001
"""The least standard deviation of a channel: a smaller one is a typing error, and the logits overflow."""


def number(low: float, high: float = float("inf"), *, kind: type[int | float] = float) -> Callable[[str], Any]:
    """Return a `type` for argparse that takes numbers of a range, both ends included.

    Args:
        low: The least number.
        high: The largest one; without it, any finite number.
        kind: `int` takes integers only, and returns them.
    """
    noun = "an integer" if kind is int else "a number"
    bounds = f"from {low:g}" + ("" if high == float("inf") else f" to {high:.0f}")

    def checked(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = float("nan")
        if not low <= value <= high or value == float("inf"):
            raise argparse.ArgumentTypeError(f"must be {noun} {bounds}, got {text!r}")
        return value

    return checked


def channels(lowest: float) -> Callable[[str], tuple[float, ...]]:
    """Return a `type` for argparse that takes R,G,B on the scale 0 to 1.

    Args:
        lowest: The least number of a channel.
    """

    def checked(text: str) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != len("RGB") or not all(lowest <= number <= 1 for number in numbers):
            raise argparse.ArgumentTypeError(
                f"must be three numbers R,G,B from {lowest:g} to 1, got {text!r}; divide values from 0 to 255 by 255"
            )
        return numbers

    return checked
