"""Detect when tritonserver or one of its stubs is paused or dies, which Triton itself does not.

The Python backend waits 1 s for a stub, fails the request, and reuses its memory for the next one. A stub that was
stopped, or whose server was, answers later, into memory that then belongs to another request: callers got the masks of
other pictures. So a server that was paused must not continue.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass
from pathlib import Path

from deeplabv3.embedded.errors import StartError
from deeplabv3.embedded.processes import Stat, as_stub, children, read_stat

# A stop is reported when it is seen twice, which takes half of the time that the backend waits.
SAMPLE_SECONDS = 0.25
# How much longer than requested we may sleep. A pause of 1 s exceeds it, wherever in a sleep it begins. Time spent
# waiting for a CPU does not count, so a busy machine does not exceed it: beside 2 to 24 busy processes, with a quota of
# a fifth of a core or more for all, we woke up to 1.1 s late and lost at most 0.06 s of that; 0.2 s with a quota of a
# tenth of a core.
LOST_SECONDS = 0.7
# Triton reaps finished stubs, such as those that complete a model's config, within milliseconds.
UNREAPED_SECONDS = 3.0


class PausedError(Exception):
    """A process was paused; the message names it and says what to do instead."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}, so the server was killed, because a paused server may return one caller's result to another; do "
            "not pause it (SIGSTOP, docker pause, a suspended machine): stop it and start it again"
        )


@dataclass(frozen=True, slots=True)
class Instant:
    """A point in time, and how long this process had run or been ready to run until then, both in seconds."""

    seconds: float
    ready: float

    @classmethod
    def now(cls) -> Instant:
        """Return the present, on a clock that continues while the machine is suspended."""
        seconds = time.clock_gettime(time.CLOCK_BOOTTIME)
        try:
            ran, waited, _ = Path("/proc/self/schedstat").read_text(encoding="ascii").split()
        except OSError:  # a kernel without these counts: no time ever counts as lost
            return cls(seconds, seconds)
        return cls(seconds, (int(ran) + int(waited)) / 1e9)

    def lost_since(self, earlier: Instant, *, asleep: float) -> float:
        """Return the seconds in which this process neither ran, nor waited for a CPU, nor slept as intended."""
        return self.seconds - earlier.seconds - (self.ready - earlier.ready) - asleep


class Watch:
    """Watches tritonserver and its stubs in /proc.

    Args:
        server: the process id of tritonserver.
    """

    def __init__(self, server: int) -> None:
        self._server = server
        self._stubs: dict[int, Stub] = {}
        self._ended: dict[int, float] = {}
        self._stopped: dict[int, str] = {}

    def find_stubs(self) -> bool:
        """Record the stubs that run now and return whether none has ended; raise StartError if one stays unreaped.

        A stub that has ended is either finished, and Triton reaps it, or it died before we knew that it was a stub.
        """
        now = time.monotonic()
        found = dict(children(self._server))
        self._ended = {pid: self._ended.get(pid, now) for pid, stat in found.items() if stat.state == "Z"}
        for pid, since in self._ended.items():
            if now - since > UNREAPED_SECONDS:
                raise StartError(self._describe_death(pid, found[pid]))
        for pid in found.keys() - self._stubs.keys():
            if stub := as_stub(pid):
                self._stubs[pid] = Stub(stub[1], found[pid].start)
        self._stubs = {pid: stub for pid, stub in self._stubs.items() if pid in found}
        return not self._ended

    def _describe_death(self, pid: int, stat: Stat) -> str:
        who = f"the Python stub {self._stubs[pid].instance}" if pid in self._stubs else "a Python stub"
        code = stat.exit_code
        how = f"signal {signal.Signals(code & 127).name}" if code & 127 else f"exit code {code >> 8}"
        return f"{who} ended with {how} while its model was loading; see the log above for the reason"

    def dead_stub(self) -> str | None:
        """Return the model instance of a stub that has ended, or None."""
        return next((stub.instance for pid, stub in self._stubs.items() if not stub.runs(pid)), None)

    def raise_if_stopped(self) -> None:
        """Raise PausedError if the server or a stub was stopped at the last call too and has not run in between."""
        names = {self._server: "tritonserver"} | {pid: f"the stub {stub.instance}" for pid, stub in self._stubs.items()}
        stopped = {pid: runs for pid in names if (runs := runs_until_stop(pid)) is not None}
        paused = [names[pid] for pid, runs in stopped.items() if self._stopped.get(pid) == runs]
        self._stopped = stopped
        if paused:
            others = f" and {len(paused) - 1} more of its processes were" if paused[1:] else " was"
            raise PausedError(f"{paused[0]}{others} stopped by a signal or a debugger")


@dataclass(frozen=True, slots=True)
class Stub:
    """A stub: its model instance, and its start time, which with its pid identifies it."""

    instance: str
    start: str

    def runs(self, pid: int) -> bool:
        """Return whether the stub with this pid still runs."""
        try:
            stat = read_stat(pid)
        except OSError:
            return False
        return stat.state not in "ZX" and stat.start == self.start


def runs_until_stop(pid: int) -> str | None:
    """Return the kernel's run counters of a process if a signal or a debugger has stopped it, else None."""
    try:
        if read_stat(pid).state not in "Tt":
            return None
        return Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii")
    except OSError:
        return None
