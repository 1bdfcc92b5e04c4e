"""The output files of a picture: their names, whether they are up to date, and how they are written."""

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
    """Writes results in one or several formats."""

    def existing(self, source: Source) -> list[Path] | None:
        """Return the picture's files of an earlier run if all are up to date, else None.

        Raises:
            OSError: An output cannot be read.
        """
        ...

    def write(self, source: Source, result: Segmentation) -> list[Path]:
        """Write the files of one picture.

        Raises:
            OSError: A file cannot be written.
            InvalidImageError: The picture cannot be decoded for drawing.
        """
        ...

    def finish(self) -> tuple[Path | None, list[str]]:
        """Complete the files; return their path and remarks for the user.

        Raises:
            OSError: A file cannot be written.
        """
        ...


@dataclass(frozen=True, slots=True)
class Files:
    """Files for each picture, with a record of how they were made.

    They are named after their picture. If the name belongs to another picture, in any format, or to a file without a
    record, folders of the picture's path are put before the name.

    Attributes:
        folder: The existing output folder.
        kinds: The formats.
        force: Write files again that are up to date.
        settings: How pictures are segmented and drawn.
        weights: Returns the weights of the model, if known; only called if an output exists.
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
            if there is None or not self._is_up_to_date(source, kind, there):
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
                    write_atomically(_named(path, kind), data[kind], replace=kind in made)
            except FileExistsError:  # another run has just written it
                continue
            return [_named(path, kind) for kind in self.kinds]

    def finish(self) -> tuple[Path, list[str]]:
        """Return the folder; all files are complete."""
        return self.folder, []

    def _is_up_to_date(self, source: Source, kind: Format, made: _Record) -> bool:
        wanted = record.about(source, self.settings, kind, weights=made.get(record.WEIGHTS))
        return made == wanted | self.weights()

    def _place(self, source: Source) -> tuple[Path, dict[Format, _Record]]:
        """Return the path of a picture's outputs without suffixes, and the records of the existing ones."""
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
            # A shorter name is from a run that named the file itself instead of its folder.
            if found == {} and free is None and count >= len(source.name.parts):
                free = path
            if free is not None and count >= len(parts):
                return free, {}


def _records(path: Path) -> dict[Format, _Record | None] | None:
    """Return the record of each existing file with this name; None if no file can have the name."""
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
    """Standard output, for one picture in one format."""

    kind: Format
    settings: Settings

    def existing(self, source: Source) -> None:
        """Return None, because nothing is kept."""
        del source

    def write(self, source: Source, result: Segmentation) -> list[Path]:
        """Write the file of the picture, without a record."""
        data = _render(self.kind, source, result, self.settings)
        streams.put(data + b"\n" if self.kind is Format.JSON else data)
        return []

    def finish(self) -> tuple[None, list[str]]:
        """Return nothing."""
        return None, []


def _render(kind: Format, source: Source, result: Segmentation, settings: Settings) -> bytes:
    """Return the content of an output file, in any format except coco.

    Raises:
        InvalidImageError: The picture cannot be decoded for drawing.
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


def write_atomically(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Write a file atomically: its name never has incomplete content.

    Raises:
        FileExistsError: The file exists and must not be replaced.
        OSError: It cannot be written; an existing file is unchanged.
    """
    part = path.with_name(f".{uuid4().hex}.part")
    try:
        part.write_bytes(data)
        if replace:
            os.replace(part, path)  # noqa: PTH105 - Path.replace is less clear
        else:
            _move(part, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            part.unlink()
        if isinstance(error, OSError) and error.filename is None:  # the error of a full disk has no name
            error.filename = str(path)
        raise


def _move(part: Path, path: Path) -> None:
    """Rename a file to a name that must not exist, also if another process does the same at the same time."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:  # FAT and some network file systems have no hard links
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(part, path)  # noqa: PTH105 - see above
    else:
        part.unlink()
