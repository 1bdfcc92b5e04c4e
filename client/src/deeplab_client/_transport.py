"""The seam between the clients and a protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from deeplab_client._options import is_coroutine_function
from deeplab_client._wire import RAW_OUTPUTS, load_decoder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint
    from deeplab_client._options import Options


@dataclass(frozen=True, slots=True)
class Request:
    """One image for one model.

    Attributes:
        model: Name of a segmentation ensemble.
        image: An encoded image, as the server decodes it.
        request_id: Identifies the request in the server's log.
        outputs: Names of the tensors that are asked for.
    """

    model: str
    image: bytes
    request_id: str
    outputs: tuple[str, ...] = RAW_OUTPUTS


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered, before anybody judged it.

    Attributes:
        outputs: Output tensors by name; BYTES tensors hold bytes objects. May be read-only.
        model_name: As the server calls it.
        model_version: As the server calls it.
    """

    outputs: Mapping[str, NDArray[Any]]
    model_name: str
    model_version: str


class Transport(Protocol):
    """One server by one protocol; safe to share between threads and to create before a fork.

    Every method keeps the deadline and raises only leaves of SegmentationError, or what a token function raised. None
    tries twice.
    """

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        ...

    def model_parameters(self, model: str, *, deadline: Deadline) -> Mapping[str, str]:
        """Return the string parameters in the model's config."""
        ...

    def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model take requests."""
        ...

    def close(self) -> None:
        """Close what this process has opened; may be called twice."""
        ...


class AsyncTransport(Protocol):
    """The twin of `Transport` for one event loop; a call that is cancelled ends its request too."""

    async def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Run the model on one image."""
        ...

    async def model_parameters(self, model: str, *, deadline: Deadline) -> Mapping[str, str]:
        """Return the string parameters in the model's config."""
        ...

    async def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return whether the server and the model take requests."""
        ...

    async def close(self) -> None:
        """Close what this event loop has opened; may be called twice."""
        ...


def check_transport(transport: object, *, asynchronous: bool) -> None:
    """Refuse the transport of the other client.

    Raises:
        TypeError: It is that.
    """
    if transport is not None and is_coroutine_function(getattr(transport, "infer", None)) != asynchronous:
        found, client, wanted = (
            type(transport).__qualname__,
            "SegmentationClient",
            "plain methods, as FakeTransport has",
        )
        if asynchronous:
            client, wanted = "AsyncSegmentationClient", "coroutine methods, as AsyncFakeTransport has"
        raise TypeError(f"{client} takes a transport with {wanted}; found {found}")


# Only what is used is loaded, and by the first call.
def open_transport(endpoint: Endpoint, options: Options, outputs: Sequence[str]) -> Transport:
    """Load the protocol's library and what reads its outputs, and make a transport; no other I/O."""
    load_decoder(outputs)
    if endpoint.is_grpc:
        from deeplab_client._grpc import GrpcTransport  # noqa: PLC0415

        return GrpcTransport(endpoint, options)
    from deeplab_client._http import HttpTransport  # noqa: PLC0415

    return HttpTransport(endpoint, options)


def open_async_transport(endpoint: Endpoint, options: Options, outputs: Sequence[str]) -> AsyncTransport:
    """Load the protocol's library and what reads its outputs, and make a transport; no other I/O."""
    load_decoder(outputs)
    if endpoint.is_grpc:
        from deeplab_client._grpc_async import AsyncGrpcTransport  # noqa: PLC0415

        return AsyncGrpcTransport(endpoint, options)
    from deeplab_client._http_async import AsyncHttpTransport  # noqa: PLC0415

    return AsyncHttpTransport(endpoint, options)
