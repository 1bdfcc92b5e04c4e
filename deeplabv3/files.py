"""Files that are written whole or not at all, in a folder that one process at a time writes to."""

import contextlib
import fcntl
import os
from collections.abc import Generator
from pathlib import Path


@contextlib.contextmanager
def lock_folder(folder: Path) -> Generator[None]:
    """Make a folder and keep other processes out of it; the lock goes with the process, however it ends.

    Raises:
        BlockingIOError: another process has the lock.
        OSError: the folder cannot be made or opened.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def partial_of(path: Path) -> Path:
    """Return the hidden file beside a path that is written first and then moved to it."""
    return path.with_name(f".{path.name}.partial")


def remove(path: Path) -> None:
    """Remove a file if there is one; in a read-only folder, unlink fails for a missing one too."""
    if path.exists():
        path.unlink()


def write_whole(path: Path, content: bytes) -> bool:
    """Write a file so that it holds, whatever happens, what it held before or all of the content.

    An equal file stays untouched. The folder must be locked, because what a killed process left unfinished is
    overwritten.

    Returns:
        Whether the file has changed.

    Raises:
        OSError: what the storage says.
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
        exc.filename = exc.filename or str(path)  # a full disk names none
        raise
    finally:
        remove(partial)
    return True
