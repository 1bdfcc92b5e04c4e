"""One deadline in seconds for a whole call."""

from __future__ import annotations

import math
import time
from numbers import Real

# gRPC and sockets overflow on larger numbers, each at its own; 100 days is for ever to a request.
_LONGEST_SECONDS = 100 * 86_400.0


class Deadline:
    """The moment by which a call must have ended.

    Attributes:
        seconds: The timeout that the caller gave, for messages.
    """

    __slots__ = ("_at", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = check_timeout(seconds)
        self._at = time.monotonic() + min(self.seconds, _LONGEST_SECONDS)

    def remaining(self) -> float:
        """Return the seconds that are left, always more than 0.

        Raises:
            TimeoutError: None are left.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left


def check_timeout(seconds: object) -> float:
    """Return `seconds` as a float.

    Raises:
        TypeError: It is no number.
        ValueError: It is not finite and more than 0.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, Real):
        raise TypeError(f"timeout must be a number of seconds; found {seconds!r}")
    value = float(seconds)
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"timeout must be a finite number of seconds greater than 0; found {seconds!r}")
    return value
