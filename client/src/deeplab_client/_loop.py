"""What belongs to one event loop, and what a coroutine does before it sends."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Generic, TypeVar

from deeplab_client._faults import Circumstances, from_connection

if TYPE_CHECKING:
    from collections.abc import Callable

    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint
    from deeplab_client._options import Options

_T = TypeVar("_T")


class Owner(Generic[_T]):
    """Connections, made by the first call for its event loop and its process."""

    __slots__ = ("_foreign", "_loop", "_pid", "_resource")

    def __init__(self) -> None:
        self._resource: _T | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        # A parent's, kept in its child: to drop them would close them, and say goodbye to the server in its name.
        self._foreign: list[_T] = []

    def get(self, make: Callable[[], _T]) -> _T:
        """Return the running loop's connections.

        Raises:
            RuntimeError: Another loop uses the client, and has not ended.
        """
        loop = asyncio.get_running_loop()
        if self._resource is not None:
            if self._pid != os.getpid():
                self._foreign.append(self._resource)
            elif self._loop is loop:
                return self._resource
            elif self._loop is not None and not self._loop.is_closed():
                raise RuntimeError("an async client serves one event loop at a time: make one for each")
        resource = make()
        self._resource, self._loop, self._pid = resource, loop, os.getpid()
        return resource

    def release(self) -> _T | None:
        """Return the running loop's connections, to be closed; None where it has none."""
        if self._pid != os.getpid() or self._loop is not asyncio.get_running_loop():
            return None
        resource, self._resource = self._resource, None
        return resource


async def prepare(
    endpoint: Endpoint, options: Options, model: str, deadline: Deadline, request_id: str | None = None
) -> tuple[Circumstances, dict[str, str]]:
    """Return what messages should name, and the headers of one request.

    Raises:
        DeadlineExceededError: The token was not there in time.
    """
    where = Circumstances(str(endpoint), model, deadline.seconds, request_id)
    if callable(options.token):
        try:
            seconds = deadline.remaining()
            headers = await asyncio.wait_for(options.call_headers_async(), seconds)
        except (TimeoutError, asyncio.TimeoutError) as error:
            if deadline.leaves(0):  # the token function's own
                raise
            raise from_connection(TimeoutError(), where) from error
    else:
        headers = options.call_headers()
    return Circumstances(where.url, model, deadline.seconds, request_id, tuple(headers.values())), headers


def is_cancelled() -> bool:
    """Return whether somebody has cancelled the running task; False on Python 3.10, which does not tell."""
    cancelling: Callable[[], int] | None = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is not None and cancelling() > 0
