"""Messages and channel options of gRPC, shared by both transports; no I/O.

The channel is that of grpc, with the messages of tritonclient. tritonclient's own client hides the metadata with the
time to retry, copies an image three times more, and cannot cancel a call of another thread.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deeplab_client import _wire
from deeplab_client._faults import from_grpc, of_another_request, unreadable
from deeplab_client._limits import check_descriptors
from deeplab_client._transport import EnsembleStep, ModelConfig, Reply, newest

if TYPE_CHECKING:
    from deeplab_client._endpoint import Endpoint
    from deeplab_client._errors import SegmentationError
    from deeplab_client._faults import CallContext
    from deeplab_client._options import Options
    from deeplab_client._tls import Pem
    from deeplab_client._transport import Request

messages: Any = service_pb2  # protobuf makes its classes at run time

_PUSHBACK = "grpc-retry-pushback-ms"

CHANNEL_ARGS: list[tuple[str, int | str]] = [
    # gRPC's default of 4 MB is smaller than the mask of a 5-megapixel photo; -1 is unlimited.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # By default all channels of a process, and of its forked children, share one pool of connections.
    ("grpc.use_local_subchannel_pool", 1),
    # By default gRPC sends even calls to 127.0.0.1 through the proxy of `https_proxy`. This client is configured by its
    # arguments instead of the environment, as over HTTP.
    ("grpc.enable_http_proxy", 0),
    # By default gRPC waits up to 120 s before it reconnects to a restarted server.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # One connection to each address of the name, used in turn. By default gRPC sends all requests to the first address.
    # Without retries, because the client retries by itself, with one deadline and one hook for both protocols.
    ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
    # gRPC still sends a request again at once if its connection reached its age before the server started it. To do so,
    # it must keep the request; by default it keeps up to 256 KiB, less than a photograph.
    ("grpc.enable_retries", 1),
    ("grpc.per_rpc_retry_buffer_size", 2**31 - 1),
    # After a lost connection the name is resolved again after 5 s instead of 30, because new pods have new addresses.
    ("grpc.dns_min_time_between_resolutions_ms", 5000),
    # A peer that disappeared is noticed 10 s after a missing acknowledgement. A call is probed after a minute without a
    # byte, and not more often, because Triton by default treats three probes within 5 minutes as abuse.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 0),
]


# Twice the files and sockets that gRPC opens with its first channel. If it cannot open one, it ends the process.
DESCRIPTORS = 16


def target_of(endpoint: Endpoint) -> str:
    """Return the gRPC target of a server: a socket, or a name whose addresses are all used."""
    return f"dns:///{endpoint.authority}" if endpoint.socket is None else f"unix:{endpoint.socket}"


@dataclass(frozen=True, slots=True)
class Connected:
    """A channel of `grpc` or `grpc.aio`, and the stub with Triton's methods."""

    channel: Any
    stub: Any


def connect(library: Any, endpoint: Endpoint, pem: Pem | None) -> Connected:  # noqa: ANN401 - grpc or grpc.aio
    """Open a channel; nothing is sent.

    Raises:
        ClientLimitError: This process cannot open enough files.
    """
    check_descriptors(DESCRIPTORS)
    target = target_of(endpoint)
    if pem is None:
        channel = library.insecure_channel(target, CHANNEL_ARGS)
    else:
        channel = library.secure_channel(target, grpc.ssl_channel_credentials(*pem), CHANNEL_ARGS)
    return Connected(channel, service_pb2_grpc.GRPCInferenceServiceStub(channel))


def infer_message(request: Request) -> Any:  # noqa: ANN401 - protobuf makes its classes at run time
    """Return an inference request."""
    message = messages.ModelInferRequest(model_name=request.model, id=request.request_id)
    message.inputs.add(name=_wire.IMAGE, datatype="BYTES", shape=_wire.IMAGE_SHAPE)
    message.raw_input_contents.append(_wire.image_prefix(request.image) + request.image)
    for name in request.outputs:
        message.outputs.add(name=name)
    return message


def compression_of(request: Request, options: Options) -> grpc.Compression:
    """Return how a request is compressed: only pixels gain from it. The server decides on replies."""
    if options.compression is None or not _wire.gains_from_compression(request.image):
        return grpc.Compression.NoCompression
    return grpc.Compression.Gzip if options.compression == "gzip" else grpc.Compression.Deflate


def read_infer(response: Any, where: CallContext) -> Reply:  # noqa: ANN401 - protobuf makes its classes at run time
    """Read the reply to an inference request.

    Raises:
        MismatchedReplyError: It is the reply to another request.
        ModelError: It cannot be read.
    """
    if response.id not in {"", where.request_id}:
        raise of_another_request(str(response.id), where)
    try:
        tensors = {
            str(output.name): _wire.read_tensor(output.datatype, list(output.shape), data, size=len(data))
            for output, data in zip(response.outputs, response.raw_output_contents, strict=True)
        }
    except (ValueError, OverflowError) as error:
        failures = [unreadable(error, where)]
    else:
        return Reply(tensors, str(response.model_name), str(response.model_version))
    raise failures.pop()  # and not a variable: see `_faults.caused`


def read_config(response: Any) -> ModelConfig:  # noqa: ANN401 - protobuf makes its classes at run time
    """Read the reply with a model's config."""
    config = response.config
    return ModelConfig(
        {name: value.string_value for name, value in config.parameters.items()},
        frozenset(tensor.name for tensor in config.input),
        frozenset(tensor.name for tensor in config.output),
        tuple(
            EnsembleStep(step.model_name, frozenset(step.input_map.values()), frozenset(step.output_map.values()))
            for step in config.ensemble_scheduling.step
        ),
    )


def read_versions(response: Any) -> dict[str, str]:  # noqa: ANN401 - protobuf makes its classes at run time
    """Read the reply with the statistics of all loaded models."""
    return newest((str(model.name), str(model.version)) for model in response.model_stats)


def error_of(failure: Any, where: CallContext) -> SegmentationError:  # noqa: ANN401 - grpc is untyped
    """Map a failed call of `grpc` or `grpc.aio` to an error."""
    metadata: dict[str, str | bytes] = dict(failure.trailing_metadata() or ())
    return from_grpc(failure.code().name, failure.details(), where, pushback=metadata.get(_PUSHBACK))
