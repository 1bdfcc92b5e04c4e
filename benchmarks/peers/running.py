"""A server that runs: its processes, wherever in the tree they are, what they use, and their end."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, TypeVar

import psutil

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path

Figure = TypeVar("Figure", int, float)

# Every process of a server inherits it, also one that leaves the process group or outlives its parent.
MARKER = "PEER_RUN"
SAMPLE_SECONDS = 1.0


def end_in_order() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that no server stays behind.

    A shell lets its background jobs ignore SIGINT, and so would the servers, which are stopped with it.
    """

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, stop)


class Running:
    """A server from its start to its end; as a context manager it leaves no process behind.

    Args:
        command: what starts it.
        environment: variables to add to ours.
        folder: its working directory; it gets the log, `server.log`.
        stop: the signal at which the server stops in an orderly way.
        patience: seconds for each step of its end.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        folder: Path,
        stop: signal.Signals,
        patience: float = 20.0,
    ) -> None:
        self._patience = patience
        self._token = secrets.token_hex(8)
        self._stop = stop
        self._log = folder / "server.log"
        with self._log.open("wb") as log:
            # A session of its own: Ctrl-C reaches us alone, and we stop the server.
            self._process = subprocess.Popen(  # noqa: S603  what contenders.py says
                command,
                cwd=folder,
                env={**os.environ, **environment, MARKER: self._token},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Running:  # noqa: PYI034  typing.Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def exit_code(self) -> int | None:
        """Return the exit code of the process that was started, None while it runs."""
        return self._process.poll()

    def log_tail(self, lines: int = 30) -> str:
        """Return the end of the log."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def processes(self) -> list[psutil.Process]:
        """Return what runs of this server."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARKER) == self._token and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def _sum(self, figure: Callable[[psutil.Process], Figure]) -> Figure | int:
        total = 0
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                total += figure(process)
        return total

    def memory(self) -> int:
        """Return the bytes that it takes: its proportional set size, so that shared memory counts once."""
        return int(self._sum(lambda process: process.memory_full_info().pss))

    def processor_seconds(self) -> float:
        """Return the processor time that its processes have taken."""
        return float(self._sum(lambda process: sum(process.cpu_times()[:2])))

    @contextlib.contextmanager
    def peak_memory(self) -> Generator[list[int]]:
        """Sample the memory for as long as the context lasts; the list has the samples."""
        samples: list[int] = [self.memory()]
        done = threading.Event()

        def sample() -> None:
            while not done.wait(SAMPLE_SECONDS):
                samples.append(self.memory())

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield samples
        finally:
            done.set()
            thread.join()

    def stop(self) -> None:
        """Ask the server to stop, then whatever it has left, then end what is still there."""
        if self._process.poll() is None:
            self._process.send_signal(self._stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(self._patience)
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in self.processes():
                with contextlib.suppress(psutil.Error):
                    end(process)
            deadline = time.monotonic() + self._patience
            while self.processes() and time.monotonic() < deadline:
                time.sleep(0.1)
        self._process.wait()
