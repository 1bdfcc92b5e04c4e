"""Where the outputs of a picture go, when they are done, and that each file is whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from deeplab_client._cli import record, streams
from deeplab_client._cli.formats import ANNOTATIONS, SUFFIXES, Format

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from deeplab_client import Segmentation
    from deeplab_client._cli.settings import Settings
    from deeplab_client._cli.sources import Source

_Record = dict[str, Any]


class Output(Protocol):
    """What is made of the results."""

    def existing(self, source: Source) -> list[Path] | None:
        """Return the files of an earlier run that were made of the same picture in the same way; None if one is not.

        Raises:
            OSError: An output cannot be read.
        """
        ...

    def write(self, source: Source, result: Segmentation) -> list[Path]:
        """Make the files of one picture.

        Raises:
            OSError: One cannot be written.
            InvalidImageError: The picture cannot be drawn on.
        """
        ...

    def finish(self) -> tuple[Path | None, list[str]]:
        """Complete what is incomplete; return where the files are, and what their reader must know.

        Raises:
            OSError: A file cannot be written.
        """
        ...


@dataclass(frozen=True, slots=True)
class Files:
    """Files for each picture, which carry a record of how they were made.

    They are named after their picture. A name stays that of another picture, in all formats, or of a file without a
    record: then folders of the picture's path are put before the name.

    Attributes:
        folder: Where they go; it exists.
        kinds: Their formats.
        force: Make those again that are done.
        settings: How pictures are segmented and drawn.
        weights: Returns the weights of the model, if they are told; called only if an output exists.
    """

    folder: Path
    kinds: Sequence[Format]
    force: bool
    settings: Settings
    weights: Callable[[], dict[str, str | None]]

    def existing(self, source: Source) -> list[Path] | None:
        """Return the files of an earlier run."""
        if self.force:
            return None
        path, made = self._place(source)
        for kind in self.kinds:
            there = made.get(kind)
            if there is None or not self._is_as_wanted(source, kind, there):
                return None
        return [_named(path, kind) for kind in self.kinds]

    def write(self, source: Source, result: Segmentation) -> list[Path]:
        """Draw and write the files."""
        data = {
            kind: record.add(
                _render(kind, source, result, self.settings),
                record.about(source, self.settings, kind, weights=result.weights),
            )
            for kind in self.kinds
        }
        while True:
            path, made = self._place(source)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                for kind in self.kinds:
                    write_whole(_named(path, kind), data[kind], replace=kind in made)
            except FileExistsError:  # another run was faster
                continue
            return [_named(path, kind) for kind in self.kinds]

    def finish(self) -> tuple[Path, list[str]]:
        """Return the folder: each file is complete."""
        return self.folder, []

    def _is_as_wanted(self, source: Source, kind: Format, made: _Record) -> bool:
        wanted = record.about(source, self.settings, kind, weights=made.get(record.WEIGHTS))
        return made == wanted | self.weights()

    def _place(self, source: Source) -> tuple[Path, dict[Format, _Record]]:
        """Return the path of a picture's outputs without their suffixes, and the records of those that are there."""
        identity, parts = record.identity(source.place), source.place.parts[1:]
        free, count = None, 0
        while True:
            count += 1
            name = Path(*parts[-count:])
            if count > len(parts):
                name = name.with_name(f"{name.name}-{count - len(parts) + 1}")
            path = self.folder / name
            found = None if _named(path, Format.JSON) == self.folder / ANNOTATIONS else _records(path)
            ours = {kind: made for kind, made in (found or {}).items() if made and made[record.SOURCE] == identity}
            if ours and all(kind in ours for kind in self.kinds if kind in (found or {})):
                return path, ours
            # Shorter than the usual name: that of a file that was named by itself, before its folder was.
            if found == {} and free is None and count >= len(source.name.parts):
                free = path
            if free is not None and count >= len(parts):
                return free, {}


def _records(path: Path) -> dict[Format, _Record | None] | None:
    """Return the record of every file that is named after one picture; None if no file can have such a name."""
    found: dict[Format, _Record | None] = {}
    try:
        for kind in SUFFIXES:
            with contextlib.suppress(FileNotFoundError):
                found[kind] = record.read(_named(path, kind))
    except NotADirectoryError:
        return None
    return found


def _named(path: Path, kind: Format) -> Path:
    return path.with_name(path.name + SUFFIXES[kind])


@dataclass(frozen=True, slots=True)
class StandardOutput:
    """The standard output, for one picture in one format."""

    kind: Format
    settings: Settings

    def existing(self, source: Source) -> None:
        """Return None: nothing is kept there."""
        del source

    def write(self, source: Source, result: Segmentation) -> list[Path]:
        """Write the picture's file, without a record."""
        data = _render(self.kind, source, result, self.settings)
        streams.put(data + b"\n" if self.kind is Format.JSON else data)
        return []

    def finish(self) -> tuple[None, list[str]]:
        """Return nothing."""
        return None, []


def _render(kind: Format, source: Source, result: Segmentation, settings: Settings) -> bytes:
    """Return the file that a format other than coco makes of a result.

    Raises:
        InvalidImageError: The picture cannot be drawn on.
    """
    if kind is Format.JSON:
        return json.dumps(result.to_dict(rle=True)).encode()
    if kind is Format.IDS:
        return result.to_png()
    if kind is Format.COLORS:
        picture = result.colorize()
    else:
        picture = result.overlay(source.image, alpha=settings.alpha, legend=settings.legend)
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def write_whole(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a file so that there is never half of it under its name.

    Raises:
        FileExistsError: There is one already, and it is not to be replaced.
        OSError: It cannot be written; what was there before is left.
    """
    part = path.with_name(f".{uuid4().hex}.part")
    try:
        part.write_bytes(data)
        if replace:
            os.replace(part, path)  # noqa: PTH105 - the same, and it says what it does
        else:
            _move(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.filename is None:  # a full disk is told without a name
            error.filename = str(path)
        raise


def _move(part: Path, path: Path) -> None:
    """Give a file a name that nothing has yet, whoever else tries the same at the same time."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # FAT and some network file systems have no links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(part, path)  # noqa: PTH105 - see above
    else:
        part.unlink()
