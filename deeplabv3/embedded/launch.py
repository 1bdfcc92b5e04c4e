"""Start serve.py and wait until it is ready: the only launcher for the demo, load tests, benchmarks and tests."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

SERVE = Path(__file__).resolve().parents[2] / "serve.py"
# As deeplabv3.embedded.checks.Address.ready_line writes it.
READY = re.compile(r"READY grpc://(\S+) http://(\S+) (http://\S+/metrics)\n")


class LaunchError(RuntimeError):
    """The server did not become ready; the message ends with the last lines of its log."""


class RunningServer:
    """A serve.py on free ports that is ready; as a context manager it is stopped at the end.

    Attributes:
        grpc_url: host and port of the gRPC service, without a scheme.
        http_url: host and port of the HTTP service, without a scheme.
        metrics_url: URL of the metrics.
        process: serve.py itself.
        log: the file with the log of serve.py and of Triton.

    Args:
        model_repository: the models to serve.
        log: the file for stderr, including Triton's log.
        options: further arguments of serve.py.
        environment: variables to add to those of this process.
        start_seconds: how long the models may take to load.
        stop_seconds: how long serve.py may take to stop, at the end of the context.
        before: words to put before the command, such as those of a wrapper that forwards SIGTERM and returns the exit
            code of serve.py.
        python: the interpreter.

    Raises:
        LaunchError: the server ended or was not ready in time; none of its processes runs then.
    """

    def __init__(
        self,
        model_repository: Path,
        *,
        log: Path,
        options: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        start_seconds: float = 300.0,
        stop_seconds: float = 60.0,
        before: Sequence[str] = (),
        python: str = sys.executable,
    ) -> None:
        self.log = log
        self._stop_seconds = stop_seconds
        serve = [python, str(SERVE), "--model-repository", str(model_repository)]
        ports = ["--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
        with log.open("wb") as stderr:
            # In a separate session, because Ctrl-C must reach only us; we then stop the server in order.
            self.process = subprocess.Popen(  # noqa: S603 - our own script
                [*before, *serve, *ports, *options],
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )
        try:
            self.grpc_url, self.http_url, self.metrics_url = self._wait_ready(start_seconds)
        except BaseException:
            self.kill()
            raise

    def _wait_ready(self, seconds: float) -> tuple[str, str, str]:
        assert self.process.stdout is not None  # noqa: S101 - for the type checker, because it is a pipe
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(seconds):
                raise LaunchError(f"serve.py is not ready after {seconds:g} s; {self._log_ends()}")
        line = self.process.stdout.readline().decode()
        if (found := READY.fullmatch(line)) is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)
            said = f" and printed {line!r}" if line else ""
            raise LaunchError(f"serve.py ended with exit code {self.process.returncode}{said}; {self._log_ends()}")
        return found[1], found[2], found[3]

    def _log_ends(self) -> str:
        return f"{self.log} ends with\n{self.log_tail(20)}"

    def log_tail(self, lines: int = 40) -> str:
        """Return the last lines of the log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def stop(self) -> int:
        """Stop the server as its user would, with SIGTERM; return the exit code of serve.py.

        A server that has not ended after `stop_seconds` is killed. A Ctrl-C in the meantime ends the wait for requests
        in flight, as a second signal does.
        """
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(self._stop_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
        except KeyboardInterrupt:
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGINT, signal.SIG_IGN)
            self.process.terminate()
            self.process.wait()
            raise
        return self.process.returncode

    def kill(self) -> None:
        """Kill serve.py; its tritonserver ends with it."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def __enter__(self) -> RunningServer:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self.kill()
