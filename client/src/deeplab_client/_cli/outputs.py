"""What is written, where, and that it is whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from dataclasses import dataclass
from enum import Enum
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias
from uuid import uuid4

from deeplab_client import _drawing
from deeplab_client._cli import record

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deeplab_client import Segmentation
    from deeplab_client._cli.sources import Source

ANNOTATIONS = "annotations.json"


class Format(str, Enum):
    """Formats of the output."""

    OVERLAY = "overlay"
    MASK = "mask"
    PNG = "png"
    COCO = "coco"


@dataclass(frozen=True, slots=True)
class Pictures:
    """One PNG for each picture, which carries a record of how it was made.

    An output is named after its picture. A name that belongs to another picture, or to a file without a record, stays
    theirs: then folders of the picture's path are put before the name.

    Attributes:
        folder: Where they go; it exists.
        kind: Which PNG.
        force: Make those again that are done.
        alpha: Of an overlay.
        legend: Of an overlay.
        model: Name of the model.
        weights: Returns what the model's weights are now; called only if an output exists.
    """

    folder: Path
    kind: Format
    force: bool
    alpha: float
    legend: bool
    model: str
    weights: Callable[[], str | None]

    def existing(self, source: Source) -> Path | None:
        """Return the PNG of an earlier run that was made of the same picture in the same way.

        Raises:
            OSError: An output cannot be read.
        """
        if self.force:
            return None
        path, made = self._place(source)
        return path if made and made == self._record(source, self.weights()) else None

    def write(self, source: Source, result: Segmentation) -> Path:
        """Draw and write one PNG.

        Raises:
            OSError: It cannot be written.
            InvalidImageError: The picture cannot be drawn on.
        """
        data = record.add(self._draw(source, result), self._record(source, result.weights))
        while True:
            path, made = self._place(source)
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                write_whole(path, data, replace=made is not None)
            except FileExistsError:  # another run was faster
                continue
            return path

    def finish(self) -> tuple[Path, list[str]]:
        """Return the folder: each PNG is complete."""
        return self.folder, []

    def _place(self, source: Source) -> tuple[Path, Mapping[str, Any] | None]:
        """Return a picture's output and its record; if it has none yet, where it is to be written."""
        suffix = "classes" if self.kind is Format.PNG else self.kind.value
        identity, parts = record.identity(source.place), source.place.parts[1:]
        free, count = None, 0
        while True:
            count += 1
            name = Path(*parts[-count:])
            if count > len(parts):
                name = name.with_name(f"{name.name}-{count - len(parts) + 1}")
            path = self.folder / name.with_name(f"{name.name}.{suffix}.png")
            try:
                made = record.read(path)
            except FileNotFoundError:
                # Shorter than the usual name: that of a file that was named by itself, before its folder was.
                if free is None and count >= len(source.name.parts):
                    free = path
            except NotADirectoryError:
                pass
            else:
                if made and made[record.SOURCE] == identity:
                    return path, made
            if free is not None and count >= len(parts):
                return free, None

    def _record(self, source: Source, weights: str | None) -> dict[str, Any]:
        options = {"alpha": self.alpha, "legend": self.legend} if self.kind is Format.OVERLAY else {}
        return {
            record.SOURCE: record.identity(source.place),
            "size": source.size,
            "modified": source.modified,
            "model": self.model,
            "weights": weights,
            **options,
        }

    def _draw(self, source: Source, result: Segmentation) -> bytes:
        if self.kind is Format.PNG:
            return result.to_png()
        if self.kind is Format.MASK:
            picture = result.colorize()
        else:
            picture = result.overlay(source.path, alpha=self.alpha, legend=self.legend)
        file = BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()


class Annotations:
    """One COCO file for all pictures.

    Args:
        folder: Where it goes; it exists.
        root: The folder that the names of the pictures are relative to.
    """

    def __init__(self, folder: Path, root: Path) -> None:
        self._path = folder / ANNOTATIONS
        self._root = root
        self._images: list[dict[str, Any]] = []
        self._annotations: list[Any] = []
        self._categories: list[Any] = []
        self._about = ""
        self._escaped = 0

    def existing(self, source: Source) -> None:
        """Return None: the file is made anew."""
        del source

    def write(self, source: Source, result: Segmentation) -> Path:
        """Keep one picture's annotations until the end."""
        number = len(self._images) + 1
        image = {"id": number, "file_name": self._name(source), "width": result.width, "height": result.height}
        self._images.append(image)
        self._annotations += result.to_coco(image_id=number, first_id=len(self._annotations) + 1)
        self._categories = result.coco_categories()
        warning = f"{_drawing.WARNING}; " if result.untrained else ""
        self._about = f"{warning}{result.model_name}/{result.model_version}, weights {result.weights or 'unknown'}"
        return self._path

    def finish(self) -> tuple[Path | None, list[str]]:
        """Write the file if there is something to write; return it, and what its reader must know.

        Raises:
            OSError: It cannot be written.
        """
        if not self._images:
            return None, []
        data = {
            "info": {"description": self._about},
            "images": self._images,
            "annotations": self._annotations,
            "categories": self._categories,
        }
        write_whole(self._path, json.dumps(data).encode())
        remarks = [f"file names in {ANNOTATIONS} are relative to {self._root}"]
        if self._escaped:
            remarks.append(
                f"file names that are not UTF-8, which JSON cannot hold: {self._escaped}, written with \\x..; "
                "rename these pictures, or loaders will not find them"
            )
        return self._path, remarks

    def _name(self, source: Source) -> str:
        name = source.place.relative_to(self._root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            # json.dumps would write half characters, for which many readers refuse the whole file.
            self._escaped += 1
            return os.fsencode(name).decode(errors="backslashreplace")
        return name


Output: TypeAlias = Pictures | Annotations


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
            os.replace(part, path)  # noqa: PTH105 the same, and it says what it does
        else:
            _move(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
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
        os.replace(part, path)  # noqa: PTH105 see above
    else:
        part.unlink()
