"""Blocking work of coroutines, in threads that nobody has to wait for.

The event loop's own threads would do, but for work that never ends, such as reading from a file system that hangs: a
few of it would leave the application without threads, and `asyncio.run` waits for each at its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import threading
from typing import TYPE_CHECKING, Any, TypeVar

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
    loop = asyncio.get_running_loop()
    crew = _crews.setdefault(loop, _Crew())
    crew.callers += 1
    try:
        return await in_time(crew.run(work), deadline=deadline)
    finally:
        crew.callers -= 1
        if not crew.callers:
            _crews.pop(loop, None)


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
    except asyncio.CancelledError as error:
        # From Python 3.14 on, the frame of `wait` holds the task that waits, and the task its error: a cycle, in which
        # the picture would stay until the next collection.
        error.with_traceback(None)
        raise
    finally:
        task.cancel()


class Passed(Exception):  # noqa: N818 - not an error of its own: callers turn it into theirs
    """The deadline has passed; no TimeoutError, which what was waited for may raise itself."""


class _Crew:
    """The threads of one event loop; touched by that loop alone, so that there is no lock to be held at a fork."""

    def __init__(self) -> None:
        self.callers = 0
        self._places = asyncio.Semaphore(_LIMIT)
        self._running: set[asyncio.Future[Any]] = set()

    async def run(self, work: Callable[[], _T]) -> _T:
        outcome: asyncio.Future[tuple[Any, BaseException | None]] = asyncio.get_running_loop().create_future()
        call = functools.partial(_call, functools.partial(contextvars.copy_context().run, work), outcome)
        async with self._places:
            while True:
                try:
                    threading.Thread(target=call, name="deeplab-client-work", daemon=True).start()
                    break
                except RuntimeError:  # no more threads
                    if not self._running:
                        raise
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            self._running.add(outcome)
            outcome.add_done_callback(self._running.discard)
            result, error = await outcome
        if error is not None:
            raise error
        return result


def _call(work: Callable[[], object], outcome: asyncio.Future[tuple[Any, BaseException | None]]) -> None:
    """Call `work` in a thread, and tell the event loop what came of it."""
    try:
        result, error = work(), None
    except BaseException as failure:  # noqa: BLE001 - raised in the thread that waits
        result, error = None, failure
    with contextlib.suppress(RuntimeError):  # the loop has ended
        outcome.get_loop().call_soon_threadsafe(_tell, outcome, (result, error))


def _tell(outcome: asyncio.Future[Any], told: tuple[Any, BaseException | None]) -> None:
    if not outcome.done():  # nobody waits any more
        outcome.set_result(told)


_crews: dict[asyncio.AbstractEventLoop, _Crew] = {}  # of the loops that have callers


def _left(deadline: Deadline) -> float:
    try:
        return deadline.remaining()
    except TimeoutError:
        raise Passed from None


def _look_at(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()  # asyncio logs what nobody has looked at
