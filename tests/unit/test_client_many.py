"""segment_many: order, errors in place, bounded memory and early end; of both clients."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import io
import textwrap
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from drivers import AsyncDriver, Awaited, Kind, Stuck, python
from PIL import Image
from script_servers import Server, url

from deeplab_client import (
    AsyncSegmentationClient,
    ClientClosedError,
    InvalidImageError,
    ModelError,
    Segmentation,
    SegmentationClient,
    SegmentationError,
)
from deeplab_client.testing import AsyncFakeTransport, FakeTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from numpy.typing import NDArray

    from deeplab_client.testing import ReceivedRequest

pytestmark = pytest.mark.unit


class Gate:
    """Requests that wait until the test releases them, identified by the length of the image."""

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.waiting: set[int] = set()
        self.open: set[int] = set()
        self.passed: set[int] = set()
        self.all_open = False

    def let(self, *lengths: int) -> None:
        with self.condition:
            self.open.update(lengths)
            self.condition.notify_all()

    def let_all(self) -> None:
        with self.condition:
            self.all_open = True
            self.condition.notify_all()

    def until(self, holds: Callable[[], object]) -> None:
        with self.condition:
            assert self.condition.wait_for(holds, 20)

    def pass_through(self, length: int) -> None:
        with self.condition:
            self.waiting.add(length)
            self.condition.notify_all()
            assert self.condition.wait_for(lambda: self.all_open or length in self.open, 20)
            self.waiting.discard(length)
            self.passed.add(length)
            self.condition.notify_all()


def behind(gate: Gate, failing: int | None = None) -> FakeTransport:
    """Return a server that answers when the gate is open, with masks as wide as images are long; one length fails."""

    def answer(request: ReceivedRequest) -> NDArray[np.uint8]:
        length = len(request.image)
        gate.pass_through(length)
        if length == failing:
            raise ModelError("broken")
        return np.zeros((1, length), np.uint8)

    return FakeTransport(answer)


class Stream:
    """A stream of either client, read in a separate thread."""

    def __init__(self, kind: Kind, gate: Gate, images: Any, *, failing: int | None = None, **options: Any) -> None:  # noqa: ANN401 - also wrong types
        self.results: list[Segmentation | SegmentationError] = []
        self.error: BaseException | None = None
        self._gate = gate
        fake = behind(gate, failing)
        if kind == "sync":
            work = self._read, SegmentationClient("host", transport=fake), images, options
        else:
            awaited = Awaited(fake, waits=True)
            work = self._drive, AsyncSegmentationClient("host", transport=awaited), images, options
        self._thread = threading.Thread(target=self._run, args=work)
        self._thread.start()

    def join(self) -> list[int | str]:
        """Return the widths of the masks, and the messages of the errors, in order."""
        self._thread.join(20)
        assert not self._thread.is_alive()
        return [self.told(result) for result in self.results]

    @staticmethod
    def told(result: Segmentation | SegmentationError) -> int | str:
        return result.mask.shape[1] if isinstance(result, Segmentation) else str(result)

    def _add(self, result: Segmentation | SegmentationError) -> None:
        with self._gate.condition:
            self.results.append(result)
            self._gate.condition.notify_all()

    def _run(self, work: Any, *arguments: Any) -> None:  # noqa: ANN401 - also wrong types
        try:
            work(*arguments)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def _read(self, client: SegmentationClient, images: Any, options: Any) -> None:  # noqa: ANN401 - also wrong types
        for result in client.segment_many(images, **options):
            self._add(result)

    def _drive(self, client: AsyncSegmentationClient, images: Any, options: Any) -> None:  # noqa: ANN401 - also wrong types
        async def read() -> None:
            async with contextlib.aclosing(client.segment_many(images, **options)) as results:
                async for result in results:
                    self._add(result)

        asyncio.run(read())


def images(count: int, taken: list[int] | None = None) -> Iterator[bytes]:
    for length in range(1, count + 1):
        if taken is not None:
            taken.append(length)
        yield bytes(length)


def test_results_come_in_the_order_of_the_images(kind: Kind) -> None:
    gate = Gate()
    stream = Stream(kind, gate, images(6), concurrency=3)
    gate.until(lambda: gate.waiting == {1, 2, 3})
    threading.Event().wait(0.2)  # for what must not happen
    assert gate.waiting == {1, 2, 3}
    gate.let(3, 2)
    gate.until(lambda: gate.waiting == {1, 4, 5})  # those that overtook the first make room for others
    assert not stream.results
    gate.let_all()
    assert stream.join() == [1, 2, 3, 4, 5, 6]


def test_at_most_twice_the_concurrency_is_read_or_kept(kind: Kind) -> None:
    gate, taken = Gate(), list[int]()
    stream = Stream(kind, gate, images(1000, taken), concurrency=4)
    gate.until(lambda: len(gate.waiting) == 4)
    gate.let(*range(2, 1001))  # all but the first may finish
    gate.until(lambda: gate.waiting == {1} and len(taken) == 8)
    threading.Event().wait(0.2)  # for what must not happen
    assert len(taken) == 8
    gate.let_all()
    assert stream.join() == list(range(1, 1001))


def test_an_error_stands_where_its_result_would(kind: Kind) -> None:
    gate = Gate()
    gate.let_all()
    stream = Stream(kind, gate, [b"1", b"", b"333", "/nowhere.png", b"55555"], failing=3)
    told = stream.join()
    assert [told[0], told[2], told[4]] == [1, "broken", 5]
    for place in (1, 3):
        assert isinstance(stream.results[place], InvalidImageError)
    assert "/nowhere.png" in str(told[3])


def test_results_come_with_the_objects_of_the_iterable(kind: Kind, tmp_path: Path) -> None:
    paths = [tmp_path / "1.ppm", tmp_path / "nowhere.ppm", tmp_path / "3.ppm"]
    for path in (paths[0], paths[2]):
        Image.new("RGB", (int(path.stem), 1)).save(path)
    pairs: list[Any] = []
    if kind == "sync":
        pairs.extend(SegmentationClient("host", transport=FakeTransport()).segment_many(paths, with_source=True))
    else:

        async def read() -> None:
            client = AsyncSegmentationClient("host", transport=AsyncFakeTransport())
            pairs.extend([pair async for pair in client.segment_many(paths, with_source=True)])

        asyncio.run(read())
    assert [source for source, _ in pairs] == paths
    assert [Stream.told(result) for _, result in pairs][::2] == [1, 3]
    assert isinstance(pairs[1][1], InvalidImageError)


def test_errors_are_raised_where_asked_for(kind: Kind) -> None:
    gate = Gate()
    gate.let_all()
    stream = Stream(kind, gate, images(100), failing=4, raise_errors=True)
    assert stream.join() == [1, 2, 3]
    assert isinstance(stream.error, ModelError)


def test_a_source_that_fails_does_so_after_its_last_result(kind: Kind) -> None:
    def broken() -> Iterator[bytes]:
        yield from images(5)
        raise OSError("the disk is gone")

    gate = Gate()
    gate.let_all()
    stream = Stream(kind, gate, broken())
    assert stream.join() == [1, 2, 3, 4, 5]
    assert str(stream.error) == "the disk is gone"


def test_results_do_not_wait_for_a_source_that_gives_slowly(kind: Kind) -> None:
    gate, more = Gate(), threading.Event()
    gate.let_all()

    async def slow_async() -> AsyncIterator[bytes]:
        yield b"1"
        yield b"22"
        assert await asyncio.to_thread(more.wait, 20)
        yield b"333"

    def slow() -> Iterator[bytes]:
        yield b"1"
        gate.until(lambda: 1 in gate.passed)
        for _ in range(10):  # its result comes a little later, unnoticed by the source
            threading.Event().wait(0.05)
            yield b"22"
        assert more.wait(20)
        yield b"333"

    stream = Stream(kind, gate, slow() if kind == "sync" else slow_async(), concurrency=8)
    gate.until(lambda: len(stream.results) >= 1)
    more.set()
    assert list(dict.fromkeys(stream.join())) == [1, 2, 3]


def test_an_asynchronous_source_runs_in_one_task() -> None:
    setting = contextvars.ContextVar("setting", default="none")
    ends: list[str] = []
    seen: list[str] = []

    async def source() -> AsyncIterator[bytes]:
        token = setting.set("own")
        try:
            yield b"1"
            ends.append(setting.get())
            yield b"22"
        finally:
            setting.reset(token)  # refused in another context
        ends.append(str(asyncio.current_task() is tasks[0]))

    tasks: list[asyncio.Task[Any] | None] = []

    async def first_task() -> AsyncIterator[bytes]:
        tasks.append(asyncio.current_task())
        async for image in source():
            yield image

    def answer(_: ReceivedRequest) -> NDArray[np.uint8]:
        seen.append(setting.get())
        return np.zeros((1, 1), np.uint8)

    async def use() -> list[object]:
        client = AsyncSegmentationClient("host", transport=AsyncFakeTransport(answer))
        return [type(result) async for result in client.segment_many(first_task(), concurrency=1)]

    assert asyncio.run(use()) == [Segmentation, Segmentation]
    assert ends == ["own", "True"]
    assert seen == ["none", "none"], "what a source sets is not for the calls"


def test_a_source_that_is_cancelled_from_within_ends_the_stream() -> None:
    async def source() -> AsyncIterator[bytes]:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)  # like a timeout that the source keeps open
        yield b"1"

    async def use() -> None:
        client = AsyncSegmentationClient("host", transport=AsyncFakeTransport(np.zeros((1, 1), np.uint8)))
        with pytest.raises(asyncio.CancelledError):
            _ = [result async for result in client.segment_many(source())]

    asyncio.run(asyncio.wait_for(use(), 20))


def test_nothing_is_a_stream_too(kind: Kind) -> None:
    stream = Stream(kind, Gate(), [])
    assert stream.join() == []
    assert stream.error is None


def test_a_client_that_is_closed_ends_the_stream() -> None:
    gate = Gate()
    gate.let_all()
    client = SegmentationClient("host", transport=behind(gate))
    stream = client.segment_many(images(1000), concurrency=2)
    next(stream)
    client.close()
    with pytest.raises(ClientClosedError):
        list(stream)
    with pytest.raises(ClientClosedError):
        client.segment_many([])


@pytest.mark.parametrize(
    "image",
    [
        "cow.jpg",
        b"bytes",
        bytearray(b"bytes"),
        memoryview(b"bytes"),
        Path("cow.jpg"),
        io.BytesIO(b"bytes"),
        Image.new("RGB", (2, 2)),
        np.zeros((2, 2), np.uint8),
        np.zeros((2, 2, 3), np.uint8),
        5,
        None,
    ],
)
def test_one_image_is_not_taken_for_many(image: Any) -> None:  # noqa: ANN401 - also wrong types
    for client in (SegmentationClient("host"), AsyncSegmentationClient("host")):
        with pytest.raises(TypeError, match=rf"iterable of images, got .*{type(image).__name__}") as caught:
            client.segment_many(image)
        assert type(image) in {int, type(None)} or "wrap it in a list" in str(caught.value)


def test_a_batch_is_many_images(kind: Kind) -> None:
    gate = Gate()
    gate.let_all()
    assert len(Stream(kind, gate, np.zeros((3, 2, 2, 3), np.uint8)).join()) == 3


@pytest.mark.parametrize("wrong", [0, -1, True, 1.5])
def test_concurrency_is_checked_before_anything_is_read(wrong: Any) -> None:  # noqa: ANN401 - also wrong types
    for client in (SegmentationClient("host"), AsyncSegmentationClient("host")):
        with pytest.raises((ValueError, TypeError), match="concurrency"):
            client.segment_many(images(1), concurrency=wrong)
        with pytest.raises(ValueError, match="seconds"):
            client.segment_many(images(1), timeout=0)


@pytest.mark.parametrize("early", [False, True], ids=["to the end", "left early"])
def test_images_that_cannot_be_read_hold_up_nothing(*, early: bool) -> None:
    gate, stuck = Gate(), Stuck()
    gate.let_all()
    start = time.monotonic()
    with contextlib.closing(
        SegmentationClient("host", transport=behind(gate)).segment_many(
            [b"1", stuck, stuck, stuck, b"55555"], concurrency=2, timeout=30 if early else 0.3
        )
    ) as stream:
        told = [Stream.told(result) for result in ([next(stream)] if early else stream)]
    assert time.monotonic() - start < 15
    stuck.release.set()
    assert told == ([1] if early else [1, *["the image was not read within 0.3 s"] * 3, 5])


def test_an_interpreter_ends_whose_image_cannot_be_read() -> None:
    code = """
        import threading
        from deeplab_client import SegmentationClient
        from deeplab_client.testing import FakeTransport

        class Stuck:
            def read(self):
                threading.Event().wait()

        print(next(SegmentationClient("host", transport=FakeTransport()).segment_many([Stuck()], timeout=0.1)))
    """
    run = python(code, timeout=30)
    assert run.stdout == "the image was not read within 0.1 s\n", run.stderr


def test_an_interpreter_ends_with_a_stream_left_open(tmp_path: Path) -> None:
    # A separate module, because a thread that runs code of the main module would keep the stream alive.
    module = """
        import threading
        from deeplab_client.testing import FakeTransport

        lock, held = threading.Lock(), threading.Event()

        class LikeGrpc(FakeTransport):
            # To cancel a call takes a lock that the call's own thread may hold.

            def infer(self, request, *, deadline):
                if self.requests:
                    with lock, deadline.interrupting(lock.acquire):
                        held.set()
                        threading.Event().wait()
                return super().infer(request, deadline=deadline)
    """
    code = """
        import fakes
        from deeplab_client import SegmentationClient

        client = SegmentationClient("host", transport=fakes.LikeGrpc())
        stream = client.segment_many([b"P5 1 1 255 0"] * 9, concurrency=1)
        print(next(stream).mask.shape)
        fakes.held.wait()
    """
    (tmp_path / "fakes.py").write_text(textwrap.dedent(module))
    run = python(code, timeout=30, cwd=tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "(1, 1)\n", "")


def test_leaving_a_stream_early_ends_its_requests(server: Server) -> None:
    with SegmentationClient(url(server), timeout=100) as client:
        server.script.hold, server.script.held_from = threading.Event(), 2
        stream = client.segment_many((bytes([width]) for width in range(1, 100)), concurrency=4)
        assert isinstance(next(stream), Segmentation)
        while len(server.script.requests) < 2:
            threading.Event().wait(0.01)
        start = time.monotonic()
        stream.close()
        assert time.monotonic() - start < 15
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("deeplab-client")]
        server.script.hold.set()


def test_cancelling_a_task_cancels_its_requests_and_passes_through(server: Server) -> None:
    driver = AsyncDriver(url(server), timeout=100)
    server.script.hold = threading.Event()

    async def cancelled() -> None:
        many = asyncio.ensure_future(anext(driver.client.segment_many([b"\x01", b"\x02"])))
        one = asyncio.ensure_future(driver.client.segment(b"\x03"))
        while len(server.script.requests) < 3:  # noqa: ASYNC110 - the server is in another thread
            await asyncio.sleep(0.01)
        for task in (many, one):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    driver.run(cancelled())
    server.script.hold.set()
    server.script.hold = None
    assert driver.segment(b"\x05").mask.shape == (3, 5)
    driver.stop()
