"""Segmenting many pictures, and the outcome of each."""

from __future__ import annotations

import errno
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from deeplab_client import SegmentationError
from deeplab_client._cli.server import REFUSED, UnusableError, raise_if_unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from pathlib import Path

    from deeplab_client import ImageLike, Segmentation, SegmentationClient
    from deeplab_client._cli.outputs import Output
    from deeplab_client._cli.settings import Settings
    from deeplab_client._cli.sources import Source

_T = TypeVar("_T")

_LONGEST_WAIT, _PAUSE = 60.0, 0.05  # seconds to wait for free file descriptors, and between two attempts


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one picture, without the mask.

    Attributes:
        source: The picture.
        outputs: The files with its result.
        error: Why it failed; None if it did not.
        skipped: Whether it was skipped, because it was done before.
        found: The description of the result, see `describe`; None without a result.
    """

    source: Source
    outputs: Sequence[Path] = ()
    error: str | None = None
    skipped: bool = False
    found: dict[str, Any] | None = None


def run(
    client: SegmentationClient,
    sources: Iterable[Source],
    outputs: Sequence[Output],
    settings: Settings,
    *,
    concurrency: int,
) -> Generator[Outcome]:
    """Segment pictures and write their outputs; yield the outcome of each, skipped ones first.

    Raises:
        BrokenPipeError: An output goes to standard output, which was closed.
        UnusableError: The server cannot be used; nothing more is sent.
    """
    wanted: list[Source] = []
    for named in sources:
        source = _examined(named, outputs)
        if isinstance(source, Outcome):
            yield source
        else:
            wanted.append(source)
    answered = False
    images = [source.image for source in wanted]
    with closing(_segmented(client, images, settings, concurrency=concurrency)) as results:
        for source, result in zip(wanted, results, strict=True):
            if isinstance(result, SegmentationError):
                raise_if_unusable(result, answered=answered)
                yield Outcome(source, error=str(result))
                continue
            answered = True
            kept = _without_uncertain(result, settings.confidence)
            written: list[Path] = []
            try:
                for output in outputs:
                    written += _retry_on_open_files(partial(output.write, source, kept))
            except BrokenPipeError:
                raise
            except (OSError, SegmentationError) as error:
                yield Outcome(source, error=str(error), found=describe(kept))
            else:
                yield Outcome(source, outputs=written, found=describe(kept))


def _examined(named: Source, outputs: Sequence[Output]) -> Source | Outcome:
    """Return a picture that must be segmented, or its outcome if it is done or cannot be read."""
    try:
        source = named.examined()
    except OSError as error:
        return Outcome(named, error=f"cannot be read: {error.strerror}")
    try:
        done = [_retry_on_open_files(partial(output.existing, source)) for output in outputs]
    except OSError as error:  # for example a name that is too long, so it could not be written either
        return Outcome(source, error=str(error))
    existing = [paths for paths in done if paths is not None]
    if not done or len(existing) < len(done):
        return source
    return Outcome(source, outputs=[path for paths in existing for path in paths], skipped=True)


def _segmented(
    client: SegmentationClient, images: Sequence[ImageLike], settings: Settings, *, concurrency: int
) -> Generator[Segmentation | SegmentationError]:
    """Yield the result or the error of each picture in order."""
    confidence = settings.confidence is not None
    if settings.tile is None:
        yield from client.segment_many(images, concurrency=concurrency, confidence=confidence)
        return
    for image in images:
        try:
            result = client.segment_tiles(
                image, tile=settings.tile, overlap=settings.overlap, confidence=confidence, concurrency=concurrency
            )
        except SegmentationError as error:
            result = error
        yield result


def _without_uncertain(result: Segmentation, confidence: float | None) -> Segmentation:
    """Return a result in which less certain pixels are set to background.

    Raises:
        UnusableError: The model has no background.
    """
    if not confidence:
        return result
    if not result.background:
        raise UnusableError(
            f"--confidence {confidence:g} needs a model with a background, but class 0 of {result.model_name} is "
            f"{result.class_names[0]!r}: use --confidence 0, which keeps all pixels and adds scores to json and coco",
            REFUSED,
        )
    return result.at_least(confidence)


def _retry_on_open_files(step: Callable[[], _T]) -> _T:
    """Return the result of a step; if too many files are open, retry until requests under way have closed some.

    Raises:
        OSError: It failed, or no file was closed for 60 seconds.
    """
    end = time.monotonic() + _LONGEST_WAIT
    while True:
        try:
            return step()
        except (OSError, SegmentationError) as error:
            # The cause of a client's error is that of the system.
            numbers = {cause.errno for cause in (error, error.__cause__) if isinstance(cause, OSError)}
            if numbers.isdisjoint({errno.EMFILE, errno.ENFILE}) or time.monotonic() > end:
                raise
        time.sleep(_PAUSE)


def describe(result: Segmentation) -> dict[str, Any]:
    """Return a result without its mask, for JSON."""
    return {
        "width": result.width,
        "height": result.height,
        "top_class": result.top_class,
        "background": result.class_names[0] if result.background else None,
        "pixels": result.pixel_counts,
        "fractions": result.fractions,
        "model": result.model_name,
        "model_version": result.model_version,
        "weights": result.weights,
        "untrained": result.untrained,
    }
