"""Segment many images in order with bounded memory, in threads."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
from collections import deque
from collections.abc import AsyncIterable, Iterable
from typing import TYPE_CHECKING, TypeVar

from deeplab_client._crew import Crew
from deeplab_client._errors import SegmentationError
from deeplab_client._image import held
from deeplab_client._limits import calls_at_a_time

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from deeplab_client._crew import Job
    from deeplab_client._deadline import AbortableDeadline
    from deeplab_client._image import ImageLike

_R = TypeVar("_R")

# Images that are read and not yet yielded, per request under way: room for those that overtake a slow one.
AHEAD = 2
_IMAGE_DIMENSIONS = (2, 3)  # height, width and optional channels; an array of four dimensions iterates over images


def check_concurrency(concurrency: int) -> int:
    """Return how many requests may be under way.

    Raises:
        TypeError: It is not an integer.
        ValueError: It is less than 1.
    """
    if isinstance(concurrency, bool) or not isinstance(concurrency, int):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a type checker
        raise TypeError(f"concurrency must be an integer, got {concurrency!r}")
    if concurrency < 1:
        raise ValueError(f"concurrency must be 1 or more, got {concurrency}")
    return concurrency


def check_images(images: object) -> None:
    """Refuse a single image, because most single images are iterable too, by character, byte or row.

    Raises:
        TypeError: `images` is one image, or not iterable.
    """
    is_encoded = isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike)) or hasattr(images, "read")
    is_array = hasattr(images, "__array__") or hasattr(images, "__dlpack__")
    is_pixels = hasattr(images, "getpixel") or (is_array and getattr(images, "ndim", None) in _IMAGE_DIMENSIONS)
    if is_encoded or is_pixels:
        raise TypeError(f"segment_many needs an iterable of images, got one image, {_kind(images)}: wrap it in a list")
    if not isinstance(images, (Iterable, AsyncIterable)) and not hasattr(images, "__getitem__"):
        raise TypeError(f"segment_many needs an iterable of images, got {_kind(images)}")


def _kind(images: object) -> str:
    shape = getattr(images, "shape", None)
    return type(images).__qualname__ + ("" if shape is None else f" of shape {tuple(shape)}")


def in_order(
    segment: Callable[[ImageLike, int, AbortableDeadline], _R],
    images: Iterable[ImageLike],
    *,
    concurrency: int,
    keep_images: bool,
    seconds: float,
) -> Generator[tuple[ImageLike | None, _R | SegmentationError]]:
    """Yield each image with the result of `segment` or its error, in the order of the images.

    Args:
        segment: Called in threads of this generator, with the image, its number starting at 1, and its deadline.
        images: Read in the thread that iterates. An exception of the iterable is raised after the results of the images
            before it.
        concurrency: Maximum number of concurrent calls; lowered if this process cannot open enough files.
        keep_images: Yield the images too; otherwise None, so that no image is kept after it was sent.
        seconds: The timeout of each call.

    Raises:
        ClientClosedError: The client was closed.
    """
    source, numbers = _Source(images), itertools.count(1)
    concurrency = calls_at_a_time(concurrency)
    pending: deque[tuple[ImageLike | None, Job[_R]]] = deque()
    crew: Crew[_R] = Crew(concurrency)
    try:
        while True:
            while len(pending) < AHEAD * concurrency and not source.exhausted:
                pending.extend(
                    (
                        image if keep_images else None,
                        crew.submit(functools.partial(segment, held(image), next(numbers)), seconds),
                    )
                    for image in source.take()
                )
                if pending and pending[0][1].is_done():  # a slow iterable must not delay finished results
                    break
            if not pending:
                break
            image, job = pending.popleft()
            yield image, crew.result_of(job)
        source.raise_failure()
    finally:
        crew.end()


class _Source:
    """An iterable whose exception is kept until `raise_failure`."""

    def __init__(self, images: Iterable[ImageLike]) -> None:
        self._iterator = iter(images)
        self._failure: Exception | None = None
        self.exhausted = False

    def take(self) -> list[ImageLike]:
        """Return the next image, or nothing at the end."""
        try:
            return [next(self._iterator)]
        except StopIteration:
            pass
        except Exception as error:  # noqa: BLE001 - raised by raise_failure()
            self._failure = error
        self.exhausted = True
        return []

    def raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def taken(
    pairs: Generator[tuple[ImageLike | None, _R | SegmentationError]], *, raise_errors: bool, with_source: bool
) -> Generator[object]:
    """Yield pairs or only their results, and either raise the first error or yield errors as results."""
    with contextlib.closing(pairs):
        for image, result in pairs:
            if raise_errors and isinstance(result, SegmentationError):
                raise result
            yield (image, result) if with_source else result
