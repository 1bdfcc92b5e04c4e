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

# gRPC and sockets overflow on larger numbers; 100 days is unlimited for a request.
_LONGEST_SECONDS = 100 * 86_400.0


class Deadline:
    """The time by which a call must end.

    Attributes:
        seconds: The timeout given by the caller, for messages.
    """

    __slots__ = ("_at", "seconds")

    def __init__(self, seconds: float) -> None:
        self.seconds = check_timeout(seconds)
        self._at = time.monotonic() + min(self.seconds, _LONGEST_SECONDS)

    def remaining(self) -> float:
        """Return the seconds left, always more than 0.

        Raises:
            TimeoutError: The deadline has passed.
        """
        left = self._at - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        return left

    def leaves(self, seconds: float) -> bool:
        """Return whether the deadline is more than `seconds` away."""
        return self._at - time.monotonic() > seconds

    def left(self) -> float:
        """Return the seconds left, or 0."""
        return max(0.0, self._at - time.monotonic())

    def end_by(self, whole: Deadline) -> None:
        """Move the deadline forward to that of the whole call that this one is a part of."""
        self._at = min(self._at, whole._at)

    def finish_reading(self) -> None:
        """Record that the image has been read, which is the part that cannot be interrupted."""

    def pause(self, seconds: float) -> None:
        """Sleep, but not beyond the deadline."""
        time.sleep(min(seconds, self.left()))


class AbortableDeadline(Deadline):
    """A deadline that another thread may move to now, which wakes a call that waits for its server.

    Attributes:
        is_reading: Whether the image is still being read, which cannot be interrupted.
    """

    __slots__ = ("_aborted", "_interrupt", "_lock", "is_reading")

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.is_reading = True
        self._aborted = threading.Event()
        self._lock = threading.Lock()
        self._interrupt: Callable[[], object] | None = None

    def end_by(self, whole: Deadline) -> None:
        """Move the deadline forward to that of the whole call that this one is a part of."""
        with self._lock:
            super().end_by(whole)

    def finish_reading(self) -> None:
        """Record that the image has been read, which is the part that cannot be interrupted."""
        self.is_reading = False

    def abort(self) -> None:
        """End the call with this deadline; it fails as if the deadline had passed."""
        with self._lock:
            self._at = -math.inf
        self._aborted.set()
        with self._lock:
            if self._interrupt is not None:
                self._interrupt()

    @contextlib.contextmanager
    def interrupting(self, interrupt: Callable[[], object]) -> Generator[None]:
        """Let `abort` call `interrupt`, in its own thread, while the block runs."""
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
        TypeError: It is not a number.
        ValueError: It is not a finite number greater than 0.
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
