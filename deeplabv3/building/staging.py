"""Writing a build: one build at a time, atomic files, and a check that all folders are writable first."""

import contextlib
import tempfile
from collections.abc import Generator, Iterable
from pathlib import Path

from deeplabv3.errors import BuildError, RetryableBuildError
from deeplabv3.files import lock_folder, partial_of, remove


@contextlib.contextmanager
def locked(directory: Path) -> Generator[None]:
    """Create a repository's folder and lock it against a second build."""
    with contextlib.ExitStack() as stack:
        with _writing(directory):
            try:
                stack.enter_context(lock_folder(directory))
            except BlockingIOError as exc:
                raise RetryableBuildError(f"another build is writing to {directory}; wait for it or stop it") from exc
        yield


@contextlib.contextmanager
def partial_file(target: Path) -> Generator[Path]:
    """Yield the partial file of a target; at the end remove it if it is still there, and its folders if empty."""
    partial = partial_of(target)
    with _writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove(partial)  # left by a build that was killed
    try:
        yield partial
    finally:
        remove(partial)
        with contextlib.suppress(OSError):
            for folder in (target.parent, target.parent.parent):
                folder.rmdir()


def try_writing(folders: Iterable[Path]) -> None:
    """Check that every existing folder is writable, before tracing takes minutes.

    Raises:
        BuildError: a folder cannot be written to.
    """
    for folder in folders:
        with _writing(folder):
            if folder.exists():
                with tempfile.TemporaryFile(dir=folder) as trial:
                    trial.write(b"\0")


@contextlib.contextmanager
def _writing(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise BuildError(
            f"cannot write to {folder}: {exc.strerror}; make it writable, or use another folder with --model-repository"
        ) from exc
