"""The state file of a run, with a line of JSON per image, from which the same command resumes."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, TextIO

from deeplabv3.evaluation import EvaluationError, StateError
from deeplabv3.files import lock_folder, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping
    from pathlib import Path


class RecordFile:
    """The state file of one run: a line with its settings, then a line per finished image.

    Lines are only appended, so a run that is killed loses at most the line that it was writing.

    Args:
        path: the path of the file.
        settings: the settings that must be equal to resume, JSON-compatible.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._file: TextIO | None = None

    @contextlib.contextmanager
    def open(self, take: Callable[[dict[str, Any]], None]) -> Generator[None]:
        """Pass the records of an earlier run, if any, to `take`; accept new ones until the end of the block.

        Raises:
            StateError: the earlier run had other settings, or the file is damaged.
            EvaluationError: the file cannot be read or written.
        """
        with writing(self.path):
            known = self._read(take)
            if known is None:
                write_atomically(self.path, f"{json.dumps({'settings': self._settings})}\n".encode())
            else:
                os.truncate(self.path, known)
            file = self.path.open("a", encoding="utf-8")
        with file as self._file:
            yield

    def append(self, record: Mapping[str, Any]) -> None:
        """Write the record of one image."""
        assert self._file is not None, "open() was not called"  # noqa: S101 - a bug in this package
        with writing(self.path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def discard(self) -> None:
        """Remove the file, because the run is finished or restarts."""
        self.path.unlink(missing_ok=True)

    def _read(self, take: Callable[[dict[str, Any]], None]) -> int | None:
        """Return the length of all complete lines in bytes, or None if there is no file."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise EvaluationError(f"{self.path} cannot be read: {exc.strerror}; give another --output") from exc
        # A killed run may have written the last line in part; its image is counted again.
        whole = data[: data.rfind(b"\n") + 1]
        try:
            header, *records = whole.splitlines()
            different = list(_differences(json.loads(header)["settings"], self._settings))
            if not different:
                for line in records:
                    take(json.loads(line))
        except (ValueError, LookupError, TypeError, AttributeError) as exc:
            raise StateError(f"{self.path} is not the state file of an evaluation; discard it with --restart") from exc
        if different:
            raise StateError(
                f"{self.path} was left by a run with other settings ({'; '.join(different)}); repeat the command of "
                "that run to resume it, discard it with --restart, or give this run another --name"
            )
        return len(whole)


@contextlib.contextmanager
def writing(path: Path) -> Generator[None]:
    """Turn errors of the storage into an EvaluationError that names the file."""
    try:
        yield
    except OSError as exc:
        raise EvaluationError(f"{path} cannot be written: {exc.strerror}; give another --output") from exc


@contextlib.contextmanager
def output_folder(path: Path) -> Generator[None]:
    """Create the folder and lock it against a second evaluation."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock_folder(path))
        except BlockingIOError as exc:
            raise EvaluationError(
                f"another evaluation is writing to {path}; wait for it, or give another --output"
            ) from exc
        except OSError as exc:
            raise EvaluationError(f"--output {path}: {exc.strerror}; give a writable folder") from exc
        yield


def _differences(before: Any, now: Any, path: str = "") -> Generator[str]:  # noqa: ANN401 - any JSON
    """Yield a text for each difference, with its place."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{path}{' ' if path else ''}{key}")
    elif before != now:
        yield f"{path} was {_shown(before)} and is {_shown(now)}"


def _shown(value: object) -> str:
    if value is None:
        return "not there"
    return "there" if isinstance(value, dict) else json.dumps(value)
