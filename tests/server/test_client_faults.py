"""The clients behind a network that fails: the right mask or the right error, in time, and later calls work."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Literal

import pytest
from drivers import Driver, Kind, connected
from triton_process import TritonProcess, wait_until

from benchmarks import toy
from benchmarks.proxy import Fault, Proxy
from deeplab_client import (
    DeadlineExceededError,
    RetryAttempt,
    RetryPolicy,
    Segmentation,
    SegmentationError,
    ServerUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.server

Scheme = Literal["grpc", "http"]
SCHEMES: tuple[Scheme, ...] = ("grpc", "http")
KINDS: tuple[Kind, ...] = ("sync", "async")

TIMEOUT = 1.5
GRACE = 3.0  # seconds; 0.5 is enough on an idle machine, but a busy one wakes threads late
PICTURE = toy.Picture(5, 300, 400)
BRISK = RetryPolicy(2, first_delay=0.1)


@pytest.fixture(params=["grpc", "http"])
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture
def proxy(toy_server: TritonProcess, scheme: Scheme) -> Iterator[Proxy]:
    with Proxy(address_of(toy_server, scheme)) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: Proxy, scheme: Scheme, kind: Kind) -> Iterator[Driver]:
    with connected(kind, f"{scheme}://{proxy.address}", timeout=20, retries=BRISK) as client:
        assert PICTURE.is_mask(client.segment(PICTURE.ppm()).mask)
        yield client


def address_of(server: TritonProcess, scheme: Scheme) -> str:
    return server.grpc_url if scheme == "grpc" else server.http_url


def outcome(client: Driver, timeout: float = TIMEOUT) -> SegmentationError | Segmentation:
    """Return the outcome of a call, after checking that it came in time and is not wrong."""
    start = time.monotonic()
    try:
        result = client.segment(PICTURE.ppm(), timeout=timeout)
    except SegmentationError as error:
        assert time.monotonic() - start < timeout + GRACE
        return error
    assert time.monotonic() - start < timeout + GRACE
    assert PICTURE.is_mask(result.mask)
    return result


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Fault("reset"), ServerUnavailableError),
        (Fault("reset", after=50_000), ServerUnavailableError),
        (Fault("half-close"), ServerUnavailableError),
        (Fault("half-close", after=50_000), ServerUnavailableError),
        (Fault("black hole"), DeadlineExceededError),
        (Fault("black hole", after=50_000), DeadlineExceededError),
    ],
    ids=str,
)
def test_a_broken_network_is_the_right_error_in_time_and_heals(
    proxy: Proxy, client: Driver, fault: Fault, expected: type[SegmentationError]
) -> None:
    proxy.fault = fault
    assert type(outcome(client)) is expected
    proxy.fault = None
    client.wait_until_ready(timeout=10)
    assert isinstance(outcome(client, 10), Segmentation)


def test_the_server_stopped_listening(proxy: Proxy, client: Driver) -> None:
    proxy.refuse()
    assert type(outcome(client)) is ServerUnavailableError
    assert not client.is_ready(timeout=1)
    proxy.listen()
    client.wait_until_ready(timeout=10)
    assert isinstance(outcome(client, 10), Segmentation)


@pytest.mark.parametrize("after", [0, 50_000])
def test_a_fault_that_passes_is_retried(proxy: Proxy, scheme: Scheme, kind: Kind, after: int) -> None:
    seen: list[RetryAttempt] = []

    def heal(attempt: RetryAttempt) -> None:
        seen.append(attempt)
        proxy.fault = None

    address = f"{scheme}://{proxy.address}"
    with connected(kind, address, timeout=20, retries=RetryPolicy(8, first_delay=0.5), on_retry=heal) as client:
        client.segment(PICTURE.ppm())
        assert seen == []
        proxy.fault = Fault("reset", after)
        assert PICTURE.is_mask(client.segment(PICTURE.ppm()).mask)
    # gRPC pauses after a lost connection, so an early retry fails during that pause.
    assert [attempt.number for attempt in seen] == list(range(1, len(seen) + 1))
    assert {type(attempt.error) for attempt in seen} == {ServerUnavailableError}


def test_a_slow_network_is_waited_for_within_the_deadline(proxy: Proxy, client: Driver) -> None:
    proxy.rate = 2_000_000  # 360 kB up, 120 kB down
    assert isinstance(outcome(client, 10), Segmentation)
    proxy.rate = 60_000
    assert type(outcome(client)) is DeadlineExceededError


def test_a_server_that_is_killed_under_load_and_replaced(
    toy_server: TritonProcess, toy_repository: Path, tmp_path: Path
) -> None:
    doomed = TritonProcess(toy_repository, log=tmp_path / "serve.log")
    with doomed, contextlib.ExitStack() as stack:
        proxies: dict[Scheme, Proxy] = {
            scheme: stack.enter_context(Proxy(address_of(doomed, scheme))) for scheme in SCHEMES
        }
        loads = [stack.enter_context(load(scheme, kind, proxies[scheme])) for scheme in SCHEMES for kind in KINDS]
        for each in loads:
            each.await_right(50)
        doomed.triton.kill()
        for each in loads:
            wait_until(lambda each=each: each.errors, what="an error")
        for scheme, proxy in proxies.items():
            proxy.upstream = address_of(toy_server, scheme)
        for each in loads:
            each.await_right(100)
            assert {type(error) for error in each.errors} == {ServerUnavailableError}
        doomed.wait()


class Load:
    """Calls without end, from several threads."""

    def __init__(self, client: Driver) -> None:
        self.errors: list[SegmentationError] = []
        self._client = client
        self._right = 0
        self._enough = threading.Event()

    def await_right(self, count: int) -> None:
        """Return after that many more right masks."""
        goal = self._right + count
        wait_until(lambda: self._right >= goal, what=f"{count} right masks")

    def run(self) -> None:
        while not self._enough.is_set():
            end = outcome(self._client, 5)
            if isinstance(end, SegmentationError):
                self.errors.append(end)
            else:
                self._right += 1

    def stop(self) -> None:
        self._enough.set()


@contextlib.contextmanager
def load(scheme: Scheme, kind: Kind, proxy: Proxy) -> Generator[Load]:
    with connected(kind, f"{scheme}://{proxy.address}", retries=BRISK) as client, ThreadPoolExecutor(4) as pool:
        running = Load(client)
        threads = [pool.submit(running.run) for _ in range(4)]
        try:
            yield running
        finally:
            running.stop()
        for thread in threads:
            thread.result(30)
