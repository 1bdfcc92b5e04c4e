"""How a build writes: one build at a time, every file whole or not at all, and nothing before all can be written."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path

from deeplabv3.errors import BuildError, RetryableBuildError


@contextlib.contextmanager
def locked(directory: Path) -> Generator[None]:
    """Keep a second build away from a repository; the lock goes with the process, however it ends."""
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as exc:
        raise RetryableBuildError(f"another build is writing to {directory}; wait for it or stop it") from exc
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def partial_file(target: Path) -> Generator[Path]:
    """Yield the file to move to target when it is complete; at the end it goes, and so do its folders if empty."""
    partial = target.with_name(f".{target.name}.partial")
    with _writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.unlink(missing_ok=True)  # of a build that was killed
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            for folder in (target.parent, target.parent.parent):
                folder.rmdir()


def try_writing(folders: Iterable[Path]) -> None:
    """Write into every folder that exists, and take it away again: tracing takes minutes.

    Raises:
        BuildError: a folder cannot be written to.
    """
    for folder in folders:
        with _writing(folder):
            if folder.exists():
                with tempfile.TemporaryFile(dir=folder) as trial:
                    trial.write(b"\0")


def write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; leave an equal one untouched."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def _writing(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise BuildError(
            f"{folder} cannot be written to: {exc.strerror}; change that or give another folder with --model-repository"
        ) from exc
