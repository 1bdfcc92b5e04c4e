"""Blocking work of coroutines, in threads that can be abandoned.

The event loop's own threads are not suited for work that never ends, such as reading from a file system that hangs: it
would leave the application without threads, and `asyncio.run` waits for all of them.
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

_LIMIT = 16  # threads of one event loop, without abandoned ones


async def in_thread(work: Callable[[], _T], *, deadline: Deadline) -> _T:
    """Run `work` in a thread with the caller's context variables, and return its result.

    At the deadline, or if the caller is cancelled, the thread is abandoned, because it cannot be ended.

    Raises:
        Passed: The deadline has passed.
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
    """Return the result of an awaitable; cancel it at the deadline.

    Not with `asyncio.wait_for`, which before Python 3.12 swallows a cancellation that comes together with the result.

    Raises:
        Passed: The deadline has passed.
    """
    task = asyncio.ensure_future(awaitable)
    task.add_done_callback(_retrieve_exception)
    try:
        await asyncio.wait({task}, timeout=_left(deadline))
        if not task.done():
            raise Passed
        return task.result()
    except asyncio.CancelledError as error:
        # From Python 3.14 on, the frame of `wait` holds the waiting task, and the task its error: a cycle that would
        # keep the picture until the next garbage collection.
        error.with_traceback(None)
        raise
    finally:
        task.cancel()


class Passed(Exception):  # noqa: N818 - callers map it to their own error
    """The deadline has passed; not a TimeoutError, because the awaited work may raise that itself."""


class _Crew:
    """The threads of one event loop; only used in that loop, so it needs no lock that a fork could keep locked."""

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
    """Call `work` in this thread, and pass its result to the event loop."""
    try:
        result, error = work(), None
    except BaseException as failure:  # noqa: BLE001 - raised in the thread that waits
        result, error = None, failure
    with contextlib.suppress(RuntimeError):  # the loop has ended
        outcome.get_loop().call_soon_threadsafe(_set_result, outcome, (result, error))


def _set_result(outcome: asyncio.Future[Any], result: tuple[Any, BaseException | None]) -> None:
    if not outcome.done():  # the caller no longer waits
        outcome.set_result(result)


_crews: dict[asyncio.AbstractEventLoop, _Crew] = {}  # of the loops with callers


def _left(deadline: Deadline) -> float:
    try:
        return deadline.remaining()
    except TimeoutError:
        raise Passed from None


def _retrieve_exception(task: asyncio.Future[Any]) -> None:
    if not task.cancelled():
        task.exception()  # asyncio would log an exception that is never retrieved
