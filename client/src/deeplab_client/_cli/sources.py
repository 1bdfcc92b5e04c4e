"""Which pictures are meant, and what each one's output is called."""

from __future__ import annotations

import glob
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".pnm")
"""Of the pictures that are looked for in folders; a file that is named is taken whatever its suffix."""

OWN_SUFFIXES = (".overlay.png", ".mask.png", ".classes.png")
"""Of the pictures that the command line writes: a second run over the same folder leaves them out."""


@dataclass(frozen=True, slots=True)
class Source:
    """One picture.

    Attributes:
        path: Where it lies, as it was given.
        name: Path of its output below the output folder, without the suffix that the format adds.
    """

    path: Path
    name: Path


def find(arguments: Iterable[str], *, recursive: bool) -> list[Source]:
    """Return the pictures that files, folders and patterns stand for, each once, in the order given.

    Raises:
        ValueError: A folder holds no pictures, a pattern matches none, or an argument is empty or -.
    """
    found: dict[str, Source] = {}
    for argument in arguments:
        for source in _expand(argument, recursive=recursive):
            found.setdefault(os.path.realpath(source.path), source)  # does not mind a loop of links
    return _told_apart(list(found.values()))


def _expand(argument: str, *, recursive: bool) -> list[Source]:
    if not argument:
        raise ValueError("an empty argument names no picture; for the current folder say .")
    if argument == "-":
        raise ValueError("the standard input is not read: name a file (one that is called - is ./-)")
    path = Path(argument)
    # Not the methods of Path: they raise for names that are too long and folders that are closed.
    if os.path.isdir(path):  # noqa: PTH112
        files = _in_folder(path, recursive=recursive)
        if not files:
            kinds = ", ".join(SUFFIXES)
            deeper = "" if recursive else "; --recursive looks into its folders too"
            raise ValueError(f"{argument} holds no pictures ({kinds}){deeper}")
        return [Source(file, file.relative_to(path).with_suffix("")) for file in files]
    if os.path.exists(path) or not glob.has_magic(argument):  # noqa: PTH110
        return [Source(path, _bare(path))]  # one that is missing fails by itself, later
    matches = [Path(match) for match in sorted(glob.glob(argument, recursive=True))]  # noqa: PTH207 takes ** and ..
    files = [match for match in matches if os.path.isfile(match) and not match.name.endswith(OWN_SUFFIXES)]  # noqa: PTH113
    if not files:
        raise ValueError(f"{argument} matches no file")
    return [Source(file, _bare(file)) for file in files]


def _bare(path: Path) -> Path:
    """Return a file's name without its suffix; not `stem`, by which `..jpg` would be called `.`, the folder itself."""
    return Path(os.path.splitext(path.name)[0])  # noqa: PTH122 see above


def _in_folder(folder: Path, *, recursive: bool) -> list[Path]:
    files: list[Path] = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if recursive and not name.startswith("."))
        files += [Path(parent, name) for name in sorted(names) if _is_picture(name)]
    return files


def _is_picture(name: str) -> bool:
    name = name.lower()
    return name.endswith(SUFFIXES) and not name.endswith(OWN_SUFFIXES) and not name.startswith(".")


def _told_apart(sources: Sequence[Source]) -> list[Source]:
    """Rename those whose outputs would have one name: first their suffix is kept, then their folders, too."""
    # Without "..", by which an output would leave its folder; it does not matter here where links lead.
    paths = [Path(os.path.abspath(source.path)) for source in sources]  # noqa: PTH100 absolute() keeps ".."
    root = Path(os.path.commonpath([path.parent for path in paths])) if paths else Path()
    choices = [
        (source.name, source.name.with_name(path.name), path.relative_to(root))
        for source, path in zip(sources, paths, strict=True)
    ]
    chosen = [names[0] for names in choices]
    for longer in (1, 2):
        uses = Counter(_key(name) for name in chosen)
        chosen = [names[longer] if uses[_key(name)] > 1 else name for name, names in zip(chosen, choices, strict=True)]
    taken: set[str] = set()
    apart: list[Source] = []
    for source, wish in zip(sources, chosen, strict=True):
        name, number = wish, 1
        while _key(name) in taken:
            number += 1
            name = wish.with_name(f"{wish.name}-{number}")
        taken.add(_key(name))
        apart.append(Source(source.path, name))
    return apart


def _key(name: Path) -> str:
    return str(name).casefold()  # some file systems take X and x for one
