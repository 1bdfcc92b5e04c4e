"""When a call is retried, and after which pause.

Without tenacity or stamina, because the pause must end before the deadline that the attempts share, its length depends
on the server's error, and one schedule serves a thread, a thread whose sleep another thread can end, and a coroutine.
Only the one line of the backoff would be left for a library.
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
    """How often a failed request is retried, and after which pauses.

    A pause is random, between 0 and a bound that doubles from `first_delay` to `longest_delay`, so that clients that
    failed together do not retry together. If the server asks for a longer pause, that one is used. All attempts and
    pauses share the timeout of the call.

    Attributes:
        retries: Maximum number of attempts after the first; 0 for none.
        first_delay: Bound of the first pause in seconds.
        longest_delay: Largest bound in seconds.

    Raises:
        TypeError: `retries` is not an integer.
        ValueError: `retries` is negative, or the delays are not 0 <= first_delay <= longest_delay.
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
        """Return a random pause in seconds after a failed attempt, counted from 1."""
        bound = min(self.longest_delay, self.first_delay * 2.0 ** min(attempt - 1, 60))
        return random.uniform(0, bound)  # noqa: S311 - not for secrets


@dataclass(frozen=True, slots=True)
class RetryAttempt:
    """A request that failed and is about to be sent again.

    Attributes:
        number: Number of the failed attempt, starting at 1.
        delay: Seconds until the next attempt.
        error: The error, with the model and the id of the request.
    """

    number: int
    delay: float
    error: SegmentationError


class Attempts:
    """The attempts of one call.

    Args:
        policy: The maximum number of retries and the pauses.
        deadline: Deadline of the call.
        in_batch: Whether the call is one of many. If it meets a limit of this process, it waits until its deadline for
            other calls to release what it needs, regardless of the number of retries.
    """

    __slots__ = ("_deadline", "_failed", "_in_batch", "_last", "_policy", "_retried")

    def __init__(self, policy: RetryPolicy, deadline: Deadline, *, in_batch: bool = False) -> None:
        self._policy = policy
        self._deadline = deadline
        self._in_batch = in_batch
        self._failed = self._retried = 0
        self._last: str | None = None  # not the error, because its traceback would hold this object

    @property
    def number(self) -> int:
        """Number of the current attempt, starting at 1."""
        return self._failed + 1

    def after(self, error: SegmentationError) -> RetryAttempt | None:
        """Record a failure; return the retry, or None if the failure is final."""
        self._failed += 1
        if isinstance(error, DeadlineExceededError) and self._last is not None:
            error.message += f"; attempt {self._failed - 1} had failed: {self._last}"
        self._last = str(error)
        if not error.retryable:
            return None
        if self._in_batch and isinstance(error, ClientLimitError):
            delay = random.uniform(*_LIMIT_PAUSE)  # noqa: S311 - not for secrets
        elif self._retried < self._policy.retries:
            self._retried += 1
            delay = max(self._policy.delay(self._retried), error.retry_after or 0.0)
        else:
            return None
        return RetryAttempt(self._failed, delay, error) if self._deadline.leaves(delay) else None


def check_retries(retries: int | RetryPolicy) -> RetryPolicy:
    """Return the argument `retries` as a policy.

    Raises:
        TypeError: It is neither an integer nor a policy.
        ValueError: It is less than 0.
    """
    return retries if isinstance(retries, RetryPolicy) else RetryPolicy(retries)


def seconds_of_retry_after(value: str | None, *, now: datetime) -> float | None:
    """Parse HTTP's Retry-After, seconds or a date (RFC 9110, 10.2.3); None if missing or not valid."""
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
    """Parse gRPC's `grpc-retry-pushback-ms` (gRFC A6); None, which forbids a retry, unless a number of 0 or more."""
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return float(text) / 1000 if text.isascii() and text.isdigit() else None
