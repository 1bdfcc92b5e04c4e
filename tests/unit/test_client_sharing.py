"""One picture object in several calls at a time: each gets the whole picture, or an error with the reason."""

from __future__ import annotations

import asyncio
import copy
import io
import mmap
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from drivers import python
from PIL import Image, ImageSequence

from deeplab_client import AsyncSegmentationClient, InvalidImageError, Segmentation, SegmentationClient
from deeplab_client.testing import AsyncFakeTransport, FakeTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

pytestmark = pytest.mark.unit

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
MASK = np.zeros(PIXELS.shape[:2], np.uint8)
OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95},
    "PNG": {},
    "GIF": {"save_all": True, "append_images": [Image.fromarray(255 - PIXELS)]},
    "TIFF": {"compression": "tiff_lzw", "save_all": True, "append_images": [Image.fromarray(255 - PIXELS)]},
    "WEBP": {"lossless": True},
    "BMP": {},
}
ROUNDS = 15


@pytest.fixture(autouse=True)
def _frequent_switches() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(usual)


def encoded(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **OPTIONS[kind])
    return file.getvalue()


def pixels(sent: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(sent)).convert("RGB"))


def at_once(*calls: Callable[[], object]) -> list[object]:
    """Return the results or exceptions of calls that start together, in order."""
    begin = threading.Barrier(len(calls))
    results: list[object] = [None] * len(calls)

    def make(index: int) -> None:
        begin.wait(20)
        try:
            results[index] = calls[index]()
        except Exception as error:  # noqa: BLE001 - looked at by the test
            results[index] = error

    threads = [threading.Thread(target=make, args=(index,)) for index in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


class Calls:
    """Calls of several clients, and what they sent."""

    def __init__(self) -> None:
        self.fakes = [FakeTransport(MASK), FakeTransport(MASK)]
        self.coroutines = AsyncFakeTransport(MASK)
        self.clients = [SegmentationClient("host", transport=fake) for fake in self.fakes]

    def in_batch(self, *images: Any) -> list[object]:  # noqa: ANN401 - any image
        return list(self.clients[0].segment_many(images, concurrency=len(images)))

    def in_loop(self, *images: Any) -> list[object]:  # noqa: ANN401 - any image
        async def gather() -> list[object]:
            client = AsyncSegmentationClient("host", transport=self.coroutines)
            return list(await asyncio.gather(*map(client.segment, images), return_exceptions=True))

        return asyncio.run(gather())

    def in_threads(self, *images: Any) -> list[object]:  # noqa: ANN401 - any image
        """Call two clients, and an async one in a separate thread."""
        first, second = self.clients
        calls = [lambda: first.segment(images[0]), lambda: second.segment(images[1])]
        return at_once(*calls) + self.in_loop(images[0])

    @property
    def sent(self) -> list[bytes]:
        return [request.image for fake in (*self.fakes, self.coroutines) for request in fake.requests]


WAYS: dict[str, Callable[..., list[object]]] = {
    "segment_many": Calls.in_batch,
    "gather": Calls.in_loop,
    "threads": Calls.in_threads,
}


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_a_picture_that_is_not_loaded_yet_may_be_in_several_calls(way: str, kind: str) -> None:
    data = encoded(kind)
    right = pixels(data)
    for _ in range(ROUNDS):
        calls, image = Calls(), Image.open(io.BytesIO(data))
        assert all(isinstance(result, Segmentation) for result in WAYS[way](calls, image, image))
        assert all((pixels(sent) == right).all() for sent in calls.sent)


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_picture_may_be_sent_and_drawn_on_at_once(kind: str) -> None:
    data = encoded(kind)
    right = pixels(data)
    result = SegmentationClient("host", transport=FakeTransport(MASK)).segment(data)
    for _ in range(ROUNDS):
        calls, image = Calls(), Image.open(io.BytesIO(data))
        segmented, drawn = at_once(lambda: calls.clients[0].segment(image), lambda: result.overlay(image))  # noqa: B023 - called here
        assert isinstance(segmented, Segmentation)
        assert isinstance(drawn, Image.Image)
        assert (np.asarray(drawn) == right).all()
        assert (pixels(calls.sent[0]) == right).all()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP"])
def test_two_pictures_may_share_their_file(kind: str) -> None:
    data = encoded(kind)
    right = pixels(data)
    for _ in range(ROUNDS):
        calls, file = Calls(), io.BytesIO(data)
        images = [Image.open(file), Image.open(file)]
        assert all(isinstance(result, Segmentation) for result in calls.in_batch(*images))
        assert all((pixels(sent) == right).all() for sent in calls.sent)


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((0, 0, image.width, image.height))


@pytest.mark.parametrize("derive", [Image.Image.copy, copy.copy, cropped])
def test_copies_of_a_picture_can_be_sent_at_the_same_time(derive: Callable[[Image.Image], Image.Image]) -> None:
    data = encoded("JPEG")
    right = pixels(data)
    for _ in range(ROUNDS):
        calls, image = Calls(), Image.open(io.BytesIO(data))
        assert all(isinstance(result, Segmentation) for result in calls.in_batch(derive(image), image))
        assert all((pixels(sent) == right).all() for sent in calls.sent)


class InParts:
    """A file object that two threads would read alternately."""

    def __init__(self, data: bytes) -> None:
        self._left = [data[at : at + 100] for at in range(0, len(data), 100)]

    def read(self) -> bytes:
        parts: list[bytes] = []
        while self._left:
            parts.append(self._left.pop(0))
            time.sleep(0)  # other threads may run
        return b"".join(parts)


def mapped(data: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(data))
    memory.write(data)
    memory.seek(0)
    return memory


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("open_", [InParts, io.BytesIO, mapped])
def test_only_one_call_reads_a_file_object_and_the_others_fail(way: str, open_: Callable[[bytes], Any]) -> None:
    data = encoded("BMP")
    for _ in range(5):
        calls, file = Calls(), open_(data)
        results = WAYS[way](calls, file, file)
        assert calls.sent == [data]
        errors = [str(result) for result in results if isinstance(result, InvalidImageError)]
        assert len(errors) == len(results) - 1
        assert all("was already read to its end: rewind it with seek(0)" in error for error in errors)


def test_a_memory_mapped_array_may_be_in_several_calls(tmp_path: Path) -> None:
    array = np.memmap(tmp_path / "pixels", np.uint8, "w+", shape=PIXELS.shape)
    array[:] = PIXELS
    calls = Calls()
    assert all(isinstance(result, Segmentation) for result in calls.in_batch(*[array] * 8))
    assert all((pixels(sent) == PIXELS).all() for sent in calls.sent)


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
@pytest.mark.parametrize("way", ["segment_many", "gather"])
def test_the_frame_at_which_a_picture_stands_is_sent_and_kept(way: str, kind: str) -> None:
    image = Image.open(io.BytesIO(encoded(kind)))
    image.seek(1)
    right = np.asarray(image.convert("RGB"))
    image.seek(0)
    image.seek(1)
    calls = Calls()
    assert all(isinstance(result, Segmentation) for result in WAYS[way](calls, image, image))
    assert image.tell() == 1
    assert all((pixels(sent) == right).all() for sent in calls.sent)


@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_all_frames_of_one_picture_are_sent(kind: str) -> None:
    """ImageSequence yields one object, and advances it before the frame is read."""
    right = [
        np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(Image.open(io.BytesIO(encoded(kind))))
    ]
    assert (right[0] != right[1]).any()
    for _ in range(5):
        fake, other = FakeTransport(MASK), AsyncFakeTransport(MASK)
        client = SegmentationClient("host", transport=fake)
        list(client.segment_many(ImageSequence.Iterator(Image.open(io.BytesIO(encoded(kind))))))

        async def use(other: AsyncFakeTransport) -> None:
            frames = ImageSequence.Iterator(Image.open(io.BytesIO(encoded(kind))))
            many = AsyncSegmentationClient("host", transport=other).segment_many(frames)
            assert all([isinstance(result, Segmentation) async for result in many])

        asyncio.run(use(other))
        for requests in (fake.requests, other.requests):
            sent = [pixels(request.image) for request in requests]
            assert sorted(found.tobytes() for found in sent) == sorted(frame.tobytes() for frame in right)


class Hanging(io.BytesIO):
    """A file whose read waits until the test releases it."""

    def __init__(self) -> None:
        super().__init__(b"picture")
        self.is_read = threading.Event()
        self.goes_on = threading.Event()

    def read(self, size: int | None = -1, /) -> bytes:
        self.is_read.set()
        self.goes_on.wait(20)
        return super().read(size)


def test_calls_do_not_wait_for_other_pictures() -> None:
    file, calls = Hanging(), Calls()
    first, second = calls.clients
    thread = threading.Thread(target=first.segment, args=(file,))
    thread.start()
    assert file.is_read.wait(20)
    second.segment(Image.open(io.BytesIO(encoded("PNG"))))
    second.segment(io.BytesIO(b"another"))
    assert not calls.fakes[0].requests
    file.goes_on.set()
    thread.join()
    assert calls.fakes[0].requests


def test_a_child_does_not_wait_for_its_parents_threads() -> None:
    code = """
import os, threading, numpy as np
from deeplab_client import SegmentationClient
from deeplab_client.testing import FakeTransport

class File:
    def read(self):
        if threading.current_thread() is not threading.main_thread():
            begun.set(); end.wait(20)
        return b"picture"

begun, end, file = threading.Event(), threading.Event(), File()
client = SegmentationClient("host", transport=FakeTransport(np.zeros((2, 2), np.uint8)))
thread = threading.Thread(target=client.segment, args=(file,))
thread.start(); begun.wait(20)
child = os.fork()
if not child:
    client.segment(file)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
end.set(); thread.join()
"""
    assert python(code, flags=["-W", "ignore"]).stdout == "7\n"
