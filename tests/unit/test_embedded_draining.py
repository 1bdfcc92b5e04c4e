"""The ports of another process, its unread replies, and its connections that wait for a next request."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from triton_process import wait_until

from deeplabv3.embedded.draining import IDLE_SECONDS, close_idle_connections, is_sending, listening_ports

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit

# Serves one connection: answers each line with a line, and prints when the input ends.
SERVER = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    connection, _ = server.accept()
    with connection, connection.makefile("rw") as lines:
        for line in lines:
            if line == "answer\\n":
                lines.write("answered\\n")
                lines.flush()
        print("end of input", flush=True)
"""


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    return server.stdout.readline()


def ended(client: socket.socket) -> bool:
    try:
        return client.recv(1, socket.MSG_DONTWAIT) == b""
    except BlockingIOError:
        return False


def test_a_connection_that_waits_for_a_next_request_is_ended(server: subprocess.Popen[str]) -> None:
    port = int(said(server))
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"answer\n")
        assert client.recv(100) == b"answered\n"
        close_idle_connections(server.pid, {port + 1})
        assert not ended(client)

        def end() -> bool:
            close_idle_connections(server.pid, {port})
            return ended(client)

        wait_until(end, what="the connection is idle and ended")
        assert said(server) == "end of input\n"


def test_a_connection_with_a_request_in_flight_is_left_alone(server: subprocess.Popen[str]) -> None:
    port = int(said(server))
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"answer\n")
        assert client.recv(100) == b"answered\n"
        time.sleep(0.05)  # the kernel's clock for connections ticks every 4 ms
        client.sendall(b"takes long\n")
        time.sleep(2 * IDLE_SECONDS)  # an idle one would be ended now
        close_idle_connections(server.pid, {port})
        client.sendall(b"answer\n")
        assert client.recv(100) == b"answered\n"


def test_the_listening_ports_are_those_of_the_process_alone(server: subprocess.Popen[str]) -> None:
    port = int(said(server))
    assert listening_ports(server.pid) == {port}
    assert port not in listening_ports(os.getpid())


def test_a_reply_that_is_not_read_is_being_sent() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0] as connection:
            assert not is_sending(os.getpid(), port)
            connection.setblocking(False)  # noqa: FBT003 - the name of its parameter is not public
            sent = 0
            try:
                while True:
                    sent += connection.send(bytes(1 << 20))
            except BlockingIOError:
                assert is_sending(os.getpid(), port)
            while sent:
                sent -= len(client.recv(1 << 20))
            wait_until(lambda: not is_sending(os.getpid(), port), what="everything is acknowledged")
