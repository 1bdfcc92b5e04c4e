"""The asynchronous transport over HTTP, with aiohttp.

Not with tritonclient.http.aio, because its timeout belongs to the client and importing it loads gevent.
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from typing import TYPE_CHECKING, TypeVar

import aiohttp

from deeplab_client import _v2
from deeplab_client._errors import SegmentationError
from deeplab_client._faults import caused, closed, from_connection, not_http, too_late
from deeplab_client._loop import Owner, prepare
from deeplab_client._proxy import ProxyRefusedError
from deeplab_client._tls import context_of
from deeplab_client._workers import in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from aiohttp.connector import Connection

    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint
    from deeplab_client._faults import CallContext
    from deeplab_client._options import Options
    from deeplab_client._transport import ModelConfig, Reply, Request, ServerInfo

_T = TypeVar("_T")

_CONNECTIONS = 100  # further calls wait for a free connection, within their deadlines
_CHUNK = 256 * 1024  # bytes written to a socket at once
"".encode("idna")  # loads the codec here, instead of in the event loop during the first handshake
# By default aiohttp rounds timeouts of more than 5 s up to full seconds.
_NEVER_ROUND = 1e12


class AsyncHttpTransport:
    """A pool of kept-alive connections for one event loop."""

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        self._endpoint = endpoint
        self._options = options
        self._context: ssl.SSLContext | None = None
        self._owned: Owner[aiohttp.ClientSession] = Owner()
        self._closed = False

    async def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        where, credentials = await self._prepare(request.model, deadline, request.request_id)
        compression = self._options.compression
        pack = functools.partial(_v2.infer_request, request, compression)
        if _v2.is_compressed(request, compression):
            headers, body = await in_thread(pack, deadline=deadline)
        else:
            headers, body = pack()
        path = _v2.model_path(request.model, "infer")
        read = functools.partial(_v2.read_infer, request=request, where=where)
        return await self._exchange(
            "POST", path, credentials | headers, read, where=where, deadline=deadline, body=body
        )

    async def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        """Return the config of a model."""
        where, credentials = await self._prepare(model, deadline)
        read = functools.partial(_v2.read_config, where=where)
        path = _v2.model_path(model, "config")
        return await self._exchange("GET", path, credentials, read, where=where, deadline=deadline)

    async def model_versions(self, *, deadline: Deadline) -> dict[str, str]:
        """Return the newest version of each model that is loaded, by its name."""
        where, credentials = await self._prepare("", deadline)
        read = functools.partial(_v2.read_versions, where=where)
        return await self._exchange("GET", _v2.STATISTICS, credentials, read, where=where, deadline=deadline)

    async def server_info(self, *, deadline: Deadline) -> ServerInfo:
        """Return name and version of the server."""
        where, credentials = await self._prepare("", deadline)
        read = functools.partial(_v2.read_server, where=where)
        return await self._exchange("GET", _v2.SERVER, credentials, read, where=where, deadline=deadline)

    async def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model are ready."""
        where, credentials = await self._prepare(model, deadline)
        read = functools.partial(_v2.read_ready, where=where)
        for path in (_v2.SERVER_READY, _v2.model_path(model, "ready")):
            if not await self._exchange("GET", path, credentials, read, where=where, deadline=deadline):
                return False
        return True

    async def close(self) -> None:
        """Close the connections; calls under way fail."""
        self._closed = True
        session = self._owned.release()
        if session is not None:
            await session.close()
            await asyncio.sleep(0)  # asyncio releases a closed socket in the next iteration of the loop

    async def _prepare(
        self, model: str, deadline: Deadline, request_id: str | None = None
    ) -> tuple[CallContext, dict[str, str]]:
        where, headers = await prepare(self._endpoint, self._options, model, deadline, request_id)
        return where, headers | _v2.common_headers(self._options, self._endpoint)

    async def _exchange(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        read: Callable[[_v2.Answer], _T],
        *,
        where: CallContext,
        deadline: Deadline,
        body: bytes | None = None,
    ) -> _T:
        session = await self._open(where, deadline)
        proxy = self._endpoint.proxy
        try:
            timeout = aiohttp.ClientTimeout(total=deadline.remaining(), ceil_threshold=_NEVER_ROUND)
            async with session.request(
                method,
                self._endpoint.url_of(path),
                proxy=None if proxy is None else str(proxy),
                proxy_headers=None if proxy is None else proxy.headers,  # for the CONNECT request
                data=None if body is None else _chunks(body),
                headers=headers,
                timeout=timeout,
                allow_redirects=False,  # the token is for this server
            ) as response:
                content = await _read_body(response, _v2.longest_body(response.status))
                answer = _v2.Answer(
                    response.status, response.headers, content, asked=self._options.compression, deadline=deadline
                )
                try:
                    if answer.is_compressed:
                        return await in_thread(lambda: read(answer), deadline=deadline)
                    return read(answer)
                except SegmentationError:
                    if answer.is_success and isinstance(response, _Response):
                        response.drop()  # after a reply to another request, the connection is out of step
                    raise
        # RuntimeError: aiohttp raises it if the session is closed.
        except (aiohttp.ClientError, OSError, asyncio.TimeoutError, RuntimeError) as error:
            if isinstance(error, SegmentationError) or (isinstance(error, RuntimeError) and not self._closed):
                raise
            failures = [caused(closed(where) if self._closed else _error_of(error, where), error, where)]
        raise failures.pop()  # and not a variable: see `_faults.caused`

    async def _open(self, where: CallContext, deadline: Deadline) -> aiohttp.ClientSession:
        if self._endpoint.is_encrypted and self._context is None and not self._closed:
            # In a thread, because reading the system's certificates would block the event loop for too long.
            read_files = functools.partial(context_of, self._options.tls, where)
            self._context = await in_thread(read_files, deadline=deadline)
        if self._closed:
            raise closed(where)
        return self._owned.get(self._connect)

    def _connect(self) -> aiohttp.ClientSession:
        if self._endpoint.socket is None:
            connector = aiohttp.TCPConnector(limit=_CONNECTIONS, ssl=True if self._context is None else self._context)
        else:
            connector = aiohttp.UnixConnector(self._endpoint.socket, limit=_CONNECTIONS)
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            response_class=_Response,
            skip_auto_headers=("User-Agent", "Accept"),
        )


class _Response(aiohttp.ClientResponse):
    """A response that remembers its connection, which aiohttp releases once the response is complete."""

    _link: asyncio.Transport | None = None

    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        self._link = connection.transport
        return await super().start(connection)

    def drop(self) -> None:
        """Close the connection, in the pool or not."""
        if self._link is not None:
            self._link.close()


async def _read_body(response: aiohttp.ClientResponse, longest: int) -> bytes:
    """Return the body of a response, or its beginning if it has more than `longest` bytes."""
    parts: list[bytes] = []
    left = longest
    async for part in response.content.iter_any():
        parts.append(part)
        left -= len(part)
        if left < 0:
            response.close()
            break
    return b"".join(parts)


async def _chunks(body: bytes) -> AsyncGenerator[memoryview]:
    # A generator, because aiohttp would write a large bytes object at once and block the event loop.
    view = memoryview(body)
    for start in range(0, len(body), _CHUNK):
        yield view[start : start + _CHUNK]


def _error_of(error: Exception, where: CallContext) -> SegmentationError:
    """Map an exception of aiohttp to an error, by its cause."""
    if isinstance(error, asyncio.TimeoutError):  # on Python 3.10, it is not the builtin one
        return too_late(where)
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return from_connection(ProxyRefusedError(error.status, error.message), where)
    if isinstance(error, aiohttp.ClientResponseError):
        return not_http(where)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return from_connection(error.certificate_error, where)
    if isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, ssl.SSLError):
        return from_connection(error.os_error, where)
    return from_connection(error, where)
