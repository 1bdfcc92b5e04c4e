"""The real protocol libraries against small servers on loopback that use Triton's protocol, or violate it."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import pickle
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from inspect import isawaitable
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest
from drivers import Kind, connected, python
from script_servers import GrpcServer, HttpServer, Script, Server, url

from deeplab_client import (
    AccessDeniedError,
    AsyncSegmentationClient,
    ClientClosedError,
    DeadlineExceededError,
    InvalidImageError,
    ModelError,
    ModelNotFoundError,
    RetryAttempt,
    RetryPolicy,
    SegmentationClient,
    SegmentationError,
    ServerOverloadedError,
    ServerUnavailableError,
    UnsupportedError,
)
from deeplab_client.testing import AsyncFakeTransport, FakeTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers import Driver

pytestmark = pytest.mark.unit

NO_ENSEMBLE = "unexpected inference input 'IMAGE' for model 'x'"
DEAD_STUB = "Failed to process the request(s) for model instance 'm_0_0', message: Stub process 'm_0_0' is not healthy."
REFUSED = "in ensemble 'segment_resnet50', the bytes are no image"


@pytest.fixture
def client(server: Server, kind: Kind) -> Iterator[Driver]:
    with connected(kind, url(server), timeout=20, retries=0) as client:
        yield client


@pytest.fixture
def silent() -> Iterator[int]:
    """Yield a port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def refusing() -> Iterator[int]:
    """Yield a port that is taken and refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_an_image_goes_up_and_a_result_comes_down(server: Server, client: Driver) -> None:
    result = client.segment(b"\x05 not decoded here")
    assert result.mask.tolist() == [[1] * 5, [0] * 5, [0] * 5]
    assert result.mask.flags.writeable
    assert result.class_names == ("__background__", "cat")
    assert result.pixel_counts == {"__background__": 10, "cat": 5}
    assert (result.model_name, result.model_version) == ("segment_resnet50", "1")
    assert result.weights == "COCO_WITH_VOC_LABELS_V1"
    assert server.script.requests[0]["image"] == b"\x05 not decoded here"
    assert len(server.script.requests[0]["id"]) == 32
    assert result.request_id == server.script.requests[0]["id"]
    assert result.confidence is None
    assert "CONFIDENCE" not in server.script.requests[0]["outputs"]


@pytest.mark.parametrize("mask_format", ["raw", "png"])
def test_confidence_comes_down_on_request(server: Server, kind: Kind, mask_format: str) -> None:
    with connected(kind, url(server), mask_format=mask_format, retries=0) as client:
        result = client.segment(b"\x05", confidence=True)
        assert result.confidence is not None
        assert result.confidence.tolist() == [[51, 255, 51, 255, 51], [255, 51, 255, 51, 255], [51, 255, 51, 255, 51]]
        assert result.mask.shape == (3, 5)
        refusal = "in ensemble 'm', unexpected inference output 'CONFIDENCE' for model 'm'"
        code = S.INVALID_ARGUMENT if isinstance(server, GrpcServer) else 400
        server.script.failures["infer"] = (code, refusal)
        with pytest.raises(UnsupportedError, match="no output CONFIDENCE: build the model repository again") as caught:
            client.segment(b"\x05", confidence=True)
    assert caught.value.model == "segment_resnet50"
    assert caught.value.request_id


def test_messages_larger_than_grpcs_default_pass(server: Server, client: Driver) -> None:
    server.script.height = 100_000
    result = client.segment(b"\x64" + bytes(6_000_000))
    assert result.mask.shape == (100_000, 100)


def test_ready(server: Server, client: Driver, refusing: int, silent: int, kind: Kind) -> None:
    assert client.is_ready()
    assert not client.is_ready(model="other")
    for port, timeout in ((refusing, 5), (silent, 0.3)):
        with connected(kind, f"{server.scheme}://127.0.0.1:{port}", timeout=timeout, retries=0) as other:
            assert not other.is_ready()


S = grpc.StatusCode


@pytest.mark.parametrize(
    ("refusal", "kind", "said"),
    [
        ((S.INVALID_ARGUMENT, 400, REFUSED), InvalidImageError, "the bytes are no image"),
        ((S.INVALID_ARGUMENT, 400, "[request id: 5] " + NO_ENSEMBLE), ModelError, NO_ENSEMBLE),
        ((S.RESOURCE_EXHAUSTED, 429, "slow down"), ServerOverloadedError, "slow down"),
        ((S.UNAVAILABLE, 503, "Exceeds maximum queue size"), ServerOverloadedError, "queue size"),
        ((S.UNAVAILABLE, 503, "going away"), ServerUnavailableError, "not available: going away"),
        ((S.CANCELLED, 499, "over"), ServerUnavailableError, "not available: over"),
        ((S.INTERNAL, 500, "in ensemble 'a', CUDA error"), ModelError, "CUDA error"),
        (
            (S.INTERNAL, 500, f"in ensemble 'a', {DEAD_STUB}"),
            ServerUnavailableError,
            "not available: Failed to process",
        ),
        ((S.INTERNAL, 500, "Stub process is not healthy."), ServerUnavailableError, "not healthy"),
        ((S.UNKNOWN, 418, "what"), ModelError, "what"),
        ((S.INTERNAL, 502, "Received RST_STREAM with error code 2"), ServerUnavailableError, "not available"),
        ((S.UNKNOWN, 507, "exceeded request buffer limit while retrying upstream"), ServerUnavailableError, "limit"),
        ((S.UNKNOWN, 413, "Payload Too Large"), InvalidImageError, "Payload Too Large"),  # Envoy
        (
            (S.UNKNOWN, 413, "Received http2 header with status: 413"),
            InvalidImageError,
            "413",
        ),  # a proxy that does not speak gRPC
        ((S.NOT_FOUND, 404, "Request for unknown model: 'm'"), ModelNotFoundError, "'segment_resnet50'"),
        ((S.UNAVAILABLE, 400, "Request for unknown model: 'm'"), ModelNotFoundError, "'segment_resnet50'"),
        ((S.UNIMPLEMENTED, 501, "not here"), UnsupportedError, "not here"),
        ((S.PERMISSION_DENIED, 403, "not you"), AccessDeniedError, "not you"),
        ((S.UNAUTHENTICATED, 401, "who are you"), AccessDeniedError, "who are you"),
    ],
)
def test_a_servers_refusal_becomes_an_error_of_ours(
    server: Server,
    client: Driver,
    refusal: tuple[grpc.StatusCode, int, str],
    kind: type[SegmentationError],
    said: str,
) -> None:
    code, status, message = refusal
    server.script.failures["infer"] = (code if isinstance(server, GrpcServer) else status, message)
    with pytest.raises(SegmentationError) as caught:
        client.segment(b"\x05")
    assert type(caught.value) is kind
    assert said in caught.value.message
    assert "in ensemble" not in caught.value.message
    assert "request id" not in caught.value.message
    assert caught.value.model == "segment_resnet50"
    assert len(caught.value.request_id or "") == 32
    del server.script.failures["infer"]
    assert client.segment(b"\x05").mask.shape == (3, 5), "the client lives on"


def test_a_model_that_a_stopping_server_has_unloaded_is_asked_for_again(server: Server, kind: Kind) -> None:
    words = "Request for unknown model: 'm' has no available versions"
    server.script.failures["infer"] = (S.NOT_FOUND if isinstance(server, GrpcServer) else 404, words)

    def back(_: RetryAttempt) -> None:
        server.script.failures.clear()

    with connected(kind, url(server), retries=RetryPolicy(first_delay=0.01), on_retry=back) as client:
        assert client.segment(b"\x05").mask.shape == (3, 5)


def test_a_restricted_config_leaves_the_weights_unknown(server: Server, client: Driver) -> None:
    message = "This protocol is restricted, expecting header 'triton-grpc-protocol-key'"
    server.script.failures["config"] = (S.UNAVAILABLE if isinstance(server, GrpcServer) else 403, message)
    assert client.segment(b"\x05").weights is None


def test_a_proxys_page_is_quoted(kind: Kind) -> None:
    server = HttpServer(Script(failures={"infer": (502, "<html>no upstream</html>")}))
    no_upstream = pytest.raises(ServerUnavailableError, match="HTTP status 502: <html>no upstream")
    with connected(kind, url(server), retries=0) as client, no_upstream:
        client.segment(b"\x05")
    server.stop()


def test_a_closed_port_is_unavailable(server: Server, refusing: int, kind: Kind) -> None:
    address = f"{server.scheme}://127.0.0.1:{refusing}"
    told = f"{address} is not available: .*; check the URL, or wait until the server has started"
    with connected(kind, address, retries=0) as client, pytest.raises(ServerUnavailableError, match=told) as caught:
        client.segment(b"\x05")
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.__cause__ is not None


def no_answer() -> pytest.RaisesExc[ServerUnavailableError | DeadlineExceededError]:
    return pytest.raises((ServerUnavailableError, DeadlineExceededError))


def test_a_host_without_address(server: Server, kind: Kind) -> None:
    with connected(kind, f"{server.scheme}://host.invalid:1", timeout=10, retries=0) as client, no_answer():
        client.segment(b"\x05")


def test_a_server_of_another_protocol(server: Server, kind: Kind) -> None:
    other = "http" if server.scheme == "grpc" else "grpc"
    with connected(kind, f"{other}://127.0.0.1:{server.port}", timeout=10, retries=0) as client, no_answer() as caught:
        client.segment(b"\x05")
    assert re.search("gRPC port.*grpcs://" if other == "grpc" else "use grpc:// for gRPC", str(caught.value))


def expect_deadline(kind: Kind, address: str, timeout: float, *, remedy: str = "check the URL") -> None:
    start = time.monotonic()
    with (
        connected(kind, address, retries=0) as client,
        pytest.raises(DeadlineExceededError, match=f"within {timeout:g} s; {remedy}"),
    ):
        client.segment(b"\x05", timeout=timeout)
    assert timeout * 0.9 < time.monotonic() - start < timeout + 8


def test_the_deadline_holds_against_a_server_that_never_answers(server: Server, silent: int, kind: Kind) -> None:
    expect_deadline(kind, f"{server.scheme}://127.0.0.1:{silent}", 0.4)


def test_the_deadline_holds_against_a_slow_model(server: Server, kind: Kind) -> None:
    server.script.hold = threading.Event()
    expect_deadline(kind, url(server), 0.4, remedy="raise the timeout")
    server.script.hold.set()


def test_the_deadline_is_each_calls_own(server: Server, client: Driver) -> None:
    client.segment(b"\x05", timeout=0.5)
    threading.Event().wait(0.6)  # the first deadline has passed
    client.segment(b"\x05")
    server.script.hold = threading.Event()
    start = time.monotonic()
    with pytest.raises(DeadlineExceededError):
        client.segment(b"\x05", timeout=0.4)
    assert time.monotonic() - start < 8
    server.script.hold.set()


@pytest.mark.parametrize("opening", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"], ids=["head", "body"])
def test_the_deadline_holds_against_a_server_that_trickles(opening: bytes, kind: Kind) -> None:
    stop = threading.Event()

    def trickle(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            connection.sendall(opening or b"HTTP/1.1 200 OK\r\nX-Filler: ")
            while not stop.wait(0.02):
                connection.sendall(b"x")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, args=(listener,))
        thread.start()
        try:
            expect_deadline(kind, f"http://127.0.0.1:{listener.getsockname()[1]}", 0.4)
        finally:
            stop.set()
            thread.join()


def test_the_deadline_holds_while_a_large_image_is_sent(silent: int, kind: Kind) -> None:
    with connected(kind, f"http://127.0.0.1:{silent}") as client, pytest.raises(DeadlineExceededError):
        client.segment(bytes(30_000_000), timeout=0.4)


def test_an_idle_connection_that_the_server_dropped_is_not_used_again(kind: Kind) -> None:
    server = HttpServer(Script())
    with connected(kind, url(server), retries=0) as client:
        client.segment(b"\x05")
        server.hang_up = True
        for width in (1, 2, 3):
            server.hung_up.clear()
            assert client.segment(bytes([width])).mask.shape == (3, width)
            assert server.hung_up.wait(10)
    server.stop()


def test_a_server_that_refuses_a_body_early_is_heard() -> None:
    # Only from threads, because asyncio drops unread data if writing fails.
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",  # to the request for the config
        b'HTTP/1.1 413 Too Large\r\nContent-Length: 21\r\n\r\n{"error":"too large"}',
    ]

    def refuse(listener: socket.socket) -> None:
        for answer in answers:
            connection, _ = listener.accept()
            with connection:  # closed with most of the body unread: the client's send fails
                connection.recv(4096)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=refuse, args=(listener,))
        thread.start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with connected("sync", address, retries=0) as client, pytest.raises(InvalidImageError, match="too large"):
            client.segment(bytes(30_000_000))
        thread.join()


def test_a_restarted_server_is_found_and_asked_for_its_weights(server: Server, client: Driver) -> None:
    assert not client.segment(b"\x05").untrained
    server.stop()
    with pytest.raises(ServerUnavailableError):
        client.segment(b"\x05", timeout=5)
    again = type(server)(Script(weights="none"), server.port)
    try:
        until = time.monotonic() + 20
        while not client.is_ready():
            assert time.monotonic() < until
            threading.Event().wait(0.05)
        assert client.segment(b"\x05").untrained
    finally:
        again.stop()


def test_threads_share_a_client(client: Driver) -> None:
    def call(width: int) -> bool:
        result = client.segment(bytes([width]) * 1000)
        return result.mask.shape == (3, width)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, [1 + number % 200 for number in range(200)]))


def test_closing_during_a_call_ends_it_in_order(server: Server, client: Driver, kind: Kind) -> None:
    client.segment(b"\x05")
    server.script.hold = threading.Event()
    count = len(server.script.requests)
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(client.segment, b"\x05")
        while len(server.script.requests) == count:
            threading.Event().wait(0.01)
        client.close()
        server.script.hold.set()
        if isinstance(server, GrpcServer) or kind == "async":
            assert isinstance(call.exception(20), ClientClosedError)
        else:
            assert call.result(20).mask.shape == (3, 5)
    with pytest.raises(ClientClosedError):
        client.segment(b"\x05")


FORK = """
    import multiprocessing, sys, threading
    from deeplab_client import SegmentationClient

    def call(client, width):
        assert client.segment(bytes([width]), timeout=20).mask.shape == (3, width)

    def child(client):
        for width in range(1, 20):
            call(client, width)

    context = multiprocessing.get_context("fork")
    for used in (False, True):
        client = SegmentationClient(sys.argv[1])
        if used:
            call(client, 3)
        children = [context.Process(target=child, args=(client,)) for _ in range(3)]
        for process in children:
            process.start()
        for width in range(1, 20):
            call(client, width)
        for process in children:
            process.join(60)
        assert [process.exitcode for process in children] == [0, 0, 0], [p.exitcode for p in children]
        call(client, 4)
        client.close()
    print("done")
"""


def test_a_client_made_or_used_before_a_fork_works_on_both_sides(server: Server) -> None:
    # In a separate process, because forking the test process would fork its servers too.
    run = python(FORK, url(server), flags=["-W", "ignore"])
    assert run.stdout == "done\n", run.stderr


FORK_ASYNC = """
    import asyncio, multiprocessing, sys
    from deeplab_client import AsyncSegmentationClient

    async def calls(client):
        async with client:
            for width in range(1, 20):
                assert (await client.segment(bytes([width]), timeout=20)).mask.shape == (3, width)

    def child(client):
        asyncio.run(calls(client))

    context = multiprocessing.get_context("fork")
    client = AsyncSegmentationClient(sys.argv[1])
    children = [context.Process(target=child, args=(client,)) for _ in range(3)]
    for process in children:
        process.start()
    for process in children:
        process.join(60)
    assert [process.exitcode for process in children] == [0, 0, 0], [p.exitcode for p in children]
    asyncio.run(calls(client))
    print("done")
"""


def test_an_async_client_made_before_a_fork_and_before_a_loop_works_on_both_sides(server: Server) -> None:
    run = python(FORK_ASYNC, url(server), flags=["-W", "error"])
    assert run.stdout == "done\n", run.stderr


def test_a_client_is_copied_and_pickled_without_its_connections(server: Server, kind: Kind) -> None:
    async def width(client: SegmentationClient | AsyncSegmentationClient) -> int:
        result = client.segment(b"\x05")
        return (await result if isawaitable(result) else result).mask.shape[1]

    async def use() -> None:
        made = SegmentationClient if kind == "sync" else AsyncSegmentationClient
        client = made(url(server), timeout=20, headers={"key": "value"}, token="token")  # noqa: S106 - made up
        assert await width(client) == 5
        for clone in (pickle.loads(pickle.dumps(client)), copy.copy(client), copy.deepcopy(client)):  # noqa: S301 - made here
            assert repr(clone) == repr(client)
            assert await width(clone) == 5
            assert server.script.headers[-1].items() >= {"key": "value", "authorization": "Bearer token"}.items()
            await closed(clone)
        assert await width(client) == 5
        await closed(client)

    async def closed(client: SegmentationClient | AsyncSegmentationClient) -> None:
        end = client.close()
        if end is not None:
            await end

    asyncio.run(use())


def test_a_copy_keeps_the_transport_that_its_original_was_given() -> None:
    fake, other = FakeTransport(), AsyncFakeTransport()
    copy.copy(SegmentationClient("host", transport=fake)).segment(np.zeros((2, 2), np.uint8))
    asyncio.run(copy.copy(AsyncSegmentationClient("host", transport=other)).segment(np.zeros((2, 2), np.uint8)))
    assert len(fake.requests) == len(other.requests) == 1
