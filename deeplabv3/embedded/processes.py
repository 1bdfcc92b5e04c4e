"""Triton's Python stubs, its open connections and the files of a server, as /proc and the kernel show them."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import re
import shutil
import signal
import socket
import struct
import tempfile
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deeplabv3.embedded.checks import STUB

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where the Python backend keeps its files, not a temporary file
OWNER = re.compile(r"deeplab-(\d+)-(\d+)-(\d+)_")
REST_SECONDS = 0.25
SYS_PIDFD_GETFD = 438


@dataclass(frozen=True, slots=True)
class Stat:
    """What the kernel says of a process.

    Attributes:
        state: one letter, such as Z for one that ended and waits for its parent.
        parent: the process id of that.
        start: when it started, in clock ticks since boot: with the process id, it names one process for good.
        exit_code: of one that ended, as wait(2) gives it.
    """

    state: str
    parent: int
    start: str
    exit_code: int


def read_stat(pid: int | str) -> Stat:
    """Return what the kernel says of a process, or raise OSError where there is none."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return Stat(words[0], int(words[1]), words[19], int(words[49]))


def namespace() -> int:
    """Return the id of the namespace in which our process ids mean something: containers may share /dev/shm."""
    return Path("/proc/self/ns/pid").stat().st_ino


def own_prefix() -> str:
    """Return the prefix of all files of this server, which tells later servers whether it still runs."""
    return f"deeplab-{namespace()}-{os.getpid()}-{read_stat(os.getpid()).start}_"


def sweep(prefix: str | None = None) -> None:
    """Remove the stubs and files of the server with this prefix, or of all servers that are dead."""

    def dead(name: str) -> bool:
        if prefix is not None:
            return name.startswith(prefix)
        owner = OWNER.match(name)
        if owner is None or int(owner[1]) != namespace():
            return False
        try:
            return read_stat(owner[2]).start != owner[3]
        except OSError:
            return True

    for pid, (region, _) in stubs().items():
        if dead(region):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    for folder in (SHARED_MEMORY, Path(tempfile.gettempdir())):
        for path in folder.glob("deeplab-*"):
            if dead(path.name):
                with contextlib.suppress(OSError):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def stubs() -> dict[int, tuple[str, str]]:
    """Return pid -> (shared memory region, model instance) of all running Python stubs on this machine."""
    found = {int(process.name): as_stub(process.name) for process in Path("/proc").glob("[0-9]*")}
    return {pid: stub for pid, stub in found.items() if stub is not None}


def as_stub(pid: int | str) -> tuple[str, str] | None:
    """Return the shared memory region and the model instance of a process that is a Python stub."""
    with contextlib.suppress(OSError):
        # The stub's arguments: model.py, region, two sizes, server's pid, backend folder, number, instance, ...
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if words[0].endswith(STUB) and len(words) > 8:  # noqa: PLR2004 - see the line above
            return words[2], words[8]
    return None


def children(parent: int) -> Iterator[tuple[int, Stat]]:
    """Yield the processes that a process has started, also those that have ended until it reaps them."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (stat := read_stat(process.name)).parent == parent:
                yield int(process.name), stat


def resting_stubs(prefix: str) -> set[tuple[int, str]] | None:
    """Return (pid, context switches) of each stub when all wait for work, else None.

    A stub at rest waits on a futex that lies in its own shared memory region. Two equal answers mean that no stub
    had any work in between.
    """
    resting: set[tuple[int, str]] = set()
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
            resting.add((pid, status.partition("nvoluntary_ctxt")[0].rpartition(":")[2]))
    return resting


def close_idle_connections(pid: int, ports: set[int]) -> None:
    """Make the server see the end of input on each HTTP connection that waits for a next request.

    The sockets are taken from the server, our child, with pidfd_getfd. Where that is not allowed nothing happens,
    and Triton waits for these connections until its exit timeout.
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
    """End the input of one socket of a process when it is an idle connection to one of the ports."""
    fd = ctypes.CDLL(None).syscall(SYS_PIDFD_GETFD, process, number, 0)
    if fd >= 0:
        with socket.socket(fileno=fd) as connection:
            here = connection.family == socket.AF_INET and connection.getsockname()[1] in ports
            if here and idle(connection):
                connection.shutdown(socket.SHUT_RD)


def idle(connection: socket.socket) -> bool:
    """Tell whether the last word on a connection was the server's, some time ago and fully sent."""
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
    established = info[0] == 1
    (sent_ms,), (received_ms,) = struct.unpack_from("=I", info, 44), struct.unpack_from("=I", info, 52)
    (unsent,) = struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)))
    return established and unsent == 0 and REST_SECONDS * 1000 <= sent_ms <= received_ms
