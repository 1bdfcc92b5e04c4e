"""An HTTP connection that applies one deadline to a whole exchange."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse, IncompleteRead
from typing import TYPE_CHECKING, Any, cast

from deeplab_client._proxy import Proxy, ProxyRefusedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from _typeshed import ReadableBuffer, WriteableBuffer

    from deeplab_client._deadline import Deadline
    from deeplab_client._endpoint import Endpoint


_CHUNK = 1024 * 1024  # bytes; memory is allocated as data arrives, not as a header announces


# A socket's own timeout restarts with each read, so a server that trickles bytes would never exceed it.
class _DeadlineSocket(socket.socket):
    deadline: Deadline

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        self.settimeout(self.deadline.remaining())
        return super().recv_into(buffer, nbytes, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        self.settimeout(self.deadline.remaining())  # for all of the data: sendall does not restart it
        super().sendall(data, flags)


class _DeadlineTLSSocket(ssl.SSLSocket):
    deadline: Deadline

    def recv_into(self, buffer: WriteableBuffer, nbytes: int | None = None, flags: int = 0) -> int:
        self.settimeout(self.deadline.remaining())
        return super().recv_into(buffer, nbytes, flags)

    def send(self, data: ReadableBuffer, flags: int = 0) -> int:
        self.settimeout(self.deadline.remaining())  # sendall is a loop over send
        return super().send(data, flags)


def read_body(response: HTTPResponse, longest: int) -> bytes:
    """Return the body of a response, or its beginning if it has more than `longest` bytes.

    Raises:
        OSError: The connection was lost, or its deadline has passed.
        http.client.HTTPException: The response is not HTTP, or ends early.
    """
    parts: list[bytes] = []
    left = longest + 1
    while left > 0 and (part := _read(response, min(left, _CHUNK))):
        parts.append(part)
        left -= len(part)
    if left > 0 and response.length:
        raise IncompleteRead(b"", response.length)
    return b"".join(parts)


def _read(response: HTTPResponse, most: int) -> bytes:
    try:
        return response.read(most)
    except ValueError as error:  # a chunk whose size is less than 0
        raise HTTPException(str(error)) from error


class Connection(HTTPConnection):
    """One connection, used by one call at a time.

    The operating system's name resolution cannot be interrupted, so only it may overrun the deadline.

    Args:
        endpoint: The server.
        context: For TLS.
    """

    sock: _DeadlineSocket | _DeadlineTLSSocket | None
    _deadline: Deadline
    _open: socket.socket | None  # set before it is connected; `sock` is set once it can be used

    def __init__(self, endpoint: Endpoint, context: ssl.SSLContext | None = None) -> None:
        super().__init__(endpoint.host, endpoint.port)
        self._endpoint = endpoint
        self._context = context
        self._open = None
        if context is not None:
            context.sslsocket_class = _DeadlineTLSSocket

    def exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: Deadline
    ) -> HTTPResponse:
        """Send one request and return the response, whose body must still be read.

        Raises:
            OSError: The connection cannot be made or was lost; TimeoutError without errno is the deadline.
            http.client.HTTPException: The response is not HTTP.
        """
        self._deadline = deadline
        if self.sock is not None:
            self.sock.deadline = deadline
        try:
            self.request(method, path, body=body, headers=headers)
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses a large body answers and closes the connection before it has read all of it.
            with contextlib.suppress(Exception):
                return self.getresponse()
            raise
        return self.getresponse()

    def connect(self) -> None:
        """Connect to the first address of the host, or of the proxy, that accepts."""
        failures = [OSError(f"{self._endpoint} has no address that this machine can connect to")]
        for family, address in self._addresses():
            sock = _DeadlineSocket(family, socket.SOCK_STREAM)
            sock.deadline = self._deadline
            self._open = sock
            try:
                sock.settimeout(self._deadline.remaining())
                sock.connect(address)
                if self._endpoint.socket is None:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.sock = sock if self._context is None else self._encrypt(sock, self._context)
            except OSError as error:
                sock.close()
                if error.errno != errno.EADDRNOTAVAIL or family != socket.AF_INET6:
                    failures[0] = error
            else:
                return
        raise failures.pop()  # and not a variable: see `_faults.caused`

    def interrupt(self) -> None:
        """Wake the thread that waits for the server, from another thread; the connection cannot be used again."""
        sock = self._open
        if sock is not None:
            with contextlib.suppress(OSError):
                # The plain socket's shutdown: that of TLS would wait for the thread that reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def is_usable(self) -> bool:
        """Return whether the server has left an idle connection open."""
        if self.sock is None:
            return False
        try:
            self.sock.settimeout(0)
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            return False
        return False  # closed, or unexpected bytes

    def _addresses(self) -> list[tuple[int, Any]]:
        if self._endpoint.socket is not None:
            return [(socket.AF_UNIX, self._endpoint.socket)]
        to = self._endpoint.proxy or self._endpoint
        return [
            (family, address) for family, *_, address in socket.getaddrinfo(to.host, to.port, type=socket.SOCK_STREAM)
        ]

    def _tunnel(self, sock: _DeadlineSocket, proxy: Proxy) -> None:
        """Open a tunnel through a proxy.

        Not with the standard library's set_tunnel, because it replaces the methods that apply the deadline.
        """
        to = self._endpoint.authority
        lines = [f"CONNECT {to} HTTP/1.1", f"Host: {to}", *map(": ".join, proxy.headers.items()), "", ""]
        sock.sendall("\r\n".join(lines).encode())
        with HTTPResponse(sock, method="CONNECT") as response:
            response.begin()
            if response.status != HTTPStatus.OK:
                raise ProxyRefusedError(response.status, response.reason)

    def _encrypt(self, sock: _DeadlineSocket, context: ssl.SSLContext) -> _DeadlineTLSSocket:
        if self._endpoint.proxy is not None:
            self._tunnel(sock, self._endpoint.proxy)
        sock.settimeout(self._deadline.remaining())
        # The handshake starts after the deadline is set, because it is one more exchange of unknown length.
        wrapped = context.wrap_socket(sock, server_hostname=self.host, do_handshake_on_connect=False)
        encrypted = cast("_DeadlineTLSSocket", wrapped)  # the context creates this class
        encrypted.deadline = self._deadline
        self._open = encrypted
        try:
            encrypted.do_handshake()
        except BaseException:
            encrypted.close()
            raise
        return encrypted
