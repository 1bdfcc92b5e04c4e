"""A TCP proxy that simulates network failures."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable
    from types import TracebackType

_CHUNK = 65536


@dataclass(frozen=True, slots=True)
class Fault:
    """A failure of all connections, old and new, after the server has sent some more bytes.

    Attributes:
        kind: `reset` drops the connection with RST; `half-close` closes the server's side and keeps the client's open;
            `black hole` delays the bytes of both sides until the fault is removed, as TCP does after lost packets.
        after: Number of bytes from the server that still pass.
    """

    kind: Literal["reset", "half-close", "black hole"]
    after: int = 0


class Proxy:
    """A proxy on a free port; set its attributes at any time.

    Attributes:
        upstream: `host:port` of the server.
        fault: The failure of the connections, or None.
        rate: Limit in bytes per second for each direction, all connections together; None for no limit.
        port: The port that it listens on.

    Args:
        upstream: See above.
        host: The address to listen on.
        tls: Use TLS with clients, but not with the server.
    """

    def __init__(self, upstream: str, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.upstream = upstream
        self._host = host
        self.fault: Fault | None = None
        self.rate: float | None = None
        self._tls = tls
        self._free = [0.0, 0.0]  # when each direction may send again
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}  # tasks of connections, and their clients
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.port = 0
        self.listen()

    @property
    def address(self) -> str:
        """Return the `host:port` that it listens on."""
        return f"{self._host}:{self.port}"

    def listen(self) -> None:
        """Accept connections, on the same port as before."""
        self._run(self._listen)

    def refuse(self) -> None:
        """Stop accepting connections, and reset the open ones."""
        self._run(self._refuse)

    def __enter__(self) -> Proxy:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Callable[[], Awaitable[None]]) -> None:
        async def awaited() -> None:
            await work()

        asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(30)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accepted, self._host, self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _refuse(self) -> None:
        self._server.close()
        while self._open:
            tasks = dict(self._open)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for task, writer in tasks.items():
                _reset(writer)  # a task that is canceled before its first step has closed nothing
                self._open.pop(task, None)

    def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._pass(reader, writer))
        self._open[task] = writer
        task.add_done_callback(lambda done: self._open.pop(done, None))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sides = [writer]
        try:
            host, port = self.upstream.rsplit(":", 1)
            answers, upstream = await asyncio.open_connection(host, int(port))
            sides.append(upstream)
            await asyncio.gather(self._requests(reader, upstream), self._answers(answers, writer))
        except (OSError, asyncio.CancelledError):
            _reset(writer)
        finally:
            for side in sides:
                side.close()
            try:
                await asyncio.gather(*(side.wait_closed() for side in sides), return_exceptions=True)
            except asyncio.CancelledError:  # refuse() was called while the last bytes were sent
                for side in sides:
                    side.transport.abort()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            await self._pass_hole(lambda fault: fault.after == 0)
            await self._send(data, writer, 0)
        if writer.can_write_eof():
            writer.write_eof()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        fault, left = None, 0
        while data := await reader.read(_CHUNK):
            if fault is not self.fault:
                fault = self.fault
                left = 0 if fault is None else fault.after
            if fault is None:
                await self._send(data, writer, 1)
                continue
            await self._send(data[:left], writer, 1)
            data, left, broken = data[left:], max(0, left - len(data)), len(data) >= left
            if broken and fault.kind == "black hole":
                await self._pass_hole(lambda _: True)
                await self._send(data, writer, 1)
            if broken and fault.kind == "reset":
                raise ConnectionResetError
            if broken and fault.kind == "half-close":
                if writer.can_write_eof():
                    writer.write_eof()
                return
        if writer.can_write_eof():
            writer.write_eof()

    async def _pass_hole(self, applies: Callable[[Fault], bool]) -> None:
        while self.fault is not None and self.fault.kind == "black hole" and applies(self.fault):  # noqa: ASYNC110 - another thread ends it
            await asyncio.sleep(0.01)

    async def _send(self, data: bytes, writer: asyncio.StreamWriter, direction: int) -> None:
        if self.rate is not None:
            now = self._loop.time()
            start = max(now, self._free[direction])
            self._free[direction] = start + len(data) / self.rate
            await asyncio.sleep(self._free[direction] - now)
        writer.write(data)
        await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    plain: socket.socket | None = writer.get_extra_info("socket")
    if plain is not None and plain.fileno() >= 0:
        with contextlib.suppress(OSError):
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
