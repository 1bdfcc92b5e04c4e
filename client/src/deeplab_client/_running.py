"""Run the steps of calls in the calling thread, over one transport."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from deeplab_client._factory import check_transport, open_transport
from deeplab_client._limits import naming_limits
from deeplab_client._steps import Ask, CallHook, Done, Work

if TYPE_CHECKING:
    from deeplab_client._calls import Calls
    from deeplab_client._steps import Step, Steps
    from deeplab_client._transport import Transport

_T = TypeVar("_T")

_KEY = "transport"


class Runner:
    """Runs the calls of a client and its views, which share one transport; the first call creates it."""

    def __init__(self, given: Transport | None) -> None:
        check_transport(given, asynchronous=False)
        self._given = given
        # A dict because its setdefault is atomic: a lock held by another thread during a fork would stay locked.
        self._transports: dict[str, Transport] = {} if given is None else {_KEY: given}

    def __reduce__(self) -> tuple[Any, ...]:
        return Runner, (self._given,)  # a copy opens its own connections

    def run(self, steps: Steps[_T], calls: Calls) -> _T:
        """Run the steps of a call and return its result."""
        with contextlib.closing(steps):
            step = next(steps)
            try:
                while not isinstance(step, Done):
                    try:
                        answer = self._take(step, calls)
                    except BaseException as error:  # noqa: PERF203 - each step handles its own error
                        if isinstance(step, CallHook):
                            raise
                        step = steps.throw(error)
                    else:
                        step = steps.send(answer)
                return step.value
            finally:
                del step  # the argument of a hook holds an error, whose traceback holds this frame

    def close(self) -> None:
        """Close the connections of this process."""
        for transport in self._transports.values():
            transport.close()

    def _take(self, step: Step, calls: Calls) -> object:
        if isinstance(step, Ask):
            with naming_limits(), calls.adding_headers():
                method = getattr(self._open(calls), step.method)
                return method(*(() if step.about is None else (step.about,)), deadline=step.deadline)
        if isinstance(step, Work):
            with naming_limits():
                return step.function(step.argument)
        if isinstance(step, CallHook):
            return step.hook(step.about)
        return step.deadline.pause(step.seconds)

    def _open(self, calls: Calls) -> Transport:
        calls.check_open()
        if _KEY not in self._transports:
            self._transports.setdefault(_KEY, open_transport(calls.endpoint, calls.options, calls.outputs))
        return self._transports[_KEY]
