"""Argument types for argparse that the command lines share."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

LEAST_STD = 0.001
"""The smallest standard deviation of a channel: a smaller one is a typing error and makes the logits overflow."""


def number(low: float, high: float = float("inf"), *, kind: type[int | float] = float) -> Callable[[str], Any]:
    """Return an argparse `type` for numbers from low to high, both included.

    Args:
        low: The smallest number.
        high: The largest number; by default any finite number is accepted.
        kind: `int` accepts and returns only integers.
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
    """Return an argparse `type` for three numbers R,G,B on the scale 0 to 1.

    Args:
        lowest: The smallest number of a channel.
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
