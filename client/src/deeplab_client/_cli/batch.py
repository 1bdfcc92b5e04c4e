"""Many pictures, one after the other, and what became of each."""

from __future__ import annotations

import errno
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from deeplab_client import SegmentationError
from deeplab_client._cli.server import raise_if_unusable

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

    from deeplab_client import Segmentation, SegmentationClient
    from deeplab_client._cli.outputs import Output
    from deeplab_client._cli.sources import Source

_T = TypeVar("_T")

_LONGEST_WAIT, _PAUSE = 60.0, 0.05  # seconds to wait for a file to be closed, and between two tries


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one picture; the mask itself is let go.

    Attributes:
        source: The picture.
        output: The file that its result is in.
        error: Why it failed.
        skipped: Whether it was not sent, because it was done before.
        found: What `describe` says about the result, where there is one.
    """

    source: Source
    output: Path | None = None
    error: str | None = None
    skipped: bool = False
    found: dict[str, Any] | None = None


def run(
    client: SegmentationClient, sources: Sequence[Source], output: Output | None, *, concurrency: int
) -> Generator[Outcome]:
    """Segment pictures and write what is made of them; yield what became of each, skipped ones first.

    Raises:
        ServerUnusableError: The server cannot be used; nothing more was sent.
    """
    wanted: list[Source] = []
    for named in sources:
        try:
            source = named.examined()
        except OSError as error:
            yield Outcome(named, error=f"cannot be read: {error.strerror}")
            continue
        try:
            existing = None if output is None else _patiently(partial(output.existing, source))
        except OSError as error:  # its name is too long, say: it could not be written either
            yield Outcome(source, error=str(error))
            continue
        if existing is None:
            wanted.append(source)
        else:
            yield Outcome(source, output=existing, skipped=True)
    answered = False
    paths = [source.path for source in wanted]
    with closing(client.segment_many(paths, concurrency=concurrency)) as results:
        for source, result in zip(wanted, results, strict=True):
            if isinstance(result, SegmentationError):
                raise_if_unusable(result, answered=answered)
                yield Outcome(source, error=str(result))
                continue
            answered = True
            try:
                path = None if output is None else _patiently(partial(output.write, source, result))
            except (OSError, SegmentationError) as error:
                yield Outcome(source, error=str(error), found=describe(result))
            else:
                yield Outcome(source, output=path, found=describe(result))


def _patiently(step: Callable[[], _T]) -> _T:
    """Return what a step returns; where too many files are open, wait until requests under way have closed some.

    Raises:
        OSError: It failed, or none were closed for long.
    """
    end = time.monotonic() + _LONGEST_WAIT
    while True:
        try:
            return step()
        except (OSError, SegmentationError) as error:
            # An error of the client's has the system's as its cause.
            numbers = {cause.errno for cause in (error, error.__cause__) if isinstance(cause, OSError)}
            if numbers.isdisjoint({errno.EMFILE, errno.ENFILE}) or time.monotonic() > end:
                raise
        time.sleep(_PAUSE)


def describe(result: Segmentation) -> dict[str, Any]:
    """Return a result without its mask, as JSON has it."""
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
