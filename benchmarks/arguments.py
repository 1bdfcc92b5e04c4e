"""What the benchmarks' command lines take."""

from __future__ import annotations

import argparse


def at_least_one(text: str) -> int:
    """Return a whole number from 1 on, for argparse's `type`."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)
