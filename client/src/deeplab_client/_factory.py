"""Create the transport for a server; the first call loads the library that it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplab_client._options import is_coroutine_function
from deeplab_client._wire import load_decoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deeplab_client._endpoint import Endpoint
    from deeplab_client._options import Options
    from deeplab_client._transport import AsyncTransport, Transport

# ruff: noqa: PLC0415 - a protocol's library is only loaded for its servers


def check_transport(transport: object, *, asynchronous: bool) -> None:
    """Check that a transport fits the client.

    Raises:
        TypeError: It has coroutine methods for the synchronous client, or plain methods for the asynchronous one.
    """
    if transport is not None and is_coroutine_function(getattr(transport, "infer", None)) != asynchronous:
        client, methods = "SegmentationClient", "plain methods, such as FakeTransport"
        if asynchronous:
            client, methods = "AsyncSegmentationClient", "coroutine methods, such as AsyncFakeTransport"
        raise TypeError(f"{client} needs a transport with {methods}, got {type(transport).__qualname__}")


def open_transport(endpoint: Endpoint, options: Options, outputs: Sequence[str]) -> Transport:
    """Load the library of the protocol and the decoder of the outputs, and create a transport; no other I/O."""
    load_decoder(outputs)
    if endpoint.is_grpc:
        from deeplab_client._grpc import GrpcTransport

        return GrpcTransport(endpoint, options)
    from deeplab_client._http import HttpTransport

    return HttpTransport(endpoint, options)


def open_async_transport(endpoint: Endpoint, options: Options, outputs: Sequence[str]) -> AsyncTransport:
    """Load the library of the protocol and the decoder of the outputs, and create a transport; no other I/O."""
    load_decoder(outputs)
    if endpoint.is_grpc:
        from deeplab_client._grpc_async import AsyncGrpcTransport

        return AsyncGrpcTransport(endpoint, options)
    from deeplab_client._http_async import AsyncHttpTransport

    return AsyncHttpTransport(endpoint, options)
