"""HTTP from coroutines, over aiohttp.

Not through tritonclient.http.aio: its one timeout belongs to the client, and to import it loads gevent.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import TYPE_CHECKING

import aiohttp

from deeplab_client import _v2
from deeplab_client._errors import ClientClosedError
from deeplab_client._faults import from_connection, not_http
from deeplab_client._loop import Owner, prepare
from deeplab_client._tls import context_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint
    from deeplab_client._errors import SegmentationError
    from deeplab_client._faults import Circumstances
    from deeplab_client._options import Options
    from deeplab_client._transport import Reply, Request

_CONNECTIONS = 100  # more calls than that wait for a free connection, within their deadlines
_CHUNK = 256 * 1024  # bytes that are handed to a socket at once
# By default aiohttp rounds timeouts of more than 5 s up to full seconds.
_NEVER_ROUND = 1e12


class AsyncHttpTransport:
    """A pool of kept-alive connections for one event loop."""

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        self._endpoint = endpoint
        self._options = options
        self._owned: Owner[aiohttp.ClientSession] = Owner()
        self._closed = False

    async def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        where, credentials = await self._prepare(request.model, deadline, request.request_id)
        headers, body = _v2.infer_request(request, self._options.compression)
        path = _v2.infer_path(request.model)
        answer = await self._exchange("POST", path, credentials | headers, where=where, deadline=deadline, body=body)
        return _v2.read_infer(answer, request, where)

    async def model_parameters(self, model: str, *, deadline: Deadline) -> dict[str, str]:
        """Return the string parameters in the model's config."""
        where, credentials = await self._prepare(model, deadline)
        answer = await self._exchange("GET", _v2.config_path(model), credentials, where=where, deadline=deadline)
        return _v2.read_parameters(answer, where)

    async def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model take requests."""
        where, credentials = await self._prepare(model, deadline)
        for path in (_v2.SERVER_READY, _v2.ready_path(model)):
            if not _v2.read_ready(
                await self._exchange("GET", path, credentials, where=where, deadline=deadline), where
            ):
                return False
        return True

    async def close(self) -> None:
        """Close the connections; calls under way fail."""
        self._closed = True
        session = self._owned.release()
        if session is not None:
            await session.close()

    async def _prepare(
        self, model: str, deadline: Deadline, request_id: str | None = None
    ) -> tuple[Circumstances, dict[str, str]]:
        where, headers = await prepare(self._endpoint, self._options, model, deadline, request_id)
        return where, headers | _v2.common_headers(self._options)

    async def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        *,
        where: Circumstances,
        deadline: Deadline,
        body: bytes | None = None,
    ) -> _v2.Answer:
        session = self._owned.get(lambda: self._connect(where))
        try:
            timeout = aiohttp.ClientTimeout(total=deadline.remaining(), ceil_threshold=_NEVER_ROUND)
            async with session.request(
                method,
                f"{self._endpoint}{path}",
                data=None if body is None else _chunks(body),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,  # the token is for this server
            ) as response:
                return _v2.Answer(response.status, response.headers, await response.read())
        # RuntimeError: aiohttp's way to say that the session is closed.
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, RuntimeError) as error:
            if self._closed:
                raise ClientClosedError("the client was closed during the call", model=where.model) from error
            if isinstance(error, RuntimeError):
                raise
            raise _error_of(error, where) from error

    def _connect(self, where: Circumstances) -> aiohttp.ClientSession:
        context = context_of(self._options.tls, where) if self._endpoint.is_encrypted else None
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=True if context is None else context)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept"),
        )


async def _chunks(body: bytes) -> AsyncGenerator[memoryview]:
    # A generator, for aiohttp would write large bytes in one go while everything else in the loop waits.
    view = memoryview(body)
    for start in range(0, len(body), _CHUNK):
        yield view[start : start + _CHUNK]


def _error_of(error: Exception, where: Circumstances) -> SegmentationError:
    """Map what aiohttp raises to an error, by what is beneath it."""
    if isinstance(error, asyncio.TimeoutError):  # not yet the builtin one on Python 3.10
        return from_connection(TimeoutError(), where)
    if isinstance(error, aiohttp.ClientResponseError):
        return not_http(where)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return from_connection(error.certificate_error, where)
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ssl.SSLError):
        return from_connection(error.os_error, where)
    return from_connection(error, where)
