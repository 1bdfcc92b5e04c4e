"""Limits of this process and machine have their own error, and a batch waits for their release."""

from __future__ import annotations

import errno
import io
import os
import pickle
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import numpy as np
import pytest
from drivers import Kind, connected, python
from PIL import Image
from script_servers import GrpcServer, HttpServer, Script, Server, url

from deeplab_client import (
    TLS,
    ClientLimitError,
    ModelError,
    RetryPolicy,
    Segmentation,
    SegmentationClient,
    SegmentationError,
    ServerUnavailableError,
)
from deeplab_client._faults import CallContext, from_connection, from_grpc
from deeplab_client.testing import AsyncFakeTransport, FakeTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    Fail = Callable[[Any, str, Exception, int], None]

pytestmark = pytest.mark.unit

MASK = np.zeros((2, 2), np.uint8)
AT_ONCE = RetryPolicy(2, first_delay=0, longest_delay=0)
NUMBERS = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS, errno.EADDRNOTAVAIL]
MANY = 100

# The files of a folder, more at a time than there may be descriptors.
BATCH = """
import asyncio, collections, resource, sys
from pathlib import Path
from deeplab_client import AsyncSegmentationClient, SegmentationClient

url, folder, kind = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
images = sorted(Path(folder).iterdir())
if kind == "sync":
    with SegmentationClient(url, retries=0) as client:
        results = list(client.segment_many(images, concurrency=256))
else:
    async def collect():
        async with AsyncSegmentationClient(url, retries=0) as client:
            return [result async for result in client.segment_many(images, concurrency=256)]
    results = asyncio.run(collect())
print(collections.Counter(type(result).__name__ for result in results))
"""

# Calls while all descriptors except a few are in use, and again after they have been closed.
CALLS = """
import asyncio, os, resource, sys
from deeplab_client import AsyncSegmentationClient, ClientLimitError, SegmentationClient

url, *calls = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

def take_all_but(left):
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        for _ in range(left):
            os.close(taken.pop())
    return taken

async def use():
    for call in calls:
        kind, left = call.split()
        client = (SegmentationClient if kind == "sync" else AsyncSegmentationClient)(url, timeout=20, retries=0)
        async def segment():
            return client.segment(b"\\x05") if kind == "sync" else await client.segment(b"\\x05")
        taken = take_all_but(int(left))
        try:
            await segment()
        except ClientLimitError as error:
            print(error)
        for descriptor in taken:
            os.close(descriptor)
        assert (await segment()).mask.shape == (3, 5)
        await client.close() if kind == "async" else client.close()

asyncio.run(use())
"""


def run(code: str, *arguments: str) -> str:
    done = python(code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures with the size that the servers of these tests expect."""
    folder = tmp_path_factory.mktemp("pictures")
    file = io.BytesIO()
    Image.new("L", (ord("P"), 3)).save(file, "PPM")
    for number in range(MANY):
        (folder / f"{number}.pgm").write_bytes(file.getvalue())
    return folder


def test_a_batch_continues_at_the_limit_of_open_files(server: Server, kind: Kind, pictures: Path) -> None:
    assert run(BATCH, url(server), str(pictures), kind) == f"Counter({{'Segmentation': {MANY}}})\n"


def test_the_command_line_continues_at_the_limit_of_open_files(pictures: Path, tmp_path: Path) -> None:
    server = HttpServer(Script())
    command = f"ulimit -n 64; exec {sys.executable} -m deeplab_client segment {pictures} --concurrency 256 "
    command += f"--url {url(server)} --output {tmp_path}"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=120)
    server.stop()
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.overlay.png"))) == MANY


@pytest.mark.parametrize("calls", [("sync 2", "async 0"), ("async 2", "sync 0")])
def test_a_call_that_cannot_open_a_socket_fails_and_the_next_one_works(server: Server, calls: tuple[str, ...]) -> None:
    """Also with gRPC, which ends the process if it cannot open the files that it needs."""
    said = run(CALLS, url(server), *calls).splitlines()
    limit = "this process has reached its limit of open files and sockets, 64"
    assert set(said) == {f"{limit}: raise it (`ulimit -n`), or make fewer calls at a time"}
    assert len(said) == (2 if isinstance(server, GrpcServer) else 1)  # two are enough for HTTP


WHERE = CallContext("grpc://seg:8001", "segment_resnet50", 5.0)


def bare(error: OSError) -> Exception:
    return error


def of_aiohttp(error: OSError) -> Exception:
    key: Any = None
    return aiohttp.ClientConnectorError(key, error)


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("wrap", [bare, of_aiohttp])
def test_a_limit_of_sockets_is_not_a_server_error(number: int, wrap: Callable[[OSError], Exception]) -> None:
    error = from_connection(wrap(OSError(number, os.strerror(number))), WHERE)
    assert type(error) is ClientLimitError
    assert isinstance(error, OSError)
    assert error.model == "segment_resnet50"
    assert "seg" not in str(error)
    assert "fewer calls" in str(error)
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - made here
    assert (type(copy), str(copy)) == (ClientLimitError, str(error))


@pytest.mark.parametrize("number", NUMBERS)
def test_a_limit_of_grpc_is_not_a_server_error(number: int) -> None:
    words = os.strerror(number)
    said = f"connections to all backends failing; last error: INTERNAL: ipv4:10.0.0.1:8001: socket: {words}"
    assert type(from_grpc("UNAVAILABLE", said, WHERE)) is ClientLimitError
    # A text from the server is about the server.
    assert type(from_grpc("UNAVAILABLE", f"cannot load: {words}", WHERE)) is ServerUnavailableError
    assert type(from_grpc("INTERNAL", f"last error: {words}", WHERE)) is ModelError


def test_missing_ipv6_is_not_reported_as_a_lack_of_ports() -> None:
    number = errno.EADDRNOTAVAIL
    said = f"last error: UNKNOWN: ipv6:%5B::1%5D:8001: connect: {os.strerror(number)}"
    assert type(from_grpc("UNAVAILABLE", said, WHERE)) is ServerUnavailableError
    where = CallContext("http://[::1]:8000", "segment_resnet50", 5.0)
    assert type(from_connection(OSError(number, os.strerror(number)), where)) is ServerUnavailableError


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Return a function that makes a system function fail a number of times."""

    def fail(owner: Any, name: str, error: Exception, times: int) -> None:  # noqa: ANN401 - a class or a module
        function, left = getattr(owner, name), iter(range(times))

        def failing(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - any function's
            if next(left, None) is not None:
                raise error
            return function(*arguments, **options)

        monkeypatch.setattr(owner, name, failing)

    return fail


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "image.jpg"
    path.write_bytes(b"picture")
    return path


def fake_of(kind: Kind, **options: Any) -> Any:  # noqa: ANN401 - either
    return FakeTransport(MASK, **options) if kind == "sync" else AsyncFakeTransport(MASK, **options)


@pytest.mark.parametrize("error", [OSError(number, os.strerror(number)) for number in NUMBERS[:3]] + [MemoryError()])
def test_a_picture_that_cannot_be_opened_for_a_limit_is_tried_again(
    kind: Kind, picture: Path, error: Exception, fail: Fail
) -> None:
    with connected(kind, "host", transport=fake_of(kind), retries=AT_ONCE) as client:
        fail(Path, "read_bytes", error, 2)
        assert client.segment(picture).mask.shape == (2, 2)
        fail(Path, "read_bytes", error, 1_000_000)
        with pytest.raises(ClientLimitError) as caught:
            client.segment(picture)
    assert str(picture) not in str(caught.value)
    assert caught.value.__cause__ is error


def test_a_batch_waits_however_few_retries_there_are(kind: Kind, picture: Path, fail: Fail) -> None:
    fail(Path, "read_bytes", OSError(errno.EMFILE, "Too many open files"), 5)
    with connected(kind, "host", transport=fake_of(kind), retries=0) as client:
        results = list(client.segment_many([picture, b"in memory", picture]))
    assert all(isinstance(result, Segmentation) for result in results)


def test_a_batch_waits_until_the_deadline_of_each_picture(kind: Kind, picture: Path, fail: Fail) -> None:
    fail(Path, "read_bytes", OSError(errno.EMFILE, "Too many open files"), 1_000_000)
    with connected(kind, "host", transport=fake_of(kind), timeout=0.3) as client:
        limited, fine = client.segment_many([picture, b"in memory"])
    assert isinstance(limited, ClientLimitError)
    assert isinstance(fine, Segmentation)


def test_a_limit_is_named_where_the_deadline_passes_while_the_image_is_read_again(
    picture: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures, may_end = [OSError(errno.EMFILE, "Too many open files")], threading.Event()

    def read_bytes(_: Path) -> bytes:
        if failures:
            raise failures.pop()
        may_end.wait(30)
        return b""

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    try:
        with connected("async", "host", transport=fake_of("async"), timeout=0.3) as client:
            (limited,) = client.segment_many([picture])
    finally:
        may_end.set()
    assert isinstance(limited, ClientLimitError)


def test_the_rest_of_a_file_is_not_taken_for_all_of_it(kind: Kind) -> None:
    class Parts:
        def __init__(self) -> None:
            self._parts = iter([OSError(errno.ENOMEM, "Cannot allocate memory"), b"the rest"])

        def read(self) -> bytes:
            part = next(self._parts)
            if isinstance(part, OSError):
                raise part
            return part

    fake = fake_of(kind)
    with connected(kind, "host", transport=fake, retries=AT_ONCE) as client:
        with pytest.raises(ClientLimitError):
            client.segment(Parts())
        (result,) = client.segment_many([Parts()])
    assert isinstance(result, ClientLimitError)
    assert not fake.requests


def test_certificates_that_cannot_be_opened_for_a_limit_are_not_bad(kind: Kind, fail: Fail) -> None:
    fail(ssl, "create_default_context", OSError(errno.EMFILE, "Too many open files"), 1_000_000)
    for scheme in ("grpcs", "https"):
        with (
            connected(kind, f"{scheme}://127.0.0.1:9", tls=TLS(ca_file="ca.pem"), retries=0) as client,
            pytest.raises(ClientLimitError),
        ):
            client.segment(b"picture")
        with (
            connected(kind, f"{scheme}://127.0.0.1:9", tls=TLS(ca_file="ca.pem")) as client,
            pytest.raises(ClientLimitError),
        ):
            client.is_ready()


class Threads:
    """The number of threads that the client can start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 1_000_000
        self.refused = threading.Event()
        start = threading.Thread.start

        def limited(thread: threading.Thread) -> None:
            if thread.name.startswith("deeplab-client"):
                if not self.left:
                    self.refused.set()
                    raise RuntimeError("can't start new thread")
                self.left -= 1
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", limited)


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    return Threads(monkeypatch)


@pytest.mark.parametrize("left", [0, 1, 3])
def test_a_batch_makes_do_with_the_threads_that_there_are(threads: Threads, left: int) -> None:
    fake = FakeTransport(MASK)
    client = SegmentationClient("host", transport=fake)
    threads.left = left
    results = list(client.segment_many([str(number).encode() for number in range(50)], concurrency=8))
    assert all(isinstance(result, Segmentation) for result in results)
    assert sorted(int(request.image) for request in fake.requests) == list(range(50))


class Waiting:
    """A file that is read when the test allows it."""

    def __init__(self) -> None:
        self.is_read, self.goes_on = threading.Event(), threading.Event()

    def read(self) -> bytes:
        self.is_read.set()
        self.goes_on.wait(20)
        return b"picture"


def test_coroutines_wait_for_the_threads_that_there_are(threads: Threads) -> None:
    fake = AsyncFakeTransport(MASK)
    with connected("async", "host", transport=fake, retries=0) as client:
        threads.left = 0
        with pytest.raises(ClientLimitError, match="cannot start another thread"):
            client.segment(MASK)
        threads.left, file = 1, Waiting()
        first = threading.Thread(target=client.segment, args=(file,))
        first.start()
        assert file.is_read.wait(20)
        threads.refused.clear()
        second = threading.Thread(target=client.segment, args=(MASK,))
        second.start()
        assert threads.refused.wait(20)
        threads.left = 1
        file.goes_on.set()
        first.join()
        second.join()
    assert len(fake.requests) == 2


def test_a_server_error_that_mentions_threads_stays_a_server_error(kind: Kind) -> None:
    fake = fake_of(kind, answers=[ModelError("can't start new thread")])
    with connected(kind, "host", transport=fake) as client, pytest.raises(SegmentationError) as caught:
        client.segment(b"picture")
    assert type(caught.value) is ModelError
