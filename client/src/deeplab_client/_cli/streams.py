"""The standard streams: printable text, and streams that cannot be written to."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


class UnwritableError(OSError):
    """Standard output cannot be written to; further output is dropped."""


def say(text: str) -> None:
    """Write one line of results to stdout.

    Raises:
        BrokenPipeError: It was closed by its reader.
        UnwritableError: It cannot be written to.
    """
    with _written():
        _line(sys.stdout, text)


def put(data: bytes) -> None:
    """Write a file to stdout.

    Raises:
        BrokenPipeError: It was closed by its reader.
        UnwritableError: It cannot be written to.
    """
    with _written():
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


@contextlib.contextmanager
def _written() -> Generator[None]:
    try:
        yield
    except BrokenPipeError:
        discard(sys.stdout)
        raise
    except OSError as error:
        discard(sys.stdout)
        raise UnwritableError(f"cannot write to standard output: {error.strerror}") from error


def notice(text: str) -> None:
    """Write one line about the command itself to stderr, if possible."""
    try:
        _line(sys.stderr, f"deeplab: {one_line(text)}")
    except OSError:
        discard(sys.stderr)


def warn_untrained(model: str) -> None:
    """Warn on stderr that masks are noise."""
    notice(f"UNTRAINED WEIGHTS: the masks of {model} are noise, not segmentations")


def discard(stream: TextIO) -> None:
    """Discard pending and further output of a stream, because Python would write it at exit, and fail."""
    with contextlib.suppress(OSError):  # it may not be a file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def clean(path: Path) -> str:
    """Return a path as printable text."""
    text = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def one_line(text: str) -> str:
    """Return a text on one line, without control characters."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def _line(stream: TextIO, text: str) -> None:
    stream.write(f"{text}\n")
    stream.flush()
