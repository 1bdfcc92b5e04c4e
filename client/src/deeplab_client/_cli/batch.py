"""Many pictures, one after the other, and what became of each."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict

from deeplab_client import SegmentationError

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from pathlib import Path

    from deeplab_client import Segmentation, SegmentationClient
    from deeplab_client._cli.outputs import Output
    from deeplab_client._cli.sources import Source


class ServerUnusableError(Exception):
    """What one picture met, every other would meet too; the cause says what."""

    def __init__(self, cause: SegmentationError, *, unreachable: bool) -> None:
        super().__init__(str(cause))
        self.unreachable = unreachable


class Found(TypedDict):
    """A result without its mask, as JSON has it."""

    width: int
    height: int
    top_class: str | None
    background: str
    pixels: dict[str, int]
    fractions: dict[str, float]
    model: str
    model_version: str
    weights: str | None
    untrained: bool


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one picture; the mask itself is let go.

    Attributes:
        path: The picture.
        output: The file that its result is in.
        error: Why it failed.
        skipped: Whether it was not sent, for its output exists.
        found: What the result says, where there is one.
    """

    path: Path
    output: Path | None = None
    error: str | None = None
    skipped: bool = False
    found: Found | None = None


def run(
    client: SegmentationClient, sources: Sequence[Source], output: Output, *, concurrency: int
) -> Generator[Outcome]:
    """Segment pictures and write what is made of them; yield what became of each, skipped ones first.

    Raises:
        ServerUnusableError: The server cannot be used; nothing more was sent.
    """
    wanted: list[Source] = []
    for source in sources:
        try:
            existing = output.existing(source)
        except OSError as error:  # its name is too long, say: it could not be written either
            yield Outcome(source.path, error=str(error))
            continue
        if existing is None:
            wanted.append(source)
        else:
            yield Outcome(source.path, output=existing, skipped=True)
    answered = False
    paths = [source.path for source in wanted]
    with closing(client.segment_many(paths, concurrency=concurrency)) as results:
        for source, result in zip(wanted, results, strict=True):
            if isinstance(result, SegmentationError):
                give_up_on(result, answered=answered)
                yield Outcome(source.path, error=str(result))
                continue
            answered = True
            try:
                path = output.write(source, result)
            except (OSError, SegmentationError) as error:
                yield Outcome(source.path, error=str(error), found=describe(result))
            else:
                yield Outcome(source.path, output=path, found=describe(result))


def give_up_on(error: SegmentationError, *, answered: bool) -> None:
    """Raise where no other picture would fare better.

    Raises:
        ServerUnusableError: The server is not there, or does not do this.
    """
    # By the builtin that each leaf also is. A server that never answered in time is taken for one that is not there.
    unreachable = isinstance(error, ConnectionError) or (isinstance(error, TimeoutError) and not answered)
    if unreachable or isinstance(error, (LookupError, PermissionError, NotImplementedError)):
        raise ServerUnusableError(error, unreachable=unreachable) from error


def describe(result: Segmentation) -> Found:
    """Return what is told about a result."""
    height, width = result.mask.shape
    return {
        "width": width,
        "height": height,
        "top_class": result.top_class,
        "background": result.class_names[0],
        "pixels": result.pixels,
        "fractions": {name: count / result.mask.size for name, count in result.pixels.items()},
        "model": result.model_name,
        "model_version": result.model_version,
        "weights": result.weights,
        "untrained": result.untrained,
    }
