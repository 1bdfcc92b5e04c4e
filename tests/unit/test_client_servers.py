"""The real protocol libraries against small servers on loopback that speak Triton's protocol, or fail at it."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from drivers import Kind, connected
from tritonclient.grpc import service_pb2, service_pb2_grpc

from deeplab_client import (
    AccessDeniedError,
    ClientClosedError,
    DeadlineExceededError,
    InvalidImageError,
    ModelError,
    ModelNotFoundError,
    SegmentationError,
    ServerOverloadedError,
    ServerUnavailableError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers import Driver

pytestmark = pytest.mark.unit

messages: Any = service_pb2  # protobuf makes its classes at run time

NAMES = [b"__background__", b"cat"]
NO_ENSEMBLE = "unexpected inference input 'IMAGE' for model 'x'"
REFUSED = "in ensemble 'segment_resnet50', the bytes are no image"


@dataclass
class Script:
    """What a server answers: a mask as wide as the image's first byte says, or failures."""

    weights: str | None = "COCO_WITH_VOC_LABELS_V1"
    failures: dict[str, tuple[Any, str]] = field(default_factory=dict[str, tuple[Any, str]])  # call: status, message
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    height: int = 3
    hold: threading.Event | None = None  # infer waits for it

    def tensors(self, request_id: str, image: bytes) -> list[tuple[str, str, list[int], bytes]]:
        self.requests.append({"id": request_id, "image": image})
        if self.hold:
            self.hold.wait(30)
        mask = np.zeros((self.height, image[0]), np.uint8)
        mask[0] = 1
        counts = np.array([mask.size - mask[0].size, mask[0].size], "<i8")
        names = b"".join(struct.pack("<I", len(name)) + name for name in NAMES)
        return [
            ("MASK", "UINT8", [1, *mask.shape], mask.tobytes()),
            ("CLASS_PIXELS", "INT64", [1, 2], counts.tobytes()),
            ("CLASS_NAMES", "BYTES", [1, 2], names),
        ]


class GrpcServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    scheme = "grpc"

    def __init__(self, script: Script, port: int = 0) -> None:
        self.script = script
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        self.server = grpc.server(ThreadPoolExecutor(8), options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{port}")
        self.server.start()

    def stop(self) -> None:
        self.server.stop(None).wait()

    def fail(self, call: str, context: Any) -> None:  # noqa: ANN401 untyped
        if call in self.script.failures:
            context.abort(*self.script.failures[call])

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 Triton's name, untyped
        self.fail("infer", context)
        assert [output.name for output in request.outputs] == ["MASK", "CLASS_PIXELS", "CLASS_NAMES"]
        (image,) = request.inputs
        assert (image.name, image.datatype, list(image.shape)) == ("IMAGE", "BYTES", [1, 1])
        assert not request.parameters
        response = messages.ModelInferResponse(model_name=request.model_name, model_version="1")
        for name, datatype, shape, data in self.script.tensors(request.id, request.raw_input_contents[0][4:]):
            response.outputs.add(name=name, datatype=datatype, shape=shape)
            response.raw_output_contents.append(data)
        return response

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 Triton's name, untyped
        del request
        self.fail("config", context)
        response = messages.ModelConfigResponse()
        if self.script.weights is not None:
            response.config.parameters["weights"].string_value = self.script.weights
        return response

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 Triton's name, untyped
        del request, context
        return messages.ServerReadyResponse(ready=True)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 Triton's name, untyped
        del context
        return messages.ModelReadyResponse(ready=request.name == "segment_resnet50")


class HttpServer(ThreadingHTTPServer):
    scheme = "http"
    daemon_threads = True

    def __init__(self, script: Script, port: int = 0) -> None:
        self.script = script
        self.connections: set[socket.socket] = set()
        self.hang_up = False  # after each answer, without a word
        self.hung_up = threading.Event()
        super().__init__(("127.0.0.1", port), HttpHandler)
        self.port = self.server_port
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 the base class's
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 the base class's
        super().shutdown_request(request)
        self.hung_up.set()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 the base class's
        """Say nothing of clients that went away."""

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class HttpHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def triton(self) -> HttpServer:
        assert isinstance(self.server, HttpServer)
        return self.server

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 the base class's
        """Say nothing."""

    def answer(self, status: int, body: bytes, json_length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if json_length is not None:
            self.send_header("Inference-Header-Content-Length", str(json_length))
        self.end_headers()
        self.close_connection = self.close_connection or self.triton.hang_up
        self.wfile.write(body)

    def fails(self, call: str) -> bool:
        if call not in self.triton.script.failures:
            return False
        status, message = self.triton.script.failures[call]
        self.answer(status, message.encode() if message.startswith("<") else json.dumps({"error": message}).encode())
        return True

    def do_GET(self) -> None:
        script = self.triton.script
        if self.path == "/v2/models/segment_resnet50/config":
            parameters = {} if script.weights is None else {"weights": {"string_value": script.weights}}
            if not self.fails("config"):
                self.answer(200, json.dumps({"name": "segment_resnet50", "parameters": parameters}).encode())
        else:
            known = self.path in {"/v2/health/ready", "/v2/models/segment_resnet50/ready"}
            self.answer(200 if known else 400, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.fails("infer"):
            return
        length = int(self.headers["Inference-Header-Content-Length"])
        request, image = json.loads(body[:length]), body[length + 4 :]
        assert self.path == "/v2/models/segment_resnet50/infer"
        assert {output["name"] for output in request["outputs"]} == {"MASK", "CLASS_PIXELS", "CLASS_NAMES"}
        assert all(output["parameters"]["binary_data"] for output in request["outputs"])
        assert request["inputs"][0]["shape"] == [1, 1]
        assert "timeout" not in request.get("parameters", {})
        tensors = self.triton.script.tensors(request["id"], image)
        heads = [
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
            for name, datatype, shape, data in tensors
        ]
        answer = {"model_name": "segment_resnet50", "model_version": "1", "outputs": heads}
        head = json.dumps(answer).encode()
        self.answer(200, head + b"".join(data for *_, data in tensors), len(head))


Server = GrpcServer | HttpServer


@pytest.fixture(params=[GrpcServer, HttpServer], ids=["grpc", "http"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server: Server = request.param(Script())
    yield server
    server.stop()


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def client(server: Server, kind: Kind) -> Iterator[Driver]:
    with connected(kind, url(server), timeout=20, retries=0) as client:
        yield client


def url(server: Server) -> str:
    return f"{server.scheme}://127.0.0.1:{server.port}"


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
    assert result.pixels == {"__background__": 10, "cat": 5}
    assert (result.model_name, result.model_version) == ("segment_resnet50", "1")
    assert result.weights == "COCO_WITH_VOC_LABELS_V1"
    assert server.script.requests[0]["image"] == b"\x05 not decoded here"
    assert len(server.script.requests[0]["id"]) == 32


def test_untrained_weights_are_seen(server: Server, client: Driver) -> None:
    server.script.weights = "none"
    assert client.segment(b"\x05").untrained
    assert "UNTRAINED" in repr(client.segment(b"\x05"))


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
        ((S.INTERNAL, 500, "in ensemble 'a', Stub is not healthy"), ModelError, "Stub is not healthy"),
        ((S.UNKNOWN, 418, "what"), ModelError, "what"),
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


def test_nobody_listens(server: Server, refusing: int, kind: Kind) -> None:
    address = f"{server.scheme}://127.0.0.1:{refusing}"
    with connected(kind, address, retries=0) as client, pytest.raises(ServerUnavailableError, match=address) as caught:
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
    with connected(kind, f"{other}://127.0.0.1:{server.port}", timeout=10, retries=0) as client, no_answer():
        client.segment(b"\x05")


def expect_deadline(kind: Kind, address: str, timeout: float) -> None:
    start = time.monotonic()
    with (
        connected(kind, address, retries=0) as client,
        pytest.raises(DeadlineExceededError, match=f"within {timeout:g} s"),
    ):
        client.segment(b"\x05", timeout=timeout)
    assert timeout * 0.9 < time.monotonic() - start < timeout + 8


def test_the_deadline_holds_against_a_server_that_never_answers(server: Server, silent: int, kind: Kind) -> None:
    expect_deadline(kind, f"{server.scheme}://127.0.0.1:{silent}", 0.4)


def test_the_deadline_holds_against_a_slow_model(server: Server, kind: Kind) -> None:
    server.script.hold = threading.Event()
    expect_deadline(kind, url(server), 0.4)
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
    # From threads only: asyncio drops what it has not read when it fails to write.
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}",  # to the question for the config
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
    # In a process of its own: forking the one that runs the tests would fork their servers too.
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(FORK), url(server)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.stdout == "done\n", run.stderr
