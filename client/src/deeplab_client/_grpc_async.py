"""The asynchronous transport over gRPC."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from deeplab_client import _grpc_messages
from deeplab_client._faults import caused, closed, from_connection, unreadable
from deeplab_client._grpc_messages import Connected, messages
from deeplab_client._loop import Owner, prepare
from deeplab_client._tls import pem_of
from deeplab_client._transport import ServerInfo
from deeplab_client._workers import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint
    from deeplab_client._faults import CallContext
    from deeplab_client._options import Options
    from deeplab_client._tls import Pem
    from deeplab_client._transport import ModelConfig, Reply, Request


class AsyncGrpcTransport:
    """One channel for one event loop."""

    def __init__(self, endpoint: Endpoint, options: Options) -> None:
        self._endpoint = endpoint
        self._options = options
        self._pem: Pem | None = None
        self._owned: Owner[Connected] = Owner()
        self._closed = False

    async def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        where, headers = await prepare(self._endpoint, self._options, request.model, deadline, request.request_id)
        compression = _grpc_messages.compression_of(request, self._options)
        message = _grpc_messages.infer_message(request)
        response = await self._call("ModelInfer", message, headers, where, deadline, compression=compression)
        return _grpc_messages.read_infer(response, where)

    async def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        """Return the config of a model."""
        where, headers = await prepare(self._endpoint, self._options, model, deadline)
        response = await self._call("ModelConfig", messages.ModelConfigRequest(name=model), headers, where, deadline)
        return _grpc_messages.read_config(response)

    async def model_versions(self, *, deadline: Deadline) -> dict[str, str]:
        """Return the newest version of each model that is loaded, by its name."""
        where, headers = await prepare(self._endpoint, self._options, "", deadline)
        response = await self._call("ModelStatistics", messages.ModelStatisticsRequest(), headers, where, deadline)
        return _grpc_messages.read_versions(response)

    async def server_info(self, *, deadline: Deadline) -> ServerInfo:
        """Return name and version of the server."""
        where, headers = await prepare(self._endpoint, self._options, "", deadline)
        response = await self._call("ServerMetadata", messages.ServerMetadataRequest(), headers, where, deadline)
        return ServerInfo(str(response.name), str(response.version))

    async def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model are ready."""
        where, headers = await prepare(self._endpoint, self._options, model, deadline)
        server = await self._call("ServerReady", messages.ServerReadyRequest(), headers, where, deadline)
        if not server.ready:
            return False
        return bool(
            (await self._call("ModelReady", messages.ModelReadyRequest(name=model), headers, where, deadline)).ready
        )

    async def close(self) -> None:
        """Close the channel; calls under way are cancelled."""
        self._closed = True
        connected = self._owned.release()
        if connected is not None:
            await connected.channel.close()

    async def _call(
        self,
        name: str,
        message: Any,  # noqa: ANN401 - protobuf makes its classes at run time
        headers: dict[str, str],
        where: CallContext,
        deadline: Deadline,
        **options: Any,  # noqa: ANN401 - grpc's own
    ) -> Any:  # noqa: ANN401 - protobuf makes its classes at run time
        connected = await self._open(where, deadline)
        try:
            method = getattr(connected.stub, name)
            response = await method(message, timeout=deadline.remaining(), metadata=tuple(headers.items()), **options)
        except TimeoutError as error:
            failures = [caused(from_connection(error, where), error, where)]
        except asyncio.CancelledError as error:
            # Closing a channel cancels its calls, which looks to the coroutine as if its task were cancelled.
            if self._closed and not _is_cancelled():
                raise closed(where) from error
            raise
        except (grpc.aio.AioRpcError, grpc.aio.UsageError) as error:
            if isinstance(error, grpc.aio.UsageError) and not self._closed:
                raise
            # UsageError: the channel is closed
            failures = [caused(closed(where) if self._closed else _grpc_messages.error_of(error, where), error, where)]
        else:
            if response is None:  # grpc.aio only logs what it cannot deserialize; grpc itself raises
                raise unreadable(ValueError("it is not the message that this call expects"), where)
            return response
        raise failures.pop()  # and not a variable: see `_faults.caused`

    async def _open(self, where: CallContext, deadline: Deadline) -> Connected:
        if self._endpoint.is_encrypted and self._pem is None and not self._closed:
            # In a thread, because reading the system's certificates would block the event loop for too long.
            self._pem = await in_thread(lambda: pem_of(self._options.tls, where), deadline=deadline)
        if self._closed:
            raise closed(where)
        return self._owned.get(lambda: _grpc_messages.connect(grpc.aio, self._endpoint, self._pem))


def _is_cancelled() -> bool:
    """Return whether the running task was cancelled; False on Python 3.10, which does not record it."""
    cancelling: Callable[[], int] | None = getattr(asyncio.current_task(), "cancelling", None)
    return cancelling is not None and cancelling() > 0
