"""Threads for many calls; a stuck thread does not delay the caller."""

from __future__ import annotations

import contextvars
import sys
import threading
import time
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeVar

from deeplab_client._deadline import AbortableDeadline
from deeplab_client._errors import ClientClosedError, DeadlineExceededError, SegmentationError
from deeplab_client._limits import limit_met

if TYPE_CHECKING:
    from collections.abc import Callable

_R = TypeVar("_R")

_GRACE = 0.2  # seconds to wait for a thread that may be stuck


class Job(Generic[_R]):
    """The call for one image, made in one of the threads."""

    def __init__(self, call: Callable[[AbortableDeadline], _R], seconds: float) -> None:
        self._call = call
        self._seconds = seconds
        self._context = contextvars.copy_context()
        self._future: Future[_R | SegmentationError] = Future()
        self._begun = threading.Event()
        self._deadline: AbortableDeadline | None = None

    def begin(self) -> AbortableDeadline:
        """Start the deadline of the call."""
        self._deadline = AbortableDeadline(self._seconds)
        self._begun.set()
        return self._deadline

    def run(self, deadline: AbortableDeadline) -> None:
        """Make the call, whose deadline has started."""
        try:
            self._future.set_result(self._context.run(self._call, deadline))
        except ClientClosedError as error:
            self._future.set_exception(error)
        except SegmentationError as error:
            self._future.set_result(error)
        except BaseException as error:  # noqa: BLE001 - raised by result()
            self._future.set_exception(error)
        finally:
            del self  # the traceback of the error holds this frame, and the job holds the error: see `_faults.caused`

    def abort(self) -> None:
        """End the call if it is under way; reading an image cannot be interrupted."""
        if self._deadline is not None:
            self._deadline.abort()

    def is_done(self) -> bool:
        return self._future.done()

    def is_stuck(self) -> bool:
        """Return whether the deadline passed, or the call was aborted, before its image was read."""
        return self._deadline is not None and self._deadline.is_reading and not self._deadline.leaves(0)

    def result(self) -> _R | SegmentationError:
        """Return the result; do not wait for an image that is not read in time."""
        self._begun.wait()
        while True:
            try:
                return self._future.result(_GRACE if self._deadline is None else self._deadline.left() + _GRACE)
            except FutureTimeoutError:
                if self._future.done():  # the image's own TimeoutError
                    return self._future.result()
            if self.is_stuck():
                return DeadlineExceededError(f"the image was not read within {self._seconds:g} s")


class Crew(Generic[_R]):
    """A pool of threads; stuck threads are replaced, and end when they can.

    Not a ThreadPoolExecutor, because it and the exit of the interpreter wait for its threads, even for stuck ones.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._jobs: SimpleQueue[Job[_R] | None] = SimpleQueue()
        self._threads: dict[threading.Thread, Job[_R] | None] = {}
        self._lock = threading.Lock()
        self._ended = False

    def submit(self, call: Callable[[AbortableDeadline], _R], seconds: float) -> Job[_R]:
        job = Job(call, seconds)
        self._jobs.put(job)
        if len(self._threads) < self._size:
            self._add()
        return job

    def result_of(self, job: Job[_R]) -> _R | SegmentationError:
        if not self._threads:
            self._add()
        # If no thread can be started, the caller's thread does the work.
        while not self._threads and not job.is_done() and (first := self._jobs.get_nowait()) is not None:
            first.run(first.begin())
        result = job.result()
        if not job.is_done():
            with self._lock:
                stuck = [thread for thread, current in self._threads.items() if current is job]
                for thread in stuck:
                    del self._threads[thread]
            for _ in stuck:
                self._add()
        return result

    def end(self) -> None:
        """End the calls under way and wait for them, but not for images that are still being read."""
        if sys.is_finalizing():
            # The stream was left open until the interpreter ended. Daemon threads have stopped by then, wherever they
            # were, and with them every lock that they hold.
            return
        with self._lock:
            self._ended = True
            threads = dict(self._threads)
        for _ in threads:
            self._jobs.put(None)
        for job in threads.values():
            if job is not None:
                job.abort()
        until = time.monotonic() + _GRACE
        for thread in threads:
            while thread.is_alive():
                thread.join(_GRACE)
                job = self._threads.get(thread)
                if job is not None and job.is_stuck() and time.monotonic() > until:
                    break
        with self._lock:
            self._threads.clear()  # and the errors of their jobs, whose tracebacks hold the crew

    def _add(self) -> None:
        """Start another thread, unless a limit of this process prevents it."""
        thread = threading.Thread(target=self._work, name="deeplab-client", daemon=True)
        with self._lock:
            self._threads[thread] = None
        try:
            thread.start()
        except RuntimeError as error:
            with self._lock:
                del self._threads[thread]
            if limit_met(error) is None:
                raise

    def _work(self) -> None:
        thread = threading.current_thread()
        while (job := self._jobs.get()) is not None:
            with self._lock:
                if self._ended:
                    return
                self._threads[thread] = job
                deadline = job.begin()
            job.run(deadline)
            with self._lock:
                if self._threads.get(thread) is not job:  # replaced
                    return
