"""One deadline in seconds for a whole call."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

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

    def leaves(self, seconds: float) -> bool:
        """Return whether something may be tried again after a pause of `seconds`."""
        return self._at - time.monotonic() > seconds

    def left(self) -> float:
        """Return the seconds that are left, 0 where there are none."""
        return max(0.0, self._at - time.monotonic())

    def end_by(self, whole: Deadline) -> None:
        """Bring the moment forward to that of a call which this one is a part of."""
        self._at = min(self._at, whole._at)

    def finish_reading(self) -> None:
        """Take note that what the caller's image may hang in is over."""

    def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the deadline."""
        time.sleep(min(seconds, self.left()))


class AbortableDeadline(Deadline):
    """A deadline that another thread may bring forward to now, waking a call that waits for its server.

    Attributes:
        is_reading: Whether the image is still read, which nothing can interrupt.
    """

    __slots__ = ("_aborted", "_interrupt", "_lock", "is_reading")

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.is_reading = True
        self._aborted = threading.Event()
        self._lock = threading.Lock()
        self._interrupt: Callable[[], object] | None = None

    def end_by(self, whole: Deadline) -> None:
        """Bring the moment forward to that of a call which this one is a part of."""
        with self._lock:
            super().end_by(whole)

    def finish_reading(self) -> None:
        """Take note that what the caller's image may hang in is over."""
        self.is_reading = False

    def abort(self) -> None:
        """End the call that keeps to this deadline; it fails as if its time were up."""
        with self._lock:
            self._at = -math.inf
        self._aborted.set()
        with self._lock:
            if self._interrupt is not None:
                self._interrupt()

    @contextlib.contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Generator[None]:
        """Have `abort` call `interrupt`, from its own thread, for as long as the block lasts."""
        with self._lock:
            self._interrupt = interrupt
        try:
            if self._aborted.is_set():
                interrupt()
            yield
        finally:
            with self._lock:
                self._interrupt = None

    def pause(self, seconds: float) -> None:
        """Sleep until aborted, but not beyond the deadline."""
        self._aborted.wait(min(seconds, self.left()))


def check_timeout(seconds: object) -> float:
    """Return `seconds` as a float.

    Raises:
        TypeError: It is no number.
        ValueError: It is not finite and more than 0.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, Real):
        raise TypeError(f"timeout must be a number of seconds, got {seconds!r}")
    try:
        value = float(seconds)
    except OverflowError:  # an integer of more than 308 digits
        value = math.inf
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"timeout must be a finite number of seconds greater than 0, got {value:g}")
    return value
