"""Atomic writes of files, in folders to which one process writes at a time."""

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def lock_folder(folder: Path) -> Generator[None]:
    """Create a folder and lock it against other processes; the lock ends with the process, however it ends.

    Raises:
        BlockingIOError: another process has the lock.
        OSError: the folder cannot be created or opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def partial_of(path: Path) -> Path:
    """Return the hidden file that is written first and then moved to a path."""
    return path.with_name(f".{path.name}.partial")


def remove(path: Path) -> None:
    """Remove a file if it exists: in a read-only folder, unlink fails even for a missing file."""
    if path.exists():
        path.unlink()


def write_atomically(path: Path, content: bytes) -> bool:
    """Write a file atomically: whatever happens, it has its old content or all of the new content.

    A file with equal content is not touched. The folder must be locked, because the unfinished file of a killed process
    is overwritten.

    Returns:
        Whether the file has changed.

    Raises:
        OSError: the file cannot be written.
    """
    partial = partial_of(path)
    if path.exists() and path.read_bytes() == content:
        remove(partial)
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as exc:
        exc.filename = exc.filename or str(path)  # the error of a full disk names no file
        raise
    finally:
        remove(partial)
    return True
