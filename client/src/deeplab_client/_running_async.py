"""Run the steps of calls in an event loop, over one transport."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, TypeVar

from deeplab_client._factory import check_transport, open_async_transport
from deeplab_client._faults import CallContext, too_late
from deeplab_client._limits import naming_limits
from deeplab_client._steps import Ask, CallHook, Done, Pause, Work
from deeplab_client._transport import Reply, Request
from deeplab_client._workers import Passed, in_thread, in_time

if TYPE_CHECKING:
    from deeplab_client._calls import Calls
    from deeplab_client._deadline import Deadline
    from deeplab_client._steps import Step, Steps
    from deeplab_client._transport import AsyncTransport

_T = TypeVar("_T")

# Bytes. Larger images and masks are handled in a thread to keep the event loop free: copying 1 MB takes 0.1 ms, its
# checksum 0.2 ms, and decoding a PNG of it 5 ms.
_LARGE = 1_000_000


class AsyncRunner:
    """Runs the calls of a client and its views, which share one transport; the first call creates it."""

    def __init__(self, given: AsyncTransport | None) -> None:
        check_transport(given, asynchronous=True)
        self._transport = self._given = given

    def __reduce__(self) -> tuple[Any, ...]:
        return AsyncRunner, (self._given,)  # a copy opens its own connections

    async def run(self, steps: Steps[_T], calls: Calls, model: str | None) -> _T:
        """Run the steps of a call and return its result."""
        with contextlib.closing(steps):
            step = next(steps)
            try:
                while not isinstance(step, Done):
                    try:
                        answer = await self._take(step, calls, model or calls.model)
                    except BaseException as error:  # noqa: PERF203 - each step handles its own error
                        if isinstance(step, CallHook):
                            raise
                        step = steps.throw(error)
                    else:
                        step = steps.send(answer)
                return step.value
            finally:
                del step  # the argument of a hook holds an error, whose traceback holds this frame

    async def close(self) -> None:
        """Close the connections of this event loop."""
        if self._transport is not None:
            await self._transport.close()

    async def _take(self, step: Step, calls: Calls, model: str) -> object:
        try:
            if isinstance(step, Pause):
                return await asyncio.sleep(min(step.seconds, step.deadline.left()))
            if isinstance(step, CallHook):
                result = step.hook(step.about)
                return await in_time(result, deadline=step.deadline) if isawaitable(result) else None
            with naming_limits():
                if isinstance(step, Work):
                    work = partial(step.function, step.argument)
                    return work() if _is_small(step.argument) else await in_thread(work, deadline=step.deadline)
                with calls.adding_headers():
                    transport = await self._open(calls, step.deadline)
                    method = getattr(transport, step.method)
                    return await method(*(() if step.about is None else (step.about,)), deadline=step.deadline)
        except Passed:
            request_id = step.about.request_id if isinstance(step, Ask) and isinstance(step.about, Request) else None
            where = CallContext(str(calls.endpoint), model, step.deadline.seconds, request_id)
            raise too_late(where) from None

    async def _open(self, calls: Calls, deadline: Deadline) -> AsyncTransport:
        calls.check_open()
        if self._transport is None:
            # In a thread, because loading takes tenths of a second.
            transport = await in_thread(
                lambda: open_async_transport(calls.endpoint, calls.options, calls.outputs), deadline=deadline
            )
            calls.check_open()
            if self._transport is None:  # no other task was faster
                self._transport = transport
        return self._transport


def _is_small(argument: object) -> bool:
    if not isinstance(argument, Reply):
        return isinstance(argument, bytes) and len(argument) < _LARGE
    mask = argument.outputs.get("MASK")  # if it is missing, there is a PNG of unknown size
    return mask is not None and mask.size < _LARGE
