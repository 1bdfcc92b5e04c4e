"""Segment many images in order with bounded memory, in coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
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
    segment: Callable[[ImageLike, int], Awaitable[_R]],
    images: Iterable[ImageLike] | AsyncIterable[ImageLike],
    *,
    concurrency: int,
    keep_images: bool,
    seconds: float,
) -> AsyncGenerator[tuple[ImageLike | None, _R | SegmentationError]]:
    """Yield each image with the result of `segment` or its error, in the order of the images.

    Args:
        segment: Called in tasks of this generator, with the image and its number starting at 1.
        images: An exception of the iterable is raised after the results of the images before it.
        concurrency: Maximum number of concurrent calls; lowered if this process cannot open enough files.
        keep_images: Yield the images too; otherwise None, so that no image is kept after it was sent.
        seconds: The timeout of each call.

    Raises:
        ClientClosedError: The client was closed.
    """
    concurrency = calls_at_a_time(concurrency)
    slots, room = asyncio.Semaphore(concurrency), asyncio.Semaphore(AHEAD * concurrency)
    calls: asyncio.Queue[tuple[ImageLike | None, asyncio.Task[_R | SegmentationError]] | None] = asyncio.Queue()
    pending: set[asyncio.Task[Any]] = set()
    context = contextvars.copy_context()  # for the calls, which must not see what the iterable sets

    numbers = itertools.count(1)

    async def call(image: ImageLike, number: int) -> _R | SegmentationError:
        async with slots:
            try:
                return await segment(image, number)
            except ClientClosedError:
                raise
            except SegmentationError as error:
                return error

    async def read() -> None:
        """Start a call for each image; one task reads all images.

        A timeout or a context variable that an asynchronous generator keeps from one image to the next belongs to the
        task that entered it.
        """
        iterator = aiter(images) if isinstance(images, AsyncIterable) else _AsAsync(images)
        try:
            while True:
                await room.acquire()
                try:
                    image = await iterator.__anext__()
                except StopAsyncIteration:
                    return
                task = context.run(asyncio.create_task, call(await _held(image, seconds), next(numbers)))
                pending.add(task)
                calls.put_nowait((image if keep_images else None, task))
                await asyncio.sleep(0)  # lets other tasks run, because a plain iterable does not wait
        finally:
            calls.put_nowait(None)

    reader = asyncio.create_task(read())
    pending.add(reader)
    try:
        while (begun := await calls.get()) is not None:
            image, task = begun
            yield image, await task
            pending.discard(task)
            room.release()
        await reader
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        pending.clear()  # the traceback of a cancelled task holds this set and its images


async def _held(image: ImageLike, seconds: float) -> ImageLike:
    if not may_move(image):
        return image
    try:
        return await in_thread(lambda: held(image), deadline=Deadline(seconds))
    except Passed:  # its call fails later
        return image


class _AsAsync:
    """A plain iterable as an asynchronous one; not a generator, because that would have to be closed."""

    def __init__(self, images: Iterable[ImageLike]) -> None:
        self._iterator = iter(images)

    async def __anext__(self) -> ImageLike:
        try:
            return next(self._iterator)
        except StopIteration:
            raise StopAsyncIteration from None


async def taken(
    pairs: AsyncGenerator[tuple[ImageLike | None, _R | SegmentationError]], *, raise_errors: bool, with_source: bool
) -> AsyncGenerator[object]:
    """Yield pairs or only their results, and either raise the first error or yield errors as results."""
    async with contextlib.aclosing(pairs):
        async for image, result in pairs:
            if raise_errors and isinstance(result, SegmentationError):
                raise result
            yield (image, result) if with_source else result
