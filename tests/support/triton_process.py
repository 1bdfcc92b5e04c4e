"""A server for a test, with known processes and checked cleanup."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import psutil

from deeplabv3.embedded.launch import SERVE, RunningServer

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping, Sequence
    from types import TracebackType

__all__ = ["FOLDERS", "SERVE", "Serving", "TritonProcess", "alive", "files_of", "wait_until"]

FOLDERS = (Path("/dev/shm"), Path(tempfile.gettempdir()))  # noqa: S108 - looked into, never written


def wait_until(condition: Callable[[], object], *, what: str, seconds: float = 30.0) -> None:
    """Wait until a condition holds; fail with `what` if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)


def alive(process: psutil.Process) -> bool:
    """Return whether a process still runs; a zombie does not, even if it is never reaped."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def files_of(pid: int) -> list[str]:
    """Return the files and folders that a serve.py has, or left, outside its own folder."""
    return [str(path) for folder in FOLDERS for path in folder.glob(f"deeplab-*-{pid}-*")]


class TritonProcess(RunningServer):
    """A running serve.py. The end of its context asserts that it leaves nothing behind.

    Args:
        model_repository: the models to serve.
        log: the file that gets stderr, Triton's log included.
        options: more arguments for serve.py.
        environment: variables to add to ours.
        before: words to put before the command; what they start passes SIGTERM on and ends with the code of serve.py.
        python: the interpreter.
    """

    def __init__(
        self,
        model_repository: Path,
        *,
        log: Path,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
        python: str = sys.executable,
    ) -> None:
        self._family: list[psutil.Process] = []
        super().__init__(
            model_repository, log=log, options=options, environment=environment, before=before, python=python
        )
        self.pid = self.process.pid
        self._family = psutil.Process(self.pid).children(recursive=True)
        names = {process: process.name() for process in self._family}
        self.triton = next(process for process in self._family if names[process] == "tritonserver")
        self.stubs = [process for process in self._family if names[process].startswith("triton_python")]

    def stub(self, model: str) -> psutil.Process:
        """Return the process of the first instance of a Python model."""
        return next(process for process in self.stubs if f"{model}_0_0" in process.cmdline())

    def rest_of_output(self) -> str:
        """Return the output on stdout after the ready line, once the process has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.read().decode()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal only to serve.py."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 60.0) -> int:
        """Return the exit code of serve.py when it ends."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"serve.py still runs after {seconds:g} s\n{self.log_tail()}") from None

    def left_behind(self) -> list[str]:
        """Return the leftovers of this server on the machine: processes, shared memory, temporary folders."""
        return [*map(str, filter(alive, self._family)), *files_of(self.process.pid)]

    def kill(self) -> None:
        """End all remaining processes and remove the leftovers, in any state."""
        family = set(self._family)
        with contextlib.suppress(psutil.NoSuchProcess):
            family |= set(psutil.Process(self.process.pid).children(recursive=True))
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        super().kill()

    def __enter__(self) -> TritonProcess:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            running = self.process.poll() is None
            code = self.stop()
            assert code == 0 or not running, f"serve.py ended with {code}"
            # A killed process needs a moment until it is gone.
            wait_until(lambda: not self.left_behind(), what=f"{self.left_behind()} gone", seconds=5)
        finally:
            self.kill()
            if "PYTEST_CURRENT_TEST" in os.environ:  # pytest shows the log if the test failed
                sys.stdout.write(f"The log of serve.py (pid {self.pid}) ends:\n{self.log_tail()}\n")


class Serving(Protocol):
    """Start a server on a model repository; it is stopped, and checked for leftovers, when the test ends."""

    def __call__(self, model_repository: Path, *options: str) -> TritonProcess: ...
