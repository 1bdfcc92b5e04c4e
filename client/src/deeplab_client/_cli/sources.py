"""The pictures that the arguments name, and the other content of named folders."""

from __future__ import annotations

import errno
import glob
import os
import re
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deeplab_client._cli import formats

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".avif", ".heic", ".heif"),
)
"""Suffixes of pictures in folders; a named file may have any suffix."""

# Suffixes of outputs: a second run over the same folder leaves them out.
_OWN_SUFFIXES = tuple(formats.SUFFIXES.values())

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)  # not C://

# Kinds of left out files. A linked folder may lead anywhere, also back to its parent.
_LINKED = "linked folders, only searched if named"
_DEEPER = "folders, searched with --recursive"
_MATCHED = "folders that match a pattern"
_HIDDEN = "hidden files and folders"
_OTHER = "files of other types"
_OWN = "files named like outputs"
_MOST_NAMES = 3  # of each kind


@dataclass(frozen=True, slots=True)
class Source:
    """One picture.

    Attributes:
        path: The path as given.
        place: The absolute path, with the links of its folder resolved; equal for the same file.
        name: Its path below the given folder, or the name of the given file.
        size: Size in bytes, after `examined`.
        modified: Modification time in nanoseconds, after `examined`.
        data: The bytes of standard input, after `examined`.
    """

    path: Path
    place: Path
    name: Path
    size: int = 0
    modified: int = 0
    data: bytes | None = None

    @property
    def image(self) -> Path | bytes:
        """The image for the client."""
        return self.path if self.data is None else self.data

    def examined(self) -> Source:
        """Return the source with its current size and modification time, or with the data of standard input.

        Raises:
            OSError: It is missing or cannot be read, or standard input is empty.
        """
        if self == STANDARD_INPUT:
            data = sys.stdin.buffer.read()
            if not data:
                raise OSError(errno.ENODATA, "standard input is empty, so pipe a picture into it")
            return replace(self, data=data)
        about = self.path.stat()
        return replace(self, size=about.st_size, modified=about.st_mtime_ns)


STANDARD_INPUT = Source(Path("-"), Path("-"), Path("-"))
"""Not equal to any file, because the place of a file is absolute."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The pictures that the arguments name.

    Attributes:
        sources: The pictures, each once, in the given order.
        root: The given folder; for several folders and files, the deepest folder that contains all of them.
        left_out: A short text about left out files and folders.
        unreadable: Errors of subfolders that could not be searched.
    """

    sources: list[Source]
    root: Path
    left_out: str
    unreadable: list[OSError]

    def notices(self) -> list[str]:
        """Return lines about files and folders that were left out or could not be read."""
        notices = [f"cannot read the folder {error.filename}: {error.strerror}" for error in self.unreadable]
        return [*notices, f"left out: {self.left_out}"] if self.left_out else notices


def find(arguments: Iterable[str], *, recursive: bool) -> Selection:
    """Return the pictures that files, folders and patterns name.

    Raises:
        ValueError: A folder contains no pictures or cannot be read, a pattern matches no file, standard input is a
            terminal or closed, or an argument is empty or a URL.
    """
    search = _Search(recursive=recursive)
    sources: dict[Path, Source] = {}
    for argument in arguments:
        for source in search.expand(argument):
            sources.setdefault(source.place, source)
    root = Path(os.path.commonpath(search.roots)) if search.roots else Path()
    return Selection(list(sources.values()), root, search.left_out(), search.unreadable)


def is_url(text: str) -> bool:
    """Return whether a text starts with a scheme, such as https://host/a.jpg or s3://bucket/a.jpg."""
    return _URL.match(text) is not None


class _Search:
    def __init__(self, *, recursive: bool) -> None:
        self.roots: set[str] = set()
        self.unreadable: list[OSError] = []
        self._recursive = recursive
        self._left_out: defaultdict[str, list[str]] = defaultdict(list)

    def expand(self, argument: str) -> list[Source]:
        if not argument:
            raise ValueError("must not be empty: use . for the current folder")
        if argument == "-":
            # A closed stream is None.
            if sys.stdin is None or sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison]
                raise ValueError("- is standard input: pipe a picture into it, or name a file of that name as ./-")
            return [STANDARD_INPUT]
        if is_url(argument):
            remedy = "leave out file://" if argument.lower().startswith("file:") else "download it and name the file"
            raise ValueError(f"must be a file or folder, got the URL {argument}: {remedy}")
        path = Path(argument)
        # Not the methods of Path, because they raise for long names and unreadable folders.
        if os.path.isdir(path):  # noqa: PTH112 - see above
            return self._in_folder(path)
        if os.path.exists(path) or not glob.has_magic(argument):  # noqa: PTH110 - see above
            return [self._named(path)]  # a missing file fails later
        matches = sorted({Path(match) for match in self._matches(argument)})
        files = [match for match in matches if self._is_matched(match, every_depth="**" in argument)]
        if not files:
            raise ValueError(f"the pattern {argument} matches no file")
        return [self._named(file) for file in files]

    def _matches(self, pattern: str) -> Iterator[str]:
        """Yield the matches of a pattern; ** does not follow linked folders, which could be endless."""
        before, found, rest = f"/{pattern}".partition("/**/")
        if not found and before.endswith("/**"):
            before, found, rest = before[:-3], "**", "*"
        if not found:
            yield from glob.glob(pattern)  # noqa: PTH207 - accepts ..
            return
        for top in glob.glob(before[1:]) if before else [os.curdir]:  # noqa: PTH207 - accepts ..
            for folder, folders, _ in os.walk(top):
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                for path in (Path(folder, name) for name in folders):
                    if path.is_symlink() and str(path) not in self._left_out.get(_LINKED, []):
                        self._left_out[_LINKED].append(str(path))
                yield from self._matches(os.path.join(glob.escape(folder), rest))  # noqa: PTH118 - a pattern, not a path

    def left_out(self) -> str:
        return "; ".join(f"{kind}: {len(names)} ({_shortened(names)})" for kind, names in self._left_out.items())

    def _named(self, path: Path) -> Source:
        folder = os.path.realpath(path.parent)
        self.roots.add(folder)
        return Source(path, Path(folder, path.name), Path(path.name))

    def _in_folder(self, folder: Path) -> list[Source]:
        sources: list[Source] = []
        errors: list[OSError] = []
        place = os.path.realpath(folder)
        self.roots.add(place)
        for parent, folders, names in os.walk(folder, onerror=errors.append):
            folders[:] = [name for name in sorted(folders) if self._is_searched(Path(parent, name))]
            for path in (Path(parent, name) for name in sorted(names)):
                if self._is_picture(path):
                    below = path.relative_to(folder)
                    sources.append(Source(path, Path(place, below), below))
        if not sources and errors:
            raise ValueError(f"cannot read the folder {errors[0].filename}: {errors[0].strerror}")
        if not sources:
            deeper = "" if self._recursive else "; --recursive searches its subfolders too"
            left_out = f"; left out: {self.left_out()}" if self._left_out else ""
            raise ValueError(f"the folder {folder} contains no pictures ({', '.join(SUFFIXES)}){deeper}{left_out}")
        self.unreadable += errors
        return sources

    def _is_searched(self, folder: Path) -> bool:
        if folder.name.startswith("."):
            kind = _HIDDEN
        elif os.path.islink(folder):  # noqa: PTH114 - see above
            kind = _LINKED
        elif not self._recursive:
            kind = _DEEPER
        else:
            return True
        self._left_out[kind].append(str(folder))
        return False

    def _is_picture(self, file: Path) -> bool:
        name = file.name.lower()
        if not name.endswith(SUFFIXES):
            if not name.startswith("."):  # .DS_Store and similar files are everywhere
                self._left_out[_OTHER].append(os.path.splitext(name)[1] or file.name)  # noqa: PTH122 - suffix drops "x."
            return False
        kind = _HIDDEN if name.startswith(".") else _OWN if name.endswith(_OWN_SUFFIXES) else None
        if kind is not None:
            self._left_out[kind].append(str(file))
        return kind is None

    def _is_matched(self, match: Path, *, every_depth: bool) -> bool:
        if os.path.isdir(match):  # noqa: PTH112 - see above
            kind = _LINKED if os.path.islink(match) else _MATCHED  # noqa: PTH114 - see above
            if not every_depth:  # with **, its content matches too
                self._left_out[kind].append(str(match))
            return False
        if match.name.lower().endswith(_OWN_SUFFIXES):
            self._left_out[_OWN].append(str(match))
            return False
        return True  # also a broken link, which fails later


def _shortened(names: list[str]) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:_MOST_NAMES]) + (", ..." if len(shown) > _MOST_NAMES else "")
