"""When a call is tried again, and after how long.

Written here and not with tenacity or stamina: the pause has to end before the deadline that the attempts share, its
length depends on what the server said in the failure, and one schedule has to serve a thread that sleeps, a thread
whose sleep another one may end, and a coroutine. What is left for a library to do is the one line of the backoff.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

from deeplab_client._errors import (
    ClientLimitError,
    DeadlineExceededError,
    SegmentationError,
)

if TYPE_CHECKING:
    from datetime import datetime

    from deeplab_client._deadline import Deadline

_LIMIT_PAUSE = (0.02, 0.2)  # seconds, shortest and longest


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a failed request is sent again, and after what pauses.

    A pause is drawn between 0 and a bound that doubles from `first_delay` to `longest_delay`, so that clients that
    failed together do not come back together; where the server names a longer one, that is kept. All attempts and
    pauses share the timeout of the call.

    Attributes:
        retries: Attempts after the first; 0 for none.
        first_delay: Seconds, the bound of the first pause.
        longest_delay: Seconds, the largest bound.
    """

    retries: int = 2
    first_delay: float = 0.5
    longest_delay: float = 8.0

    def __post_init__(self) -> None:
        if isinstance(self.retries, bool) or not isinstance(self.retries, int):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a type checker
            raise TypeError(f"retries must be an integer or a RetryPolicy, got {self.retries!r}")
        if self.retries < 0:
            raise ValueError(f"retries must be 0 or more, got {self.retries}")
        if not 0 <= self.first_delay <= self.longest_delay < float("inf"):
            raise ValueError(f"delays must be 0 <= first_delay <= longest_delay seconds, got {self}")

    def delay(self, attempt: int) -> float:
        """Draw the pause after a failed attempt, the first being 1."""
        bound = min(self.longest_delay, self.first_delay * 2.0 ** min(attempt - 1, 60))
        return random.uniform(0, bound)  # noqa: S311 - spreads load, keeps no secret


@dataclass(frozen=True, slots=True)
class RetryAttempt:
    """A request that failed and is about to be sent again.

    Attributes:
        number: Of the attempt that failed, the first being 1.
        delay: Seconds until the next one.
        error: Why it failed, with the model and the request's id.
    """

    number: int
    delay: float
    error: SegmentationError


class Attempts:
    """The attempts of one call.

    Args:
        policy: How many there may be.
        deadline: The call's.
        in_batch: Whether the call is one of many, whose ends give back what a limit of this process lacks: it waits for
            that until its deadline, however many retries there may be.
    """

    __slots__ = ("_deadline", "_failed", "_in_batch", "_last", "_policy", "_retried")

    def __init__(self, policy: RetryPolicy, deadline: Deadline, *, in_batch: bool = False) -> None:
        self._policy = policy
        self._deadline = deadline
        self._in_batch = in_batch
        self._failed = self._retried = 0
        self._last: str | None = None  # not the error: its traceback holds whoever holds this

    @property
    def number(self) -> int:
        """The number of the attempt that is under way, the first being 1."""
        return self._failed + 1

    def after(self, error: SegmentationError) -> RetryAttempt | None:
        """Take note of a failure; return the next attempt, or None where the failure is final."""
        self._failed += 1
        if isinstance(error, DeadlineExceededError) and self._last is not None:
            error.message += f"; attempt {self._failed - 1} had failed: {self._last}"
        self._last = str(error)
        if not error.retryable:
            return None
        if self._in_batch and isinstance(error, ClientLimitError):
            delay = random.uniform(*_LIMIT_PAUSE)  # noqa: S311 - spreads load, keeps no secret
        elif self._retried < self._policy.retries:
            self._retried += 1
            delay = max(self._policy.delay(self._retried), error.retry_after or 0.0)
        else:
            return None
        return RetryAttempt(self._failed, delay, error) if self._deadline.leaves(delay) else None


def check_retries(retries: int | RetryPolicy) -> RetryPolicy:
    """Return the policy that an argument stands for.

    Raises:
        TypeError: It is neither a number nor a policy.
        ValueError: It is less than 0.
    """
    return retries if isinstance(retries, RetryPolicy) else RetryPolicy(retries)


def seconds_of_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Read HTTP's Retry-After, seconds or a date (RFC 9110, 10.2.3); None where there is none that can be read."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):  # TypeError: a date without a zone
        return None


def seconds_of_pushback(value: str | bytes) -> float | None:
    """Read gRPC's `grpc-retry-pushback-ms` (gRFC A6); None for anything but a number of 0 or more: do not try again."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return float(text) / 1000 if text.isascii() and text.isdigit() else None
