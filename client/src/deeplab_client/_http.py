"""The synchronous transport over HTTP, with the standard library's connections.

tritonclient's HTTP client uses gevent. Measured with 2.73: each thread that uses it leaks two file descriptors even if
it closes its client, a client created before a fork hangs in the child, and its timeouts belong to the client and
restart with every byte that arrives.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from http.client import HTTPException
from typing import TYPE_CHECKING, TypeVar

from deeplab_client import _v2
from deeplab_client._connection import Connection, read_body
from deeplab_client._deadline import AbortableDeadline
from deeplab_client._errors import SegmentationError
from deeplab_client._faults import CallContext, caused, from_connection
from deeplab_client._tls import context_of

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping

    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint
    from deeplab_client._options import Options
    from deeplab_client._transport import ModelConfig, Reply, Request, ServerInfo

_T = TypeVar("_T")


class HttpTransport:
    """A pool of kept-alive connections per process; each call takes one for itself."""

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        self._endpoint = endpoint
        self._options = options
        self._context: ssl.SSLContext | None = None
        # By process id, because a child must not use its parent's connections. Both containers are only used in atomic
        # steps, because a lock held by another thread during a fork would stay locked in the child.
        self._idle: dict[int, deque[Connection]] = {}
        self._closed = False

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        where, credentials = self._prepare(request.model, deadline, request.request_id)
        headers, body = _v2.infer_request(request, self._options.compression)
        path = _v2.model_path(request.model, "infer")
        read = functools.partial(_v2.read_infer, request=request, where=where)
        return self._exchange("POST", path, credentials | headers, read, where=where, deadline=deadline, body=body)

    def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        """Return the config of a model."""
        where, credentials = self._prepare(model, deadline)
        read = functools.partial(_v2.read_config, where=where)
        path = _v2.model_path(model, "config")
        return self._exchange("GET", path, credentials, read, where=where, deadline=deadline)

    def model_versions(self, *, deadline: Deadline) -> dict[str, str]:
        """Return the newest version of each model that is loaded, by its name."""
        where, credentials = self._prepare("", deadline)
        read = functools.partial(_v2.read_versions, where=where)
        return self._exchange("GET", _v2.STATISTICS, credentials, read, where=where, deadline=deadline)

    def server_info(self, *, deadline: Deadline) -> ServerInfo:
        """Return name and version of the server."""
        where, credentials = self._prepare("", deadline)
        read = functools.partial(_v2.read_server, where=where)
        return self._exchange("GET", _v2.SERVER, credentials, read, where=where, deadline=deadline)

    def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model are ready."""
        where, credentials = self._prepare(model, deadline)
        read = functools.partial(_v2.read_ready, where=where)
        return all(
            self._exchange("GET", path, credentials, read, where=where, deadline=deadline)
            for path in (_v2.SERVER_READY, _v2.model_path(model, "ready"))
        )

    def close(self) -> None:
        """Close this process's idle connections; those in use close when their call ends."""
        self._closed = True
        idle = self._idle.get(os.getpid())
        with contextlib.suppress(IndexError):  # empty
            while idle:
                idle.pop().close()

    def _prepare(
        self, model: str, deadline: Deadline, request_id: str | None = None
    ) -> tuple[CallContext, dict[str, str]]:
        headers = self._options.call_headers()
        secrets = (*headers.values(), *self._endpoint.secrets)
        where = CallContext(str(self._endpoint), model, deadline.seconds, request_id, secrets)
        return where, headers | _v2.common_headers(self._options, self._endpoint)

    def _exchange(
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
        target = self._endpoint.url_of(path) if self._endpoint.is_forwarded else self._endpoint.prefix + path
        connection = self._take(where)
        keep = False
        try:
            with _interrupted(connection, deadline):
                response = connection.exchange(method, target, body, headers, deadline)
                with response:  # it may hold the socket itself
                    content = read_body(response, _v2.longest_body(response.status))
                    whole = response.isclosed() and not response.will_close
            answer = _v2.Answer(
                response.status,
                dict(response.getheaders()),
                content,
                asked=self._options.compression,
                deadline=deadline,
            )
            # After a reply to another request, the connection is out of step.
            keep = whole and not answer.is_success
            result = read(answer)
            keep = whole
        except (OSError, HTTPException, UnicodeError) as error:  # UnicodeError: an invalid host name
            if isinstance(error, SegmentationError):
                raise
            failures = [caused(from_connection(error, where), error, where)]
        else:
            return result
        finally:
            if keep and not self._closed:
                self._idle.setdefault(os.getpid(), deque()).append(connection)
            else:
                connection.close()
            if self._closed:
                self.close()
        raise failures.pop()  # and not a variable: see `_faults.caused`

    def _take(self, where: CallContext) -> Connection:
        idle = self._idle.get(os.getpid())
        with contextlib.suppress(IndexError):  # another thread took the last one
            while idle:
                connection = idle.pop()
                if connection.is_usable():
                    return connection
                connection.close()
        if self._endpoint.is_encrypted and self._context is None:
            self._context = context_of(self._options.tls, where)
        return Connection(self._endpoint, self._context)


def _interrupted(connection: Connection, deadline: Deadline) -> contextlib.AbstractContextManager[None]:
    if isinstance(deadline, AbortableDeadline):
        return deadline.interrupting(connection.interrupt)
    return contextlib.nullcontext()
