"""Resources of one event loop, and the preparation of a request in a coroutine."""

from __future__ import annotations

import asyncio
import os
from inspect import isawaitable
from typing import TYPE_CHECKING, Generic, TypeVar

from deeplab_client._faults import CallContext
from deeplab_client._options import is_coroutine_function
from deeplab_client._workers import in_thread, in_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint
    from deeplab_client._options import Options

_T = TypeVar("_T")


class Owner(Generic[_T]):
    """Connections, created by the first call for its event loop and process."""

    __slots__ = ("_foreign", "_loop", "_pid", "_resource")

    def __init__(self) -> None:
        self._resource: _T | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        # The parent's connections, kept in the child, because dropping them would close them on the server too.
        self._foreign: list[_T] = []

    def get(self, make: Callable[[], _T]) -> _T:
        """Return the running loop's connections.

        Raises:
            RuntimeError: Another loop that is still open uses the client.
        """
        loop = asyncio.get_running_loop()
        if self._resource is not None:
            if self._pid != os.getpid():
                self._foreign.append(self._resource)
            elif self._loop is loop:
                return self._resource
            elif self._loop is not None and not self._loop.is_closed():
                raise RuntimeError("an async client works in one event loop at a time: create one for each")
        resource = make()
        self._resource, self._loop, self._pid = resource, loop, os.getpid()
        return resource

    def release(self) -> _T | None:
        """Return the running loop's connections, which the caller must close; None if it has none."""
        if self._pid != os.getpid() or self._loop is not asyncio.get_running_loop():
            return None
        resource, self._resource = self._resource, None
        return resource


async def prepare(
    endpoint: Endpoint, options: Options, model: str, deadline: Deadline, request_id: str | None = None
) -> tuple[CallContext, dict[str, str]]:
    """Return the context for error messages, and the headers of one request.

    Raises:
        Passed: The token function did not return in time.
    """
    headers = options.headers_with(await _token(options, deadline))
    secrets = (*headers.values(), *endpoint.secrets)
    return CallContext(str(endpoint), model, deadline.seconds, request_id, secrets), headers


async def _token(options: Options, deadline: Deadline) -> object:
    function = options.token
    if not callable(function):
        return function
    token = function() if is_coroutine_function(function) else await in_thread(function, deadline=deadline)
    return await in_time(token, deadline=deadline) if isawaitable(token) else token
