"""tritonserver as a child process, from its start to its end.

The behavior of tritonserver 2.51 on SIGTERM (measured), and what this module adds:

- It refuses new HTTP connections and waits until all existing ones are closed, while gRPC continues. An idle
  keep-alive connection lasts until the exit timeout; then the exit code is 1, and stubs and /dev/shm files stay behind.
  Addition: when the stubs are idle, idle HTTP connections are closed from outside (draining.py).
- Then all models stop at once. Requests in flight on a single model are answered, but a gRPC request to an ensemble
  fails if it has not entered its next step. Addition: an HTTP connection of our own keeps the server in its first phase
  until the stubs are idle, for at most DRAIN_SECONDS.

So a request that the server had before the signal is answered if it takes less than DRAIN_SECONDS. A later request over
an open connection may be answered or refused. A stop with nothing in flight takes 3 to 4 s with two stubs and 5 s or
more with seven, mostly Triton's own unloading.
"""

from __future__ import annotations

import contextlib
import ctypes
import http
import http.client
import os
import re
import secrets
import select
import selectors
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from deeplabv3.embedded.draining import close_idle_connections, idle_stubs, is_sending, listening_ports
from deeplabv3.embedded.errors import StartError
from deeplabv3.embedded.watching import LOST_SECONDS, SAMPLE_SECONDS, Instant, PausedError, Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deeplabv3.embedded.checks import Address

DRAIN_SECONDS = 30.0
EXIT_TIMEOUT_SECONDS = 40
# If a stub died during a request, 2.51 does not end before the exit timeout.
BROKEN_DRAIN_SECONDS = 3.0
LOAD_FAILURE = re.compile(r'E\d{4} .*\] "((?:failed to load|Poll failed for) .*)"$')
# The stubs count as idle after this many samples between which none of them ran. A stub wakes up now and then with
# nothing to do, so with seven stubs about every second sample counts.
IDLE_SAMPLE_SECONDS = 0.1
IDLE_SAMPLES = 3
# Triton unloads the models when all results are computed; gRPC may still send them to slow readers. A stub or an
# ensemble of 2.51 may never end after a request that failed because /dev/shm was full, or that its gRPC caller gave up,
# and on a busy machine each stub may take many seconds. Nothing is lost if this is cut short after the last reply:
# Triton would exit with 1 at its exit timeout.
UNLOAD_SECONDS = 10.0
UNLOADING = b"All models are stopped, unloading models"
PR_SET_PDEATHSIG = 1
REPEAT_SECONDS = 0.25
STALLED_SECONDS = 0.05
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Server:
    """A tritonserver process with its log, its stubs and our signals, all in one selector."""

    def __init__(
        self, command: list[str], *, variables: dict[str, str], signals: int, prefix: str, address: Address
    ) -> None:
        self._prefix = prefix
        self._address = address
        self._signals: list[tuple[float, int]] = []
        self._loading = True
        self._looked = 0.0
        self._awake = Instant.now()
        self._dead_stub = ""
        self._exited = False
        self._ending = False
        self._unloading = 0.0  # the time since which Triton unloads and sends no reply
        self._last_line = b""
        self._load_failures: list[str] = []
        self._fault = ""
        self._selector = selectors.DefaultSelector()
        self._listen(signals, self._note_signals)
        self._log, writer = os.pipe()
        os.set_blocking(self._log, False)
        parent = os.getpid()

        def die_with_parent() -> None:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os.kill(os.getpid(), signal.SIGKILL)

        # In a separate session, because Ctrl-C in a terminal must reach only us; we send the server one SIGTERM.
        self._process = subprocess.Popen(  # noqa: S603 - the wheel's own program
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=writer,
            stderr=writer,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 - this process has no threads
        )
        os.close(writer)
        self._listen(self._log, self._pass_log_on)
        self._listen(os.pidfd_open(self._process.pid), self._note_exit)
        self._watch = Watch(self._process.pid)

    def run(self) -> int:
        """Serve until a signal, the end of the server, a dead stub or a pause; return the exit code."""
        try:
            return self._serve()
        except (PausedError, StartError) as error:
            self._fault = str(error)
            return 1
        finally:
            self._process.kill()  # before anything else, so that a paused server cannot be continued
            self._process.wait()
            self._pass_log_on(self._log)
            if self._fault:  # the last line
                say(f"error: {self._fault}")

    def _serve(self) -> int:
        while not (is_ready(self._address) and self._listens() and self._watch.find_stubs()):
            self._awake = Instant.now()
            self._wait(time.monotonic() + 0.1)
            if self._exited:
                return self._exit_code()
            if self._signals:
                return 128 + self._signals[0][1]
        self._loading = False
        with contextlib.suppress(OSError):  # serve even if nobody reads it
            os.write(1, f"{self._address.ready_line()}\n".encode())
        while not (self._exited or self._signals or self._dead_stub):
            self._handle(SAMPLE_SECONDS)
        if self._exited:
            return self._exit_code()
        if self._signals:
            name = signal.Signals(self._signals[0][1]).name
            return self._drain(name, seconds=DRAIN_SECONDS, limit=EXIT_TIMEOUT_SECONDS + 15)
        cause = f"the Python stub {self._dead_stub} died, and Triton does not restart it"
        self._drain(cause, seconds=BROKEN_DRAIN_SECONDS, limit=2 * BROKEN_DRAIN_SECONDS)
        self._fault = f"{cause}; see the log above for the reason, and start the server again"
        return 1

    def _listens(self) -> bool:
        """Return whether the ports are the server's own: another process may have taken one since they were checked."""
        address = self._address
        try:
            return {address.http, address.grpc, address.metrics} <= listening_ports(self._process.pid)
        except PermissionError:  # a hardened /proc
            return True
        except OSError:  # it has ended
            return False

    def _drain(self, cause: str, *, seconds: float, limit: float) -> int:
        say(f"{cause}: stopping after the requests in flight are answered; another signal stops immediately")
        self._ending = True
        began = time.monotonic()
        hold = http.client.HTTPConnection(self._address.local, self._address.http, timeout=5)
        with contextlib.suppress(OSError, http.client.HTTPException):
            hold.request("GET", "/v2/health/live")
            hold.getresponse().read()
        self._process.terminate()
        self._awake = Instant.now()
        before, idle_samples = None, 0
        while not self._exited:
            self._wait(time.monotonic() + IDLE_SAMPLE_SECONDS)
            elapsed = time.monotonic() - began
            # One Ctrl-C may arrive twice, from the terminal and from a parent that forwards it.
            another = next((number for at, number in self._signals if at > began + REPEAT_SECONDS), None)
            if another is not None:
                return 128 + another
            if elapsed > limit:
                self._fault = f"tritonserver did not stop within {elapsed:.0f} s and was killed"
                return 1
            if self._unloading and is_sending(self._process.pid, self._address.grpc):
                self._unloading = time.monotonic()
            if self._unloading and time.monotonic() > self._unloading + UNLOAD_SECONDS:
                say(f"all requests are answered, but tritonserver still unloads after {UNLOAD_SECONDS:g} s; ending it")
                return 0
            now = idle_stubs(self._prefix)
            idle_samples = 0 if now is None else idle_samples + (now == before)
            before = now
            is_idle = idle_samples >= IDLE_SAMPLES
            if is_idle or elapsed > seconds:
                hold.close()
            if is_idle:
                close_idle_connections(self._process.pid, {self._address.http, self._address.metrics})
        return self._exit_code()

    def _exit_code(self) -> int:
        code = self._process.wait()
        self._pass_log_on(self._log)
        if self._last_line:  # it crashed within a line
            with contextlib.suppress(OSError):
                sys.stderr.write("\n")
        for failure in self._load_failures:
            say(f"error: {failure}")
        if code or not (self._signals or self._dead_stub):
            cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
            known = " and the known crashes in docs/serving.md, Errors" if code == -signal.SIGSEGV else ""
            say(f"error: tritonserver ended with {cause}; see its log above{known}")
        return 128 - code if code < 0 else code

    def _listen(self, fd: int, action: Callable[[int], None]) -> None:
        self._selector.register(fd, selectors.EVENT_READ, action)

    def _wait(self, until: float) -> None:
        """Handle events until a time; return early if the server ends."""
        while not self._exited:
            self._handle(until - time.monotonic())
            if time.monotonic() >= until:
                return

    def _handle(self, seconds: float) -> None:
        """Handle the next events; return after the given seconds if there are none."""
        asleep = min(max(0.0, seconds), SAMPLE_SECONDS)
        events = self._selector.select(asleep)
        now = Instant.now()
        if (lost := now.lost_since(self._awake, asleep=asleep)) > LOST_SECONDS:
            raise PausedError(f"serve.py did not run for {lost:.1f} s")
        self._awake = now
        for key, _ in events:
            key.data(key.fd)
        self._look()

    def _look(self) -> None:
        """Check the server and its stubs, at most once per SAMPLE_SECONDS."""
        if time.monotonic() < self._looked + SAMPLE_SECONDS:
            return
        self._looked = time.monotonic()
        self._watch.raise_if_stopped()
        if self._loading:
            self._watch.find_stubs()
        elif dead := self._watch.dead_stub():
            self._pass_log_on(self._log)  # the log says whether the server is ending
            if not self._ending:
                self._dead_stub = self._dead_stub or dead

    def _note_signals(self, fd: int) -> None:
        for number in os.read(fd, 64):
            if number == signal.SIGTSTP:
                say("Ctrl-Z is ignored, because a server must not be paused; press Ctrl-C to stop it")
            else:
                self._signals.append((time.monotonic(), number))

    def _note_exit(self, fd: int) -> None:
        self._selector.unregister(fd)
        self._exited = True

    def _pass_log_on(self, fd: int) -> None:
        """Copy the log to stderr, and remember its errors about models that do not load."""
        while stderr_takes_more():  # otherwise the log waits in its pipe, and signals and stubs are still handled
            try:
                chunk = os.read(fd, select.PIPE_BUF)
            except BlockingIOError:
                return
            if not chunk:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(fd)
                return
            with contextlib.suppress(OSError):  # a closed terminal must not end the drain
                sys.stderr.buffer.write(chunk)
                sys.stderr.buffer.flush()
            self._awake = Instant.now()  # a slow disk is no pause
            *lines, self._last_line = (self._last_line + chunk).split(b"\n")
            for line in lines:
                self._ending = self._ending or line.startswith(b"Signal (")  # another process stops tritonserver
                if UNLOADING in line:
                    self._unloading = time.monotonic()
                if found := LOAD_FAILURE.match(line.decode(errors="replace")):
                    self._load_failures.append(" ".join(found[1].replace("\\n", " ").split()))


def is_ready(address: Address) -> bool:
    """Return whether all models are ready and the metrics, which start last, are available."""
    for port, path in ((address.http, "/v2/health/ready"), (address.metrics, "/metrics")):
        connection = http.client.HTTPConnection(address.local, port, timeout=5)
        try:
            connection.request("GET", path)
            if connection.getresponse().status != http.HTTPStatus.OK:
                return False
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()
    return True


def catch_signals() -> int:
    """Return a file descriptor that yields the numbers of received signals to stop or to pause."""

    def ignore(_number: int, _frame: object) -> None:
        """Do nothing, because the wakeup descriptor reports the signal; with SIG_IGN it would not."""

    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    for number in (*STOP_SIGNALS, signal.SIGTSTP):
        signal.signal(number, ignore)
    return reader


def command_line(server: Path, repository: Path, backends: Path, prefix: str, address: Address) -> list[str]:
    """Return tritonserver's command: models are fixed at the start, and no API changes the server."""
    # The key is secret, because Triton has no other way to switch these interfaces off.
    restricted = f"shared-memory,model-repository,trace,logging:deeplab-key={secrets.token_hex()}"
    return [
        str(server / "bin" / "tritonserver"),
        f"--model-repository={repository}",
        "--model-control-mode=none",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={prefix}",
        f"--exit-timeout-secs={EXIT_TIMEOUT_SECONDS}",
        f"--http-restricted-api={restricted}",
        f"--grpc-restricted-protocol={restricted}",
        f"--http-address={address.host}",
        f"--grpc-address={address.host}",
        f"--metrics-address={address.host}",
        f"--http-port={address.http}",
        f"--grpc-port={address.grpc}",
        f"--metrics-port={address.metrics}",
    ]


def stderr_takes_more() -> bool:
    """Return whether PIPE_BUF bytes can be written to stderr, because a pipe that nobody reads must not block us."""
    return bool(select.select([], [2], [], STALLED_SECONDS)[1])


def say(message: str) -> None:
    """Write one line to stderr, or drop it if nobody reads."""
    with contextlib.suppress(OSError):
        if not stderr_takes_more():
            return
        sys.stderr.write(f"serve.py: {message}\n")
        sys.stderr.flush()
