"""No request fails if the server ends old connections, as Triton does with --grpc-max-connection-age."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from typing import TYPE_CHECKING

import pytest
from drivers import Kind, connected
from script_servers import GrpcServer, Script

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit

PREFACE = 24  # bytes that a client sends first (RFC 9113, 3.4)
HEADERS, GOAWAY = 1, 7


class AgeingConnections:
    """A relay of HTTP/2 that can answer the next request with GOAWAY, as when a connection reaches its age.

    Attributes:
        is_old: Whether the connection that has the next request is. It ends with that.
        port: Where it listens.
    """

    def __init__(self, upstream: int) -> None:
        self.is_old = False
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._upstream))
                self._open += [client, server]
                for work in (self._requests, self._answers):
                    thread = threading.Thread(target=work, args=(client, server))
                    self._threads.append(thread)
                    thread.start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        last = 0
        with contextlib.suppress(OSError), client.makefile("rb") as stream:
            server.sendall(stream.read(PREFACE))
            while head := stream.read(9):
                body = stream.read(int.from_bytes(head[:3], "big"))
                number = int.from_bytes(head[5:9], "big")
                if head[3] == HEADERS and self.is_old:
                    self.is_old = False
                    client.sendall(struct.pack(">I", 8)[1:] + bytes([GOAWAY, 0]) + struct.pack(">III", 0, last, 0))
                    while stream.read(65536):  # unread bytes would be answered with a reset
                        pass
                    server.shutdown(socket.SHUT_RDWR)
                    return
                last = number if head[3] == HEADERS else last
                server.sendall(head + body)

    def _answers(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                client.sendall(data)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def relay(script: Script) -> Iterator[AgeingConnections]:
    server = GrpcServer(script)
    relay = AgeingConnections(server.port)
    yield relay
    relay.close()
    server.stop()


@pytest.mark.parametrize("size", [100, 3_000_000], ids=["small", "photograph"])
def test_a_request_that_meets_the_end_of_its_connection_goes_over_the_next(
    relay: AgeingConnections, script: Script, kind: Kind, size: int
) -> None:
    image = b"\x07" * size
    with connected(kind, f"grpc://127.0.0.1:{relay.port}", retries=0, timeout=20) as client:
        assert client.segment(b"\x05").mask.shape == (3, 5)
        relay.is_old = True
        assert client.segment(image).mask.shape == (3, 7)
        assert not relay.is_old
    assert [request["image"] for request in script.requests] == [b"\x05", image]
