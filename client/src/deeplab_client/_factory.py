"""Which transport speaks to which server; only what is used is loaded, and by the first call."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deeplab_client._options import is_coroutine_function
from deeplab_client._wire import load_decoder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deeplab_client._endpoint import Endpoint
    from deeplab_client._options import Options
    from deeplab_client._transport import AsyncTransport, Transport

# ruff: noqa: PLC0415 - each protocol's library is loaded only where it is spoken


def check_transport(transport: object, *, asynchronous: bool) -> None:
    """Refuse the transport of the other client.

    Raises:
        TypeError: Its methods are coroutines for the synchronous client, or plain for the asynchronous one.
    """
    if transport is not None and is_coroutine_function(getattr(transport, "infer", None)) != asynchronous:
        client, methods = "SegmentationClient", "plain methods, such as FakeTransport"
        if asynchronous:
            client, methods = "AsyncSegmentationClient", "coroutine methods, such as AsyncFakeTransport"
        raise TypeError(f"{client} needs a transport with {methods}, got {type(transport).__qualname__}")


def open_transport(endpoint: Endpoint, options: Options, outputs: Sequence[str]) -> Transport:
    """Load the protocol's library and what reads its outputs, and make a transport; no other I/O."""
    load_decoder(outputs)
    if endpoint.is_grpc:
        from deeplab_client._grpc import GrpcTransport

        return GrpcTransport(endpoint, options)
    from deeplab_client._http import HttpTransport

    return HttpTransport(endpoint, options)


def open_async_transport(endpoint: Endpoint, options: Options, outputs: Sequence[str]) -> AsyncTransport:
    """Load the protocol's library and what reads its outputs, and make a transport; no other I/O."""
    load_decoder(outputs)
    if endpoint.is_grpc:
        from deeplab_client._grpc_async import AsyncGrpcTransport

        return AsyncGrpcTransport(endpoint, options)
    from deeplab_client._http_async import AsyncHttpTransport

    return AsyncHttpTransport(endpoint, options)
