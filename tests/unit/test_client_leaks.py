"""A client that failed and was dropped without close() is freed at once, with its connections."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from script_servers import GrpcServer, Script

from deeplab_client import AsyncSegmentationClient, RetryPolicy, SegmentationClient, SegmentationError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

pytestmark = pytest.mark.unit

AT_ONCE = RetryPolicy(1, first_delay=0.001, longest_delay=0.001)


@pytest.fixture(autouse=True, scope="module")
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="module", params=["refusing", "garbling", "mixing up"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    """Yield a port that is closed, that sends an invalid reply, or that sends the reply to another request."""
    if request.param == "refusing":
        with socket.socket() as bound:
            bound.bind(("127.0.0.1", 0))
            yield bound.getsockname()[1]
    else:
        garbled = [("MASK", "UINT8", [1, 2], b"1")] if request.param == "garbling" else None
        server = GrpcServer(Script(fixed=garbled, others=[b"\x09"] * 1000))
        yield server.port
        server.stop()


THREADS: dict[str, Callable[[SegmentationClient], object]] = {
    "segment": lambda client: client.segment(b"\x05"),
    "segment_many": lambda client: list(client.segment_many([b"\x05", b"\x06"])),
    "is_ready": lambda client: client.is_ready(),
    "wait_until_ready": lambda client: client.wait_until_ready(timeout=0.1),
}
COROUTINES: dict[str, Callable[[AsyncSegmentationClient], Coroutine[Any, Any, object]]] = {
    "segment": lambda client: client.segment(b"\x05"),
    "is_ready": lambda client: client.is_ready(),
    "wait_until_ready": lambda client: client.wait_until_ready(timeout=0.1),
}


@pytest.mark.parametrize("scheme", ["grpc", "grpcs", "http", "https"])
@pytest.mark.parametrize("work", THREADS)
def test_threads(port: int, scheme: str, work: str) -> None:
    client = SegmentationClient(f"{scheme}://127.0.0.1:{port}", timeout=10, retries=AT_ONCE)
    with contextlib.suppress(SegmentationError):
        THREADS[work](client)
    gone = weakref.ref(client)
    del client
    assert gone() is None


@pytest.mark.parametrize("scheme", ["grpc", "grpcs"])  # over HTTP aiohttp has cycles of its own, and warns
@pytest.mark.parametrize("work", COROUTINES)
def test_coroutines(port: int, scheme: str, work: str) -> None:
    async def fail() -> weakref.ref[AsyncSegmentationClient]:
        client = AsyncSegmentationClient(f"{scheme}://127.0.0.1:{port}", timeout=10, retries=AT_ONCE)
        with contextlib.suppress(SegmentationError):
            await COROUTINES[work](client)
        return weakref.ref(client)

    gone = asyncio.run(fail())
    assert gone() is None
