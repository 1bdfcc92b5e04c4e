"""Blocking work of coroutines, in threads that nobody has to wait for.

The event loop's own threads would do, but for work that never ends, such as reading from a file system that hangs: a
few of it would leave the application without threads, and `asyncio.run` waits for each at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from deeplab_client._deadline import Deadline

_T = TypeVar("_T")

_LIMIT = 16  # threads of one event loop that somebody waits for


async def in_thread(work: Callable[[], _T], *, deadline: Deadline) -> _T:
    """Return what `work` returns, called in a thread with the caller's context variables.

    Work that is not done at the deadline, or whose caller is cancelled, is left alone: a thread cannot be ended.

    Raises:
        Passed: The deadline is.
    """
    crew = _crews.setdefault(asyncio.get_running_loop(), _Crew())
    return await crew.run(work, deadline)


async def in_time(awaitable: Awaitable[_T], *, deadline: Deadline) -> _T:
    """Return what an awaitable returns; cancel it at the deadline.

    `asyncio.wait_for` swallows a cancellation that comes together with the result, before Python 3.12.

    Raises:
        Passed: The deadline is.
    """
    task = asyncio.ensure_future(awaitable)
    task.add_done_callback(_look_at)
    try:
        await asyncio.wait({task}, timeout=_left(deadline))
        if not task.done():
            raise Passed
        return task.result()
    finally:
        task.cancel()


class Passed(Exception):  # noqa: N818 not an error of its own: callers turn it into theirs
    """The deadline has passed; no TimeoutError, which what was waited for may raise itself."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)  # a picture's repr takes as long as its work
class _Job:
    work: Callable[[], Any]
    context: contextvars.Context
    outcome: asyncio.Future[tuple[Any, BaseException | None]]

    def start(self, then: Callable[[_Job], object]) -> None:
        threading.Thread(target=self._run, args=(then,), name="deeplab-client-work", daemon=True).start()

    def fail(self, error: Exception) -> None:
        self.outcome.set_result((None, error))

    def _run(self, then: Callable[[_Job], object]) -> None:
        try:
            outcome = self.context.run(self.work), None
        except BaseException as error:  # noqa: BLE001 raised by who waits
            outcome = None, error
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self.outcome.get_loop().call_soon_threadsafe(self._tell, outcome, then)

    def _tell(self, outcome: tuple[Any, BaseException | None], then: Callable[[_Job], object]) -> None:
        if not self.outcome.done():  # nobody waits any more
            self.outcome.set_result(outcome)
        then(self)


class _Crew:
    """The threads of one event loop; touched by that loop alone, so that there is no lock to be held at a fork."""

    def __init__(self) -> None:
        self._waiting: deque[_Job] = deque()
        self._running: set[_Job] = set()

    async def run(self, work: Callable[[], _T], deadline: Deadline) -> _T:
        seconds = _left(deadline)
        job = _Job(work, contextvars.copy_context(), asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        self._start()
        try:
            await asyncio.wait({job.outcome}, timeout=seconds)
            if not job.outcome.done():
                raise Passed
        finally:
            if job.outcome.cancel():
                self._forget(job)
        result, error = job.outcome.result()
        if error is not None:
            raise error
        return result

    def _start(self) -> None:
        while self._waiting and len(self._running) < _LIMIT:
            job = self._waiting.popleft()
            try:
                job.start(self._forget)
            except RuntimeError as error:  # no more threads
                if self._running:  # the next that ends comes by here
                    self._waiting.appendleft(job)
                    break
                job.fail(error)
            else:
                self._running.add(job)

    def _forget(self, job: _Job) -> None:
        self._running.discard(job)
        if job in self._waiting:
            self._waiting.remove(job)
        self._start()


_crews: WeakKeyDictionary[asyncio.AbstractEventLoop, _Crew] = WeakKeyDictionary()


def _left(deadline: Deadline) -> float:
    try:
        return deadline.remaining()
    except TimeoutError:
        raise Passed from None


def _look_at(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()  # asyncio logs what nobody has looked at
