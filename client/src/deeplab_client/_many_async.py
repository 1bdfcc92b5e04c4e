"""Many images through one call each, in order, with bounded memory; from coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, TypeVar

from deeplab_client._deadline import Deadline
from deeplab_client._errors import ClientClosedError, SegmentationError
from deeplab_client._image import held, may_move
from deeplab_client._limits import calls_at_a_time
from deeplab_client._many import AHEAD
from deeplab_client._workers import Passed, in_thread

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable

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
    slots, room = asyncio.Semaphore(concurrency), asyncio.Semaphore(AHEAD * concurrency)
    calls: asyncio.Queue[asyncio.Task[_R | SegmentationError] | None] = asyncio.Queue()
    pending: set[asyncio.Task[Any]] = set()
    context = contextvars.copy_context()  # the calls' own: what the iterable sets is not for them

    async def call(image: ImageLike) -> _R | SegmentationError:
        async with slots:
            try:
                return await segment(image)
            except ClientClosedError:
                raise
            except SegmentationError as error:
                return error

    async def read() -> None:
        """Begin a call for each image; one task for all of them.

        What an asynchronous generator holds open from one image to the next, such as a timeout or a context variable
        that it sets, belongs to the task that entered it.
        """
        iterator = aiter(images) if isinstance(images, AsyncIterable) else _AsAsync(images)
        try:
            while True:
                await room.acquire()
                try:
                    image = await _held(await iterator.__anext__(), seconds)
                except StopAsyncIteration:
                    return
                task = context.run(asyncio.create_task, call(image))
                pending.add(task)
                calls.put_nowait(task)
                await asyncio.sleep(0)  # others may run: a plain iterable gives without waiting
        finally:
            calls.put_nowait(None)

    reader = asyncio.create_task(read())
    pending.add(reader)
    try:
        while (task := await calls.get()) is not None:
            yield await task
            pending.discard(task)
            room.release()
        await reader
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


async def _held(image: ImageLike, seconds: float) -> ImageLike:
    if not may_move(image):
        return image
    try:
        return await in_thread(lambda: held(image), deadline=Deadline(seconds))
    except Passed:  # it fails by itself
        return image


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
