"""The ports of a server, whether it is idle, and its idle connections, which tritonserver 2.51 does not close itself.

Only this module inspects the memory maps and the sockets of another process.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import termios
from pathlib import Path
from typing import TYPE_CHECKING

from deeplabv3.embedded.processes import stubs

if TYPE_CHECKING:
    from collections.abc import Iterator

IDLE_SECONDS = 0.25
SYS_PIDFD_GETFD = 438


def idle_stubs(prefix: str) -> set[tuple[int, str]] | None:
    """Return (pid, context switches) of each stub if all of them wait for work, else None.

    An idle stub waits on a futex in its own shared memory region. Two equal results mean that no stub had any work in
    between.
    """
    found: set[tuple[int, str]] = set()
    for pid, (region, _) in stubs().items():
        if region.startswith(prefix):
            try:
                call = Path(f"/proc/{pid}/syscall").read_text(encoding="ascii").split()
                maps = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8").splitlines()
                status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
            except OSError:
                return None
            address = int(call[1], 16) if len(call) > 1 else 0
            ranges = [line.split("-")[:2] for line in maps if region in line]
            if not any(int(low, 16) <= address < int(rest.split()[0], 16) for low, rest in ranges):
                return None
            found.add((pid, status.partition("nvoluntary_ctxt")[0].rpartition(":")[2]))
    return found


def listening_ports(pid: int) -> set[int]:
    """Return the TCP ports on which a process listens; raise OSError if it has ended or cannot be inspected."""
    # 0A is TCP_LISTEN in the kernel's include/net/tcp_states.h.
    ports = {f"socket:[{inode}]": port for port, state, _, inode in _sockets(pid) if state == "0A"}
    found: set[int] = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if (name := entry.readlink().name) in ports:
                found.add(ports[name])
    return found


def is_sending(pid: int, port: int) -> bool:
    """Return whether replies of a process on a port wait for slow readers."""
    with contextlib.suppress(OSError):
        return any(unsent for number, state, unsent, _ in _sockets(pid) if number == port and state != "0A")
    return False


def _sockets(pid: int) -> Iterator[tuple[int, str, int, str]]:
    """Yield local port, state, unsent bytes and inode of each TCP socket in the network namespace of a process."""
    for table in ("tcp", "tcp6"):
        file = Path(f"/proc/{pid}/net/{table}")
        if table == "tcp6" and not file.exists():  # a kernel without IPv6
            return
        for line in file.read_text(encoding="ascii").splitlines()[1:]:
            local, _, state, queues, *_, inode = line.split()[1:10]
            yield int(local.rpartition(":")[2], 16), state, int(queues.partition(":")[0], 16), inode


def close_idle_connections(pid: int, ports: set[int]) -> None:
    """End the input of each HTTP connection of the server that waits for another request.

    pidfd_getfd copies the sockets from the server, our child. Where that is not allowed nothing happens, and Triton
    waits for these connections until its exit timeout.
    """
    with contextlib.suppress(OSError):
        process = os.pidfd_open(pid)
        try:
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if entry.readlink().name.startswith("socket:"):
                        close_if_idle(process, int(entry.name), ports)
        finally:
            os.close(process)


def close_if_idle(process: int, number: int, ports: set[int]) -> None:
    """End the input of a socket of a process if it is an idle connection to one of the ports."""
    fd = ctypes.CDLL(None).syscall(SYS_PIDFD_GETFD, process, number, 0)
    if fd >= 0:
        with socket.socket(fileno=fd) as connection:
            here = connection.family == socket.AF_INET and connection.getsockname()[1] in ports
            if here and idle(connection):
                connection.shutdown(socket.SHUT_RD)


def idle(connection: socket.socket) -> bool:
    """Return whether the server sent the last data on a connection, completely and IDLE_SECONDS ago or more."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    established = info[0] == 1
    (sent_ms,), (received_ms,) = struct.unpack_from("=I", info, 44), struct.unpack_from("=I", info, 52)
    (unsent,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
    return established and unsent == 0 and IDLE_SECONDS * 1000 <= sent_ms <= received_ms
