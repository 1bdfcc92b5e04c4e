"""Triton's Python stubs and the files of a server, from /proc."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deeplabv3.embedded.checks import STUB

if TYPE_CHECKING:
    from collections.abc import Iterator

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the Python backend keeps its files there
OWNER = re.compile(r"deeplab-(\d+)-(\d+)-(\d+)_")


@dataclass(frozen=True, slots=True)
class Stat:
    """The state of a process in /proc.

    Attributes:
        state: one letter, such as Z for a process that has ended and waits for its parent.
        parent: the process id of its parent.
        start: its start in clock ticks since boot, which with the process id identifies a process.
        exit_code: the status of wait(2), for a process that has ended.
    """

    state: str
    parent: int
    start: str
    exit_code: int


def read_stat(pid: int | str) -> Stat:
    """Return the state of a process; raise OSError if there is no such process."""
    words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return Stat(words[0], int(words[1]), words[19], int(words[49]))


def namespace() -> int:
    """Return the id of the namespace of our process ids, because containers may share /dev/shm."""
    return Path("/proc/self/ns/pid").stat().st_ino


def own_prefix() -> str:
    """Return the prefix of all files of this server, from which later servers see whether it still runs."""
    return f"deeplab-{namespace()}-{os.getpid()}-{read_stat(os.getpid()).start}_"


def sweep(prefix: str | None = None) -> None:
    """Kill the stubs and remove the files of the server with this prefix, or of all servers that have ended."""

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
    """Return (shared memory region, model instance) by pid of all running Python stubs on this machine."""
    found = {int(process.name): as_stub(process.name) for process in Path("/proc").glob("[0-9]*")}
    return {pid: stub for pid, stub in found.items() if stub is not None}


def as_stub(pid: int | str) -> tuple[str, str] | None:
    """Return the shared memory region and the model instance of a Python stub; None for other processes."""
    with contextlib.suppress(OSError):
        # The stub's arguments: model.py, region, two sizes, server's pid, backend folder, number, instance, ...
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        if words[0].endswith(STUB) and len(words) > 8:  # noqa: PLR2004 - see the line above
            return words[2], words[8]
    return None


def children(parent: int) -> Iterator[tuple[int, Stat]]:
    """Yield the child processes of a process, including ended ones that it has not reaped."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (stat := read_stat(process.name)).parent == parent:
                yield int(process.name), stat
