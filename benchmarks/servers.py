"""Start and stop model servers, and measure the CPU time and memory of all their processes."""

from __future__ import annotations

import contextlib
import http.client
import os
import secrets
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil

from benchmarks.load import Picture, Wire
from deeplabv3.embedded.launch import LaunchError, RunningServer

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence

Amount = TypeVar("Amount", int, float)

START_SECONDS = 120.0
# All processes of a server inherit this variable, even after they left the process group or outlived their parent.
_MARKER = "BENCHMARK_SERVER"
_SAMPLE_SECONDS = 1.0


class Processes:
    """The processes of one server.

    Attributes:
        variables: environment variables by which they are found.
    """

    def __init__(self) -> None:
        self.variables = {_MARKER: secrets.token_hex(8)}

    def all(self) -> list[psutil.Process]:
        """Return the running ones."""
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                marked = process.environ().get(_MARKER) == self.variables[_MARKER]
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def sum(self, amount: Callable[[psutil.Process], Amount]) -> Amount | int:
        """Return the sum of an amount over all of them."""
        total = 0
        for process in self.all():
            with contextlib.suppress(psutil.Error):
                total += amount(process)
        return total

    def memory(self) -> int:
        """Return their memory in bytes: the proportional set size, so that shared memory counts once."""
        return int(self.sum(lambda process: process.memory_full_info().pss))

    def processor_seconds(self) -> float:
        """Return their CPU time in seconds."""
        return float(self.sum(lambda process: sum(process.cpu_times()[:2])))

    @contextlib.contextmanager
    def peak_memory(self) -> Generator[list[int]]:
        """Sample the memory until the end of the context; the list has the samples."""
        samples = [self.memory()]
        done = threading.Event()

        def sample() -> None:
            while not done.wait(_SAMPLE_SECONDS):
                samples.append(self.memory())

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield samples
        finally:
            done.set()
            thread.join()

    def end(self, patience: float) -> None:
        """End the processes that still run, with SIGTERM first, waiting `patience` seconds after each signal."""
        for end in (psutil.Process.terminate, psutil.Process.kill):
            deadline = time.monotonic() + patience
            for process in self.all():
                with contextlib.suppress(psutil.Error):
                    end(process)
            while self.all() and time.monotonic() < deadline:
                time.sleep(0.1)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server.

    Attributes:
        name: in the results.
        wire: URL and format of its requests.
        pictures: to send.
        processes: its processes.
        start: seconds until its first mask.
        is_triton: whether it has Triton's statistics.
    """

    name: str
    wire: Wire
    pictures: Sequence[Picture]
    processes: Processes
    start: float
    is_triton: bool = False


@contextlib.contextmanager
def triton(
    repository: Path,
    ensemble: str,
    pictures: Sequence[Picture],
    *,
    name: str = "Triton",
    environment: Mapping[str, str] | None = None,
    start_seconds: float = START_SECONDS,
    log: Path | None = None,
) -> Generator[Server]:
    """Start the embedded server with a model repository, as in the README.

    Raises:
        LaunchError: the server does not start, or does not answer.
    """
    processes = Processes()
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="triton-") as folder,
        RunningServer(
            repository,
            log=log or Path(folder, "server.log"),
            environment={**processes.variables, **(environment or {})},
            start_seconds=start_seconds,
        ) as running,
    ):
        wire = Wire(f"http://{running.http_url}/v2/models/{ensemble}/infer", tensors=True)
        _wait_mask(wire, pictures, running.process, running.log_tail)
        yield Server(name, wire, pictures, processes, time.monotonic() - began, is_triton=True)


@contextlib.contextmanager
def started(
    name: str,
    command: Sequence[str],
    wire: Wire,
    pictures: Sequence[Picture],
    *,
    environment: Mapping[str, str],
    folder: Path,
    patience: float = 20.0,
) -> Generator[Server]:
    """Start another server; at the end of the context all its processes have ended.

    Args:
        name: in the results.
        command: starts the server; SIGTERM stops it.
        wire: URL and format of its requests.
        pictures: to send.
        environment: variables in addition to those of this process.
        folder: its working directory, which also gets the log, `server.log`.
        patience: seconds for each step of stopping it.

    Raises:
        LaunchError: the server ends, or does not answer with a mask.
    """
    processes, log, began = Processes(), folder / "server.log", time.monotonic()

    def log_tail() -> str:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])

    with log.open("wb") as file:
        # A separate session, so that Ctrl-C reaches only this process, which stops the server.
        process = subprocess.Popen(  # noqa: S603 - a command of benchmarks/peers
            command,
            cwd=folder,
            env={**os.environ, **environment, **processes.variables},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        _wait_mask(wire, pictures, process, log_tail)
        yield Server(name, wire, pictures, processes, time.monotonic() - began)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
        processes.end(patience)
        process.wait()


def _wait_mask(
    wire: Wire, pictures: Sequence[Picture], process: subprocess.Popen[bytes], log_tail: Callable[[], str]
) -> None:
    """Wait for the first mask. If no server has answered a picture before, its mask becomes the expected one."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            mask = wire.ask(pictures[0].image.read_bytes())
            break
        except (OSError, http.client.HTTPException) as error:
            if process.poll() is not None:
                raise LaunchError(f"the server ended with exit code {process.returncode}:\n{log_tail()}") from error
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"the server returned no mask in {START_SECONDS:g} s: {error!r}\n{log_tail()}"
                ) from error
            time.sleep(0.1)
    for number, picture in enumerate(pictures):
        if not picture.mask.exists():
            picture.mask.write_bytes(mask if number == 0 else wire.ask(picture.image.read_bytes()))
