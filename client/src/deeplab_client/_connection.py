"""An HTTP connection that keeps one deadline over a whole exchange."""

from __future__ import annotations

import contextlib
import socket
from http.client import HTTPConnection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from http.client import HTTPResponse

    from _typeshed import ReadableBuffer, WriteableBuffer

    from deeplab_client._deadline import Deadline


class _DeadlineSocket(socket.socket):
    """A socket's own timeout starts anew with each read: a server that trickles bytes would never trip it."""

    deadline: Deadline

    def recv_into(self, buffer: WriteableBuffer, nbytes: int = 0, flags: int = 0) -> int:
        self.settimeout(self.deadline.remaining())
        return super().recv_into(buffer, nbytes, flags)

    def sendall(self, data: ReadableBuffer, flags: int = 0, /) -> None:
        self.settimeout(self.deadline.remaining())  # for all of it: sendall does not start anew
        super().sendall(data, flags)


class Connection(HTTPConnection):
    """One connection, used by one call at a time.

    The operating system's name resolution cannot be interrupted: only there may the deadline be overrun.
    """

    sock: _DeadlineSocket | None
    _deadline: Deadline

    def exchange(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str], deadline: Deadline
    ) -> HTTPResponse:
        """Send one request and return the response, its body still to be read.

        Raises:
            OSError: The connection cannot be made or was lost; TimeoutError without errno is the deadline.
            http.client.HTTPException: What came back is not HTTP.
        """
        self._deadline = deadline
        if self.sock is not None:
            self.sock.deadline = deadline
        try:
            self.request(method, path, body=body, headers=headers)
        except (BrokenPipeError, ConnectionResetError):
            # A server that refuses a large body answers and closes before it has read all of it.
            with contextlib.suppress(Exception):
                return self.getresponse()
            raise
        return self.getresponse()

    def connect(self) -> None:
        """Try each address of the host in turn; the first that accepts is taken."""
        failure: OSError = OSError(f"{self.host} has no address")
        for family, kind, protocol, _, address in socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM):
            sock = _DeadlineSocket(family, kind, protocol)
            sock.deadline = self._deadline
            try:
                sock.settimeout(self._deadline.remaining())
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except OSError as error:
                sock.close()
                failure = error
            else:
                self.sock = sock
                return
        raise failure

    def is_usable(self) -> bool:
        """Return whether the server has left an idle connection open."""
        if self.sock is None:
            return False
        try:
            self.sock.settimeout(0)
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False  # closed, or bytes that nobody asked for
