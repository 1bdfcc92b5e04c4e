"""gRPC, through tritonclient."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tritonclient.grpc import (
    InferenceServerClient,
    InferenceServerException,
    InferInput,
    InferRequestedOutput,
)

from deeplab_client import _wire
from deeplab_client._errors import ClientClosedError
from deeplab_client._faults import Circumstances, from_connection, from_grpc
from deeplab_client._transport import Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint
    from deeplab_client._transport import Request

_CHANNEL_ARGS: list[tuple[str, int]] = [
    # gRPC's default of 4 MB is smaller than the mask of a 5-megapixel photo; -1 is unlimited.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # By default one process-wide pool hands the same connection to every channel, and to a forked child.
    ("grpc.use_local_subchannel_pool", 1),
    # By default gRPC sends even calls to 127.0.0.1 through the proxy that `https_proxy` names. What a client does is
    # in its arguments, not in the environment, over HTTP too.
    ("grpc.enable_http_proxy", 0),
    # gRPC's default waits up to 120 s before it looks for a restarted server again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
]


class GrpcTransport:
    """One channel a process, shared by its threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._url = str(endpoint)
        self._target = f"dns:///{endpoint.authority}"
        # By process id: a child never touches, not even to close it, what its parent opened.
        self._clients: dict[int, InferenceServerClient] = {}
        self._closed = False

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        image = InferInput(_wire.IMAGE, list(_wire.IMAGE_SHAPE), "BYTES")
        image.set_data_from_numpy(_wire.image_tensor(request.image))
        outputs = [InferRequestedOutput(name) for name in _wire.OUTPUTS]

        def call(client: Any, seconds: float) -> Any:  # noqa: ANN401 tritonclient is untyped
            return client.infer(
                request.model, [image], request_id=request.request_id, outputs=outputs, client_timeout=seconds
            )

        result = self._call(call, request.model, deadline, request.request_id)
        response = result.get_response()
        tensors = {name: result.as_numpy(name) for name in _wire.OUTPUTS}
        return Reply(
            outputs={name: tensor for name, tensor in tensors.items() if tensor is not None},
            model_name=str(response.model_name),
            model_version=str(response.model_version),
        )

    def model_parameters(self, model: str, *, deadline: Deadline) -> dict[str, str]:
        """Return the string parameters in the model's config."""

        def call(client: Any, seconds: float) -> Any:  # noqa: ANN401 tritonclient is untyped
            return client.get_model_config(model, client_timeout=seconds)

        answer = self._call(call, model, deadline)
        return {name: value.string_value for name, value in answer.config.parameters.items()}

    def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model take requests."""

        def server(client: Any, seconds: float) -> Any:  # noqa: ANN401 tritonclient is untyped
            return client.is_server_ready(client_timeout=seconds)

        def served(client: Any, seconds: float) -> Any:  # noqa: ANN401 tritonclient is untyped
            return client.is_model_ready(model, client_timeout=seconds)

        return all(self._call(call, model, deadline) for call in (server, served))

    def close(self) -> None:
        """Close this process's channel; calls under way in other threads are cancelled."""
        self._closed = True
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def _client(self) -> InferenceServerClient:
        client = self._clients.get(os.getpid())
        if client is None:
            # No lock: one held by another thread during a fork would stay locked in the child for ever.
            fresh = InferenceServerClient(self._target, channel_args=_CHANNEL_ARGS)
            client = self._clients.setdefault(os.getpid(), fresh)
            if client is not fresh:
                fresh.close()
        return client

    def _call(
        self,
        call: Callable[[Any, float], Any],
        model: str,
        deadline: Deadline,
        request_id: str | None = None,
    ) -> Any:  # noqa: ANN401 tritonclient is untyped
        where = Circumstances(self._url, model, deadline.seconds, request_id)
        try:
            return call(self._client(), deadline.remaining())
        except TimeoutError as error:
            raise from_connection(error, where) from error
        except (InferenceServerException, ValueError) as error:
            if self._closed:  # CANCELLED, or grpc's ValueError about a closed channel
                raise ClientClosedError("the client was closed during the call", model=model) from error
            if isinstance(error, ValueError):
                raise
            foreign: Any = error
            raise from_grpc(foreign.status(), foreign.message(), where) from error
