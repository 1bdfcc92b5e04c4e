"""HTTP: tritonclient's message bodies over the standard library's connections.

tritonclient's own HTTP client rides on gevent. Measured with 2.73: each thread that uses it leaves two file
descriptors behind even when it closes its client, a client made before a fork hangs in the child, and its
timeouts belong to the client and start anew with every byte that arrives.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections import deque
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from deeplab_client import _wire
from deeplab_client._connection import Connection
from deeplab_client._errors import ModelError
from deeplab_client._faults import Circumstances, from_connection, from_http
from deeplab_client._transport import Reply

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint
    from deeplab_client._transport import Request

_OK = 200
_HEADER_LENGTH = "Inference-Header-Content-Length"


class HttpTransport:
    """A pool of kept-alive connections a process; each call takes one out for itself."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._url = str(endpoint)
        self._host, self._port = endpoint.host, endpoint.port
        # By process id: a child does not write into its parent's connections. Both containers are used in atomic
        # steps only, for a lock held by another thread during a fork would stay locked in the child for ever.
        self._idle: dict[int, deque[Connection]] = {}
        self._closed = False

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        image = InferInput(_wire.IMAGE, list(_wire.IMAGE_SHAPE), "BYTES")
        image.set_data_from_numpy(_wire.image_tensor(request.image), binary_data=True)
        outputs = [InferRequestedOutput(name, binary_data=True) for name in _wire.OUTPUTS]
        body, json_length = InferenceServerClient.generate_request_body(
            [image], outputs=outputs, request_id=request.request_id
        )
        headers = {"Content-Type": "application/octet-stream", _HEADER_LENGTH: str(json_length)}
        where = Circumstances(self._url, request.model, deadline.seconds, request.request_id)
        path = f"/v2/models/{quote(request.model, safe='')}/infer"
        status, length, answer = self._exchange("POST", path, where, deadline, body=body, headers=headers)
        if status != _OK:
            raise from_http(status, answer, where)
        return _reply(answer, length, where)

    def model_parameters(self, model: str, *, deadline: Deadline) -> dict[str, str]:
        """Return the string parameters in the model's config."""
        where = Circumstances(self._url, model, deadline.seconds)
        path = f"/v2/models/{quote(model, safe='')}/config"
        status, _, answer = self._exchange("GET", path, where, deadline)
        if status != _OK:
            raise from_http(status, answer, where)
        try:
            config: dict[str, Any] = json.loads(answer)
            return {name: value["string_value"] for name, value in config.get("parameters", {}).items()}
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise ModelError(f"{self._url} sent a model config that cannot be read: {error}", model=model) from error

    def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model take requests."""
        where = Circumstances(self._url, model, deadline.seconds)
        paths = ("/v2/health/ready", f"/v2/models/{quote(model, safe='')}/ready")
        return all(self._exchange("GET", path, where, deadline)[0] == _OK for path in paths)

    def close(self) -> None:
        """Close this process's idle connections; those in use close when their call ends."""
        self._closed = True
        idle = self._idle.get(os.getpid())
        with contextlib.suppress(IndexError):  # empty
            while idle:
                idle.pop().close()

    def _exchange(
        self,
        method: str,
        path: str,
        where: Circumstances,
        deadline: Deadline,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, str | None, bytes]:
        """Send one request; return status, length of the answer's JSON part, and the answer."""
        connection = self._take()
        try:
            response = connection.exchange(method, path, body, headers or {}, deadline)
            answer = response.read()
        except (OSError, HTTPException, UnicodeError) as error:  # UnicodeError: a host that is no host name
            raise from_connection(error, where) from error
        else:
            if not response.will_close and not self._closed:
                self._idle.setdefault(os.getpid(), deque()).append(connection)
                connection = None
            return response.status, response.getheader(_HEADER_LENGTH), answer
        finally:
            if connection is not None:
                connection.close()
            if self._closed:
                self.close()

    def _take(self) -> Connection:
        idle = self._idle.get(os.getpid())
        with contextlib.suppress(IndexError):  # another thread took the last one
            while idle:
                connection = idle.pop()
                if connection.is_usable():
                    return connection
                connection.close()
        return Connection(self._host, self._port)


def _reply(body: bytes, json_length: str | None, where: Circumstances) -> Reply:
    try:
        length = None if json_length is None else int(json_length)
        result = InferenceServerClient.parse_response_body(body, header_length=length)
        response: dict[str, Any] = result.get_response()
        tensors = {name: result.as_numpy(name) for name in _wire.OUTPUTS}
        name, version = str(response["model_name"]), str(response["model_version"])
    except Exception as error:  # tritonclient lets through whatever its parsing trips over
        message = f"{where.url} sent an answer that cannot be read: {error}"
        raise ModelError(message, model=where.model, request_id=where.request_id) from error
    return Reply({key: tensor for key, tensor in tensors.items() if tensor is not None}, name, version)
