"""The standard streams: what a terminal may be told, and what becomes of a stream that takes no more."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path


class UnwritableError(OSError):
    """The standard output takes no more; what is written to it from now on is dropped."""


def say(text: str) -> None:
    """Write one line of results to stdout.

    Raises:
        BrokenPipeError: Its reader has gone.
        UnwritableError: It takes no more.
    """
    with _written():
        _line(sys.stdout, text)


def put(data: bytes) -> None:
    """Write a file to stdout.

    Raises:
        BrokenPipeError: Its reader has gone.
        UnwritableError: It takes no more.
    """
    with _written():
        sys.stdout.buffer.write(data)
        sys.stdout.flush()


@contextlib.contextmanager
def _written() -> Generator[None]:
    try:
        yield
    except BrokenPipeError:
        let_go(sys.stdout)
        raise
    except OSError as error:
        let_go(sys.stdout)
        raise UnwritableError(f"cannot write to standard output: {error.strerror}") from error


def notice(text: str) -> None:
    """Write one line about the command itself to stderr, where that can be written to."""
    try:
        _line(sys.stderr, f"deeplab: {one_line(text)}")
    except OSError:
        let_go(sys.stderr)


def warn_untrained(model: str) -> None:
    """Say on stderr that masks mean nothing."""
    notice(f"UNTRAINED WEIGHTS: the masks of {model} are noise, not segmentations")


def let_go(stream: TextIO) -> None:
    """Drop what a stream still holds and what is written to it later: Python would try again at its end, and fail."""
    with contextlib.suppress(OSError):  # it may be no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def clean(path: Path) -> str:
    """Return a path fit for a terminal, whatever is in its name."""
    text = str(path).encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "?" for c in text)


def one_line(text: str) -> str:
    """Return what a server says on one line, without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " if c.isspace() else "?" for c in text)


def _line(stream: TextIO, text: str) -> None:
    stream.write(f"{text}\n")
    stream.flush()
