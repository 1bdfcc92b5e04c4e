"""Two servers as pods of one Service: different addresses, the same ports, and a name for those that are ready."""

from __future__ import annotations

import socket
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import psutil
from name_server import NameServer
from triton_process import TritonProcess, wait_until

from deeplabv3.embedded import checks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path
    from types import TracebackType

ADDRESSES = ("127.0.0.1", "127.0.0.2")
MODEL = "segment_resnet50"


class Pods:
    """The servers, by address, and the name server that knows them.

    Attributes:
        names: Says which of them get new requests.
        running: Those that run.

    Args:
        model_repository: What they serve.
        folder: Gets their logs.
        options: For tritonserver.
    """

    def __init__(self, model_repository: Path, *, folder: Path, options: Sequence[str]) -> None:
        self._repository = model_repository
        self._folder = folder
        self._options = options
        self.http, self.grpc, self._metrics = _common_ports(3)
        self._starts = 0
        self.running: dict[str, TritonProcess] = {}
        self.names = NameServer(ADDRESSES)

    def start(self) -> None:
        """Start all stopped servers simultaneously, and add them to the name."""
        missing = [address for address in ADDRESSES if address not in self.running]
        with ThreadPoolExecutor(len(ADDRESSES)) as pool:
            for address, server in zip(missing, pool.map(self._start, missing), strict=True):
                self.running[address] = server
        self.names.addresses = ADDRESSES

    def stop(self) -> None:
        """Stop all running servers simultaneously, and check that they leave nothing behind."""
        for server in self.running.values():
            server.process.terminate()
        with ThreadPoolExecutor(len(ADDRESSES)) as pool:
            list(pool.map(_check_end, self.running.values()))
        self.running.clear()

    def answered(self) -> dict[str, int]:
        """Return the number of requests that each server has answered since it started."""
        return {address: answered_by(self.running[address]) for address in ADDRESSES if address in self.running}

    def shares(self, before: dict[str, int], count: int) -> list[int]:
        """Wait for a number of answers, because Triton counts after it answers; return those of each server."""

        def since() -> list[int]:
            return [number - before[address] for address, number in self.answered().items()]

        wait_until(lambda: sum(since()) >= count, what=f"{count} requests in the statistics")
        return since()

    def connections(self, address: str) -> int:
        """Return the number of a server's connections that can carry gRPC requests."""
        here = (address, self.grpc)
        found = psutil.Process(self.running[address].triton.pid).net_connections("tcp")
        return sum(each.laddr == here and each.status == psutil.CONN_ESTABLISHED for each in found)

    def _start(self, address: str) -> TritonProcess:
        self._starts += 1
        ports = {"--http-port": self.http, "--grpc-port": self.grpc, "--metrics-port": self._metrics}
        given = [word for option, port in ports.items() for word in (option, str(port))]
        log = self._folder / f"{address}-{self._starts}.log"
        return TritonProcess(self._repository, log=log, options=["--host", address, *given, "--", *self._options])

    def __enter__(self) -> Pods:  # noqa: PYI034 - typing.Self needs Python 3.11
        self.names.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            for server in self.running.values():
                server.kill()
            self.names.__exit__(kind, error, trace)


def _common_ports(count: int) -> list[int]:
    """Return ports that are free at all addresses, below the range from which the kernel assigns ports."""
    ports: list[int] = []
    for port in checks.free_ports(ADDRESSES[0], set()):
        with socket.socket() as probe:
            if probe.connect_ex((ADDRESSES[1], port)):  # the port is free
                ports.append(port)
        if len(ports) == count:
            break
    return ports


def _check_end(server: TritonProcess) -> None:
    with server:  # at the end it waits, and checks for leftovers
        assert server.wait() == 0


def answered_by(server: TritonProcess) -> int:
    """Return the number of ensemble requests that a server has answered since it started."""
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:  # noqa: S310 - http, see serve.py
        lines = response.read().decode().splitlines()
    start = f'nv_inference_request_success{{model="{MODEL}"'
    return int(next(line for line in lines if line.startswith(start)).split()[-1])
