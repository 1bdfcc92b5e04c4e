"""Small servers on loopback that use Triton's protocol, or violate it as a script says."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

messages: Any = service_pb2  # protobuf makes its classes at run time

NAMES = [b"__background__", b"cat"]


@dataclass
class Script:
    """The replies and failures of a server.

    The mask of an image of plain pixels is of its size, and any other as wide as the image's first byte says.
    """

    weights: str | None = "COCO_WITH_VOC_LABELS_V1"
    failures: dict[str, tuple[Any, str]] = field(default_factory=dict[str, tuple[Any, str]])  # call: status, message
    requests: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    height: int = 3
    hold: threading.Event | None = None  # infer waits for it
    held_from: int = 0  # from images with this first byte on
    headers: list[dict[str, str]] = field(default_factory=list[dict[str, str]])  # of every call, names in lower case
    failing: int = 1_000_000  # remaining times of a failure
    fixed: list[tuple[str, str, list[int], bytes]] | None = None  # tensors instead of the requested ones
    wait: str | None = None  # when to retry after a failure
    others: list[bytes] = field(default_factory=list[bytes])  # images whose replies the first requests get
    other_ids: list[str] = field(default_factory=list[str])  # ids that the first replies have
    lock: threading.Lock = field(default_factory=threading.Lock)

    def failure(self, call: str) -> tuple[Any, str] | None:
        """Return how a call fails this time, if it does."""
        with self.lock:
            if call not in self.failures or self.failing < 1:
                return None
            self.failing -= 1
            return self.failures[call]

    def tensors(self, request_id: str, image: bytes, names: list[str]) -> list[tuple[str, str, list[int], bytes]]:
        """Answer a request for tensors of these names."""
        self.requests.append({"id": request_id, "image": image, "outputs": names})
        if self.hold and image[0] >= self.held_from:
            self.hold.wait(30)
        if self.fixed is not None:
            return self.fixed
        if self.others:
            image = self.others.pop(0)
        size = (self.height, image[0])
        if image.startswith((b"P5", b"P6")):
            width, height = image.split(maxsplit=3)[1:3]
            size = (int(height), int(width))
        mask = np.zeros(size, np.uint8)
        mask[0] = 1
        counts = np.array([mask.size - mask[0].size, mask[0].size], "<i8")
        buffer = BytesIO()
        Image.fromarray(mask).save(buffer, "PNG")
        known = {
            "MASK": ("UINT8", [1, *mask.shape], mask.tobytes()),
            "MASK_PNG": ("BYTES", [1, 1], elements(buffer.getvalue())),
            "CLASS_PIXELS": ("INT64", [1, 2], counts.tobytes()),
            "CONFIDENCE": ("UINT8", [1, *mask.shape], bytes([51, 255] * mask.size)[: mask.size]),
            "CLASS_NAMES": ("BYTES", [1, 2], elements(*NAMES)),
            "IMAGE_ID": image_id(image)[1:],
        }
        assert set(names) - {"CONFIDENCE"} in (
            {"MASK", "CLASS_NAMES", "IMAGE_ID"},
            {"MASK_PNG", "CLASS_PIXELS", "CLASS_NAMES", "IMAGE_ID"},
        )
        return [(name, *known[name]) for name in names]

    def reply_id(self, request_id: str) -> str:
        """Return the id of the reply to a request."""
        return self.other_ids.pop(0) if self.other_ids else request_id


def elements(*values: bytes) -> bytes:
    """Return a BYTES tensor's data."""
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def image_id(image: bytes) -> tuple[str, str, list[int], bytes]:
    """Return the tensor IMAGE_ID."""
    return "IMAGE_ID", "INT64", [1, 1], struct.pack("<q", zlib.crc32(image))


class GrpcServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    scheme = "grpc"

    def __init__(self, script: Script, port: int | str = 0, *, host: str = "127.0.0.1") -> None:
        """Listen on a port, or with the host `unix` on a path."""
        self.script = script
        self.connections: set[str] = set()  # peers that sent requests
        options = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", -1)]
        self.server = grpc.server(ThreadPoolExecutor(8), options=options)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"{host}:{port}")
        self.server.start()

    def stop(self) -> None:
        self.server.stop(None).wait()

    def fail(self, call: str, context: Any) -> None:  # noqa: ANN401 - untyped
        self.connections.add(context.peer())
        self.script.headers.append(dict(context.invocation_metadata()))
        failure = self.script.failure(call)
        if failure:
            if self.script.wait is not None:
                context.set_trailing_metadata((("grpc-retry-pushback-ms", self.script.wait),))
            context.abort(*failure)

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 - Triton's name, untyped
        self.fail("infer", context)
        (image,) = request.inputs
        assert (image.name, image.datatype, list(image.shape)) == ("IMAGE", "BYTES", [1, 1])
        assert not request.parameters
        response = messages.ModelInferResponse(model_name=request.model_name, model_version="1")
        response.id = self.script.reply_id(request.id)
        names = [output.name for output in request.outputs]
        for name, datatype, shape, data in self.script.tensors(request.id, request.raw_input_contents[0][4:], names):
            response.outputs.add(name=name, datatype=datatype, shape=shape)
            response.raw_output_contents.append(data)
        return response

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 - Triton's name, untyped
        del request
        self.fail("config", context)
        response = messages.ModelConfigResponse()
        if self.script.weights is not None:
            response.config.parameters["weights"].string_value = self.script.weights
        return response

    def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 - Triton's name, untyped
        del request
        self.fail("ready", context)
        return messages.ServerReadyResponse(ready=True)

    def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 - Triton's name, untyped
        del context
        return messages.ModelReadyResponse(ready=request.name == "segment_resnet50")


class HttpServer(ThreadingHTTPServer):
    scheme = "http"
    daemon_threads = True

    def __init__(self, script: Script, port: int = 0) -> None:
        self.script = script
        self.connections: set[socket.socket] = set()
        self.hang_up = False  # after each reply, without notice
        self.hung_up = threading.Event()
        self.base = ""  # what each request's path begins with: a prefix, or as to a proxy the URL of a server
        self.tls: ssl.SSLContext | None = None  # sent to a client that expects a proxy's tunnel
        super().__init__(("127.0.0.1", port), HttpHandler)
        self.port = self.server_port
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the base class's
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - the base class's
        super().shutdown_request(request)
        self.hung_up.set()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - the base class's
        """Do not log clients that disconnected."""

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

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002, ANN401 - the base class's
        """Log nothing."""

    def answer(self, status: int, body: bytes, json_length: int | None = None) -> None:
        self.send_response(status)
        wanted = self.headers["Accept-Encoding"]
        if wanted in {"gzip", "deflate"}:
            packer = zlib.compressobj(wbits=31 if wanted == "gzip" else 15)
            body = packer.compress(body) + packer.flush()
            self.send_header("Content-Encoding", wanted)
        self.send_header("Content-Length", str(len(body)))
        if status != HTTPStatus.OK and self.triton.script.wait is not None:
            self.send_header("Retry-After", self.triton.script.wait)
        if json_length is not None:
            self.send_header("Inference-Header-Content-Length", str(json_length))
        self.end_headers()
        self.close_connection = self.close_connection or self.triton.hang_up
        self.wfile.write(body)

    def fails(self, call: str) -> bool:
        self.triton.script.headers.append({name.lower(): value for name, value in self.headers.items()})
        failure = self.triton.script.failure(call)
        if failure is None:
            return False
        status, message = failure
        self.answer(status, message.encode() if message.startswith("<") else json.dumps({"error": message}).encode())
        return True

    def parse_request(self) -> bool:
        is_request = super().parse_request()
        if is_request and self.command != "CONNECT":
            assert self.path.startswith(f"{self.triton.base}/v2"), self.path
            self.path = self.path.removeprefix(self.triton.base)
        return is_request

    def do_CONNECT(self) -> None:
        """Act as a proxy, and then as the server behind it."""
        if self.fails(f"connect to {self.path}"):
            return
        self.send_response(200)
        self.end_headers()
        assert self.triton.tls is not None
        with self.triton.tls.wrap_socket(self.connection, server_side=True) as connection:
            self.rfile, self.wfile = connection.makefile("rb"), connection.makefile("wb")
            while not self.close_connection:
                self.handle_one_request()

    def do_GET(self) -> None:
        script = self.triton.script
        if self.path == "/v2/models/segment_resnet50/config":
            parameters = {} if script.weights is None else {"weights": {"string_value": script.weights}}
            if not self.fails("config"):
                self.answer(200, json.dumps({"name": "segment_resnet50", "parameters": parameters}).encode())
        elif not self.fails("ready"):
            known = self.path in {"/v2/health/ready", "/v2/models/segment_resnet50/ready"}
            self.answer(200 if known else 400, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if "Content-Encoding" in self.headers:
            body = zlib.decompress(body, wbits=47)
        if self.fails("infer"):
            return
        length = int(self.headers["Inference-Header-Content-Length"])
        request, image = json.loads(body[:length]), body[length + 4 :]
        assert self.path == "/v2/models/segment_resnet50/infer"
        assert all(output["parameters"]["binary_data"] for output in request["outputs"])
        assert request["inputs"][0]["shape"] == [1, 1]
        assert "timeout" not in request.get("parameters", {})
        names = [output["name"] for output in request["outputs"]]
        tensors = self.triton.script.tensors(request["id"], image, names)
        heads = [
            {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
            for name, datatype, shape, data in tensors
        ]
        answer = {"model_name": "segment_resnet50", "model_version": "1", "outputs": heads}
        answer["id"] = self.triton.script.reply_id(request["id"])
        head = json.dumps(answer).encode()
        self.answer(200, head + b"".join(data for *_, data in tensors), len(head))


Server = GrpcServer | HttpServer


def url(server: Server) -> str:
    """Return the URL for a client."""
    return f"{server.scheme}://127.0.0.1:{server.port}"


class RawServer:
    """Speaks HTTP as the test says: to the questions before an inference an empty config, then these bytes.

    A body of more than `longest` bytes is refused before it is read.
    """

    def __init__(self, answer: Callable[[bytes], bytes], *, longest: int | None = None) -> None:
        self.connections = 0
        self._answer = answer
        self._longest = longest
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # stopped
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
            while head := lines.readline():
                fields: dict[bytes, bytes] = {}
                while (line := lines.readline()) != b"\r\n":
                    name, _, value = line.partition(b":")
                    fields[name.lower()] = value.strip()
                length = int(fields.get(b"content-length", 0))
                refused = self._longest is not None and length > self._longest
                if refused:
                    connection.sendall(http_answer(b"", status=413))
                body = lines.read(length)
                if refused:
                    continue
                if head.startswith(b"GET"):
                    connection.sendall(http_answer(b"{}"))
                else:
                    connection.sendall(self._answer(body))


def http_answer(body: bytes, *headers: str, status: int = 200, length: int | None = None) -> bytes:
    """Return an HTTP response with its own length or another one."""
    length = len(body) if length is None else length
    head = "\r\n".join([f"HTTP/1.1 {status} Said", f"Content-Length: {length}", *headers, "", ""])
    return head.encode() + body
