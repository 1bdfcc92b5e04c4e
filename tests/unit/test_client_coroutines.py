"""What coroutines may rely on: cancellation that arrives, a loop that is not held up, threads that bind nobody."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deeplab_client import AsyncSegmentationClient, DeadlineExceededError
from deeplab_client._deadline import Deadline
from deeplab_client._endpoint import parse_url
from deeplab_client._loop import prepare
from deeplab_client._options import Options
from deeplab_client.testing import AsyncFakeTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit

IMAGE = np.zeros((2, 2), np.uint8)


class Stuck:
    """A file object that is read for ever, or until the test ends."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.reads = 0

    def read(self) -> bytes:
        self.reads += 1
        self.release.wait(60)
        return b"late"


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    file = Stuck()
    yield file
    file.release.set()


def client_of(fake: AsyncFakeTransport, **options: object) -> AsyncSegmentationClient:
    return AsyncSegmentationClient("host", transport=fake, **options)  # pyright: ignore[reportArgumentType] of any kind


class Told:
    """A file object that says when it is read."""

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
        deadline = Deadline(20)
        for _ in range(100):
            told.read_from.clear()
            if token is None:
                task = asyncio.create_task(client_of(AsyncFakeTransport(IMAGE)).segment(image))
            else:
                options = Options(token=token)
                task = asyncio.create_task(prepare(parse_url("host"), options, "model", deadline))
            await told.read_from.wait()
            time.sleep(0.001)  # noqa: ASYNC251 so that the result comes in together with the cancellation
            if task.cancel():
                with pytest.raises(asyncio.CancelledError):
                    await task

    asyncio.run(attempts())


def test_a_token_function_that_blocks_holds_up_nobody(stuck: Stuck) -> None:
    async def use() -> None:
        options = Options(token=lambda: stuck.read().decode())
        with pytest.raises(DeadlineExceededError):
            await prepare(parse_url("host"), options, "model", Deadline(0.3))

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
