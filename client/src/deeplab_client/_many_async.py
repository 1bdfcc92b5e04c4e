"""Many images through one call each, in order, with bounded memory; from coroutines."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, TypeVar

from deeplab_client._deadline import Deadline
from deeplab_client._errors import ClientClosedError, SegmentationError
from deeplab_client._image import held, may_move
from deeplab_client._limits import calls_at_a_time
from deeplab_client._many import AHEAD
from deeplab_client._workers import Passed, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence

    from _typeshed import SupportsAnext

    from deeplab_client._image import ImageLike

_R = TypeVar("_R")


async def in_order(
    segment: Callable[[ImageLike], Awaitable[_R]],
    images: Iterable[ImageLike] | AsyncIterable[ImageLike],
    *,
    concurrency: int,
    seconds: float,
) -> AsyncGenerator[_R | SegmentationError]:
    """Yield what `segment` makes of each image, or its error, in the order of the images.

    Args:
        segment: Called in tasks of the generator's own.
        images: Read when there is room; what it raises comes after the results of what it had given before.
        concurrency: Calls at a time; fewer where this process may not open enough files.
        seconds: The timeout of each.

    Raises:
        ClientClosedError: The client was closed.
    """
    concurrency = calls_at_a_time(concurrency)
    slots = asyncio.Semaphore(concurrency)

    async def call(image: ImageLike) -> _R | SegmentationError:
        async with slots:
            try:
                return await segment(image)
            except ClientClosedError:
                raise
            except SegmentationError as error:
                return error

    source = _Source(images)
    pending: deque[asyncio.Task[_R | SegmentationError]] = deque()
    try:
        while True:
            reading = source.read() if len(pending) < AHEAD * concurrency else None
            awaited = [task for task in (reading, pending[0] if pending else None) if task is not None]
            if not awaited:
                break
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            for image in source.take():
                pending.append(asyncio.create_task(call(await _held(image, seconds))))
            if pending and pending[0].done():
                yield pending.popleft().result()
        source.raise_failure()
    finally:
        await _cancel([*pending, *source.tasks()])


class _Source:
    """An iterable, read by one task, whose own failure waits until asked for.

    One for all images: what an asynchronous generator holds open from one to the next, such as a timeout or a context
    variable that it sets, belongs to the task that entered it.
    """

    def __init__(self, images: Iterable[ImageLike] | AsyncIterable[ImageLike]) -> None:
        self._iterator: SupportsAnext[ImageLike] = (
            aiter(images) if isinstance(images, AsyncIterable) else _AsAsync(images)
        )
        self._reader: asyncio.Task[None] | None = None
        self._asked: asyncio.Queue[asyncio.Future[list[ImageLike]]] = asyncio.Queue()
        self._reading: asyncio.Future[list[ImageLike]] | None = None
        self._failure: Exception | None = None
        self._exhausted = False

    def read(self) -> asyncio.Future[list[ImageLike]] | None:
        """Return what is done when the next image is there to be taken, None at the end."""
        if self._reading is None and not self._exhausted:
            self._reading = asyncio.get_running_loop().create_future()
            self._asked.put_nowait(self._reading)
            if self._reader is None:
                self._reader = asyncio.create_task(self._read())
            elif self._reader.done():  # cancelled by what the iterable holds open
                self._reading.cancel()
        return self._reading

    def take(self) -> list[ImageLike]:
        """Return the image that was read, or nothing."""
        if self._reading is None or not self._reading.done():
            return []
        done, self._reading = self._reading, None
        return done.result()

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the task that reads, if there is one."""
        return [] if self._reader is None else [self._reader]

    async def _read(self) -> None:
        while not self._exhausted:
            reading = await self._asked.get()
            images: list[ImageLike] = []
            try:
                images.append(await self._iterator.__anext__())
            except StopAsyncIteration:
                self._exhausted = True
            except Exception as error:  # noqa: BLE001 raised when asked for
                self._exhausted, self._failure = True, error
            except BaseException:
                reading.cancel()
                raise
            reading.set_result(images)


async def _held(image: ImageLike, seconds: float) -> ImageLike:
    if not may_move(image):
        return image
    try:
        return await in_thread(lambda: held(image), deadline=Deadline(seconds))
    except Passed:  # it fails by itself
        return image


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _AsAsync:
    """A plain iterable as an asynchronous one; not a generator, which would have to be closed."""

    def __init__(self, images: Iterable[ImageLike]) -> None:
        self._iterator = iter(images)

    async def __anext__(self) -> ImageLike:
        try:
            return next(self._iterator)
        except StopIteration:
            raise StopAsyncIteration from None


async def raising(results: AsyncGenerator[_R | SegmentationError]) -> AsyncGenerator[_R]:
    """Yield results until the first error, and raise that."""
    async with contextlib.aclosing(results):
        async for result in results:
            if isinstance(result, SegmentationError):
                raise result
            yield result
