"""Guarantees for coroutines: cancellation, a loop that is not blocked, and threads that can be abandoned."""

from __future__ import annotations

import asyncio
import threading
import time
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from drivers import Stuck, python
from script_servers import HttpServer, Script, Server, url

from deeplab_client import (
    AsyncSegmentationClient,
    ClientClosedError,
    DeadlineExceededError,
    RetryAttempt,
    RetryPolicy,
    SegmentationClient,
    ServerUnavailableError,
    _v2,
    _wire,
)
from deeplab_client.testing import AsyncFakeTransport, FakeTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit

IMAGE = np.zeros((2, 2), np.uint8)


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    file = Stuck()
    yield file
    file.release.set()


def client_of(fake: AsyncFakeTransport, **options: object) -> AsyncSegmentationClient:
    return AsyncSegmentationClient("host", transport=fake, **options)  # pyright: ignore[reportArgumentType] - of any kind


class Told:
    """A file object that signals when it is read."""

    def __init__(self) -> None:
        self.read_from = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def read(self) -> bytes:
        self._loop.call_soon_threadsafe(self.read_from.set)
        return b"picture"


@pytest.mark.parametrize("place", ["image", "token"])
def test_a_cancellation_that_comes_with_a_result_is_not_swallowed(place: str) -> None:
    async def attempts() -> None:
        told = Told()
        token = (lambda: told.read().decode()) if place == "token" else None
        image: Any = told if place == "image" else b"picture"
        fake = AsyncFakeTransport(IMAGE) if token is None else None
        client = AsyncSegmentationClient("http://127.0.0.1:1", transport=fake, token=token)
        for _ in range(100):
            told.read_from.clear()
            task = asyncio.create_task(client.segment(image))
            await told.read_from.wait()
            time.sleep(0.001)  # noqa: ASYNC251 - so that the result comes in together with the cancellation
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await task

    asyncio.run(attempts())


def test_a_blocking_token_function_delays_no_other_call(stuck: Stuck) -> None:
    async def use() -> None:
        client = AsyncSegmentationClient("http://127.0.0.1:1", token=lambda: stuck.read().decode())
        with pytest.raises(DeadlineExceededError, match=r"within 0\.3 s"):
            await client.segment(b"picture", timeout=0.3)

    asyncio.run(use())


def test_images_that_cannot_be_read_take_nothing_from_the_application(stuck: Stuck) -> None:
    async def use() -> bytes:
        client = client_of(AsyncFakeTransport(IMAGE))
        calls = [client.segment(stuck, timeout=0.3) for _ in range(60)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(result, DeadlineExceededError) for result in results)
        assert (await client.segment(IMAGE, timeout=20)).mask.shape == (2, 2)
        return await asyncio.wait_for(asyncio.to_thread(lambda: b"free"), 20)

    start = time.monotonic()
    assert asyncio.run(use()) == b"free"
    assert stuck.reads
    assert time.monotonic() - start < 20


def test_pixels_are_packed_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[threading.Thread] = []
    pack = _v2.infer_request

    def noting(*arguments: Any) -> Any:  # noqa: ANN401 - those of the function
        packed.append(threading.current_thread())
        return pack(*arguments)

    monkeypatch.setattr(_v2, "infer_request", noting)
    server = HttpServer(Script())

    async def use() -> None:
        async with AsyncSegmentationClient(url(server), compression="gzip") as client:
            await client.segment(IMAGE)
            await client.segment(b"\x05 encoded")

    asyncio.run(use())
    server.stop()
    assert packed[0] is not threading.current_thread()
    assert packed[1] is threading.current_thread()


def test_checksums_of_large_pictures_are_made_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[bytes, threading.Thread] = {}  # also by leftovers of earlier tests
    large, small = b"\x05" * 2_000_000, b"\x05"

    def noting(image: bytes) -> int:
        made[image] = threading.current_thread()
        return zlib.crc32(image)

    monkeypatch.setattr(_wire, "image_id", noting)
    server = HttpServer(Script())

    async def use() -> None:
        async with AsyncSegmentationClient(url(server)) as client:
            await client.segment(large)
            await client.segment(small)

    asyncio.run(use())
    server.stop()
    assert made[large] is not threading.current_thread()
    assert made[small] is threading.current_thread()


def test_a_hook_may_be_awaited() -> None:
    attempts: list[int] = []

    async def hook(attempt: RetryAttempt) -> None:
        await asyncio.sleep(0)
        attempts.append(attempt.number)

    async def never(attempt: RetryAttempt) -> None:
        await asyncio.Event().wait()
        attempts.append(attempt.number)

    async def use() -> None:
        policy = RetryPolicy(retries=1, first_delay=0)
        fakes = [AsyncFakeTransport(IMAGE, answers=[ServerUnavailableError("gone")]) for _ in range(2)]
        assert (await client_of(fakes[0], on_retry=hook, retries=policy).segment(b"1")).mask.shape == (2, 2)
        with pytest.raises(DeadlineExceededError):
            await client_of(fakes[1], on_retry=never, retries=policy).segment(b"1", timeout=0.3)

    asyncio.run(use())
    assert attempts == [1]


def test_hooks_and_fakes_of_the_other_client_are_refused() -> None:
    async def hook(attempt: RetryAttempt) -> None:
        """Ignore the argument."""

    async def token() -> str:
        return "token"

    wrong: Any
    for name, wrong in (("on_retry", hook), ("on_request", hook), ("on_response", hook), ("token", token)):
        with pytest.raises(
            TypeError, match=f"{name} must be a plain function, got a coroutine function, which AsyncSegmentationClient"
        ):
            SegmentationClient("host", **{name: wrong})
    wrong = AsyncFakeTransport()
    with pytest.raises(TypeError, match="plain methods, such as FakeTransport, got AsyncFakeTransport"):
        SegmentationClient("host", transport=wrong)
    wrong = FakeTransport()
    with pytest.raises(TypeError, match="coroutine methods, such as AsyncFakeTransport, got FakeTransport"):
        AsyncSegmentationClient("host", transport=wrong)


def test_each_client_calls_itself_by_its_name() -> None:
    assert repr(AsyncSegmentationClient("host")).startswith("<AsyncSegmentationClient grpc://host:8001")
    assert repr(SegmentationClient("host")).startswith("<SegmentationClient grpc://host:8001")


def test_work_in_a_thread_is_never_formatted() -> None:
    """The repr of a picture would block the event loop as long as compression, and that of a token would show it."""

    spelled: list[object] = []

    class Token:
        def __call__(self) -> str:
            return "token"

        def __repr__(self) -> str:
            spelled.append(self)
            return "a token"

    server = HttpServer(Script())

    async def use() -> None:
        async with AsyncSegmentationClient(url(server), token=Token()) as client:
            await client.segment(b"\x05")

    asyncio.run(use())
    server.stop()
    assert server.script.headers[0]["authorization"] == "Bearer token"
    assert not spelled


# Modules and files that the first calls of a process load and open in the event loop's thread.
FIRST_CALLS = """
import asyncio, io, sys, threading
import numpy as np
from deeplab_client import AsyncSegmentationClient

url, mask_format = sys.argv[1:]
loops, held_up = threading.get_ident(), []

def note(event, arguments):
    if event in ("import", "open") and threading.get_ident() == loops:
        held_up.append((event, arguments[0]))

async def use():
    images = [b"\\x05", io.BytesIO(b"\\x05"), np.zeros((3, 80, 3), np.uint8)]
    encrypted = url.replace("://", "s://")  # where nothing answers that speaks TLS
    async with AsyncSegmentationClient(url, mask_format=mask_format) as client:
        async with AsyncSegmentationClient(encrypted, timeout=5) as other:
            sys.addaudithook(note)
            results = await asyncio.gather(*map(client.segment, images), other.is_ready(), return_exceptions=True)
    print(*(result.mask.shape[1] for result in results[:3]), type(results[3]).__name__, held_up)

asyncio.run(use())
"""


@pytest.mark.parametrize("mask_format", ["raw", "png"])
def test_the_first_call_loads_and_opens_nothing_in_the_event_loop(server: Server, mask_format: str) -> None:
    done = python(FIRST_CALLS, url(server), mask_format)
    assert done.stdout == "5 5 80 TLSError []\n"


def test_a_client_that_is_closed_while_it_loads_stays_closed() -> None:
    async def use() -> None:
        client = AsyncSegmentationClient("host")
        call = asyncio.create_task(client.segment(b"picture"))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(ClientClosedError):
            await call

    asyncio.run(use())
