"""What an interrupted run leaves on disk, so that the same command goes on where it stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from typing import TYPE_CHECKING, Any

from deeplabv3.evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from deeplabv3.evaluation.tally import Tally

# What a SIGKILL or a power cut may lose.
_SECONDS_BETWEEN_WRITES = 2.0


class StateFile:
    """The file of one run.

    Args:
        path: where it is.
        settings: what makes a run another one, as JSON can hold it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self._settings: dict[str, Any] = json.loads(json.dumps(settings))
        self._written = float("-inf")

    def load(self, tally: Tally) -> None:
        """Take over what an earlier run has counted, if there was one.

        Raises:
            EvaluationError: it had other settings, or the file is damaged.
        """
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return
        except OSError as exc:
            raise EvaluationError(f"{self.path} cannot be read: {exc.strerror}; give another --output") from exc
        remedy = "repeat that command to go on with it, pass --restart to discard it, or give this one another --name"
        try:
            content = json.loads(text)
            different = list(_differences(content["settings"], self._settings))
            if not different:
                tally.restore(content["tally"])
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise EvaluationError(f"{self.path} is no state of an evaluation; pass --restart to discard it") from exc
        if different:
            raise EvaluationError(
                f"{self.path} is what a run with other settings left ({'; '.join(different)}): {remedy}"
            )

    def save_if_due(self, tally: Tally) -> None:
        """Write the state if the last time was a while ago."""
        if time.monotonic() - self._written >= _SECONDS_BETWEEN_WRITES:
            self.save(tally)

    def save(self, tally: Tally) -> None:
        """Write the state, whole or not at all."""
        write_whole(self.path, json.dumps({"settings": self._settings, "tally": tally.to_json()}))
        self._written = time.monotonic()

    def discard(self) -> None:
        """Remove the file: the run is finished, or starts anew."""
        self.path.unlink(missing_ok=True)


def write_whole(path: Path, content: str) -> None:
    """Write a text file so that it holds, whatever happens, what it held before or all of this."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as exc:
        raise EvaluationError(f"{path} cannot be written: {exc.strerror}; give another --output") from exc


@contextlib.contextmanager
def output_folder(path: Path) -> Generator[None]:
    """Make the folder and keep a second evaluation out of it; the lock goes with the process, however it ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as exc:
        raise EvaluationError(f"--output {path}: {exc.strerror}; give a folder that can be written") from exc
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as exc:
        raise EvaluationError(f"another evaluation writes to {path}; wait for it, or give another --output") from exc
    finally:
        os.close(descriptor)


def _differences(before: Any, now: Any, path: str = "") -> Generator[str]:  # noqa: ANN401  any JSON
    """Yield what differs, by its place."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{path}{' ' if path else ''}{key}")
    elif before != now:
        yield f"{path} was {_shown(before)} and is {_shown(now)}"


def _shown(value: object) -> str:
    if value is None:
        return "not there"
    return "there" if isinstance(value, dict) else json.dumps(value)
