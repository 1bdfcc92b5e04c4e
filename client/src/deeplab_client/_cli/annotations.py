"""The COCO file of a run, and how a later run continues it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import time
from typing import TYPE_CHECKING, Any

from deeplab_client import _drawing
from deeplab_client._cli import record, streams
from deeplab_client._cli.formats import ANNOTATIONS, Format
from deeplab_client._cli.outputs import write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from deeplab_client import Segmentation
    from deeplab_client._cli.settings import Settings
    from deeplab_client._cli.sources import Selection, Source

# The least time between two saves: seconds, and a multiple of the time that the last one took.
_PAUSE, _PAUSE_PER_SAVE = 10.0, 20


class Annotations:
    """One COCO file for all pictures, in their order; each image carries a record of how it was made.

    It is saved at intervals, so that a killed run can be continued too.

    Args:
        folder: The existing output folder.
        selection: The pictures, and the folder that their names are relative to.
        force: Ignore an existing file and overwrite it.
        settings: How pictures are segmented.
        weights: Returns the weights of the model, if known; only called if there is a file.

    Raises:
        ValueError: There is a file that `deeplab segment` did not write, or that contains other pictures too.
        OSError: The file cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        selection: Selection,
        *,
        force: bool,
        settings: Settings,
        weights: Callable[[], dict[str, str | None]],
    ) -> None:
        self._path = folder / ANNOTATIONS
        self._root = selection.root
        self._settings = settings
        self._weights = weights
        self._order = {record.identity(source.place): i for i, source in enumerate(selection.sources)}
        # An image and its annotations, by the source in its record. A picture is removed from `_earlier` in its turn.
        self._earlier: dict[str, tuple[dict[str, Any], list[Any]]] = {}
        self._entries: dict[str, tuple[dict[str, Any], list[Any]]] = {}
        self._about: dict[str, Any] = {}
        self._escaped = 0
        self._changed = False
        self._next_save = time.monotonic() + _PAUSE
        self._seen = self._stamp()
        if not force:
            self._load()

    def existing(self, source: Source) -> list[Path] | None:
        """Return the file if it has up-to-date annotations of this picture from an earlier run, and keep them."""
        identity = record.identity(source.place)
        if identity not in self._earlier:
            return None
        image, annotations = self._earlier.pop(identity)
        made = image[record.KEY]
        wanted = record.about(source, self._settings, Format.COCO, weights=made.get(record.WEIGHTS))
        name = self._name(source)
        self._changed |= made != wanted | self._weights() or name != image["file_name"]
        if made != wanted | self._weights():
            return None
        self._entries[identity] = {**image, "file_name": name}, annotations
        return [self._path]

    def write(self, source: Source, result: Segmentation) -> list[Path]:
        """Add the annotations of one picture; save the file if the last save is long ago."""
        identity = record.identity(source.place)
        image = {
            "id": 0,  # set when the file is saved, as for the annotations
            "file_name": self._name(source),
            "width": result.width,
            "height": result.height,
            record.KEY: record.about(source, self._settings, Format.COCO, weights=result.weights),
        }
        self._entries[identity] = image, result.to_coco(image_id=0)
        warning = f"{_drawing.WARNING}; " if result.untrained else ""
        model = f"{result.model_name}/{result.model_version}, weights {result.weights or 'unknown'}"
        self._about = {"info": {"description": warning + model}, "categories": result.coco_categories()}
        self._changed = True
        if time.monotonic() > self._next_save:
            with contextlib.suppress(OSError):  # reported by the last save
                self._save()
        return [self._path]

    def finish(self) -> tuple[Path | None, list[str]]:
        """Write the file if it has changed; return it and remarks for the user."""
        if self._changed:
            self._save()
        if not self._entries:
            return None, []
        remarks = [f"file names in {ANNOTATIONS} are relative to {self._root}"]
        if self._escaped:
            remarks.append(
                f"file names that are not valid UTF-8: {self._escaped}; JSON cannot hold them, so they are written "
                "with \\x escapes: rename these pictures, because loaders cannot find them otherwise"
            )
        return self._path, remarks

    def _save(self) -> None:
        start = time.monotonic()
        images: list[Any] = []
        annotations: list[Any] = []
        entries = {**self._earlier, **self._entries}
        for number, identity in enumerate(sorted(entries, key=self._order.__getitem__), 1):
            image, found = entries[identity]
            images.append({**image, "id": number})
            for annotation in found:
                annotations.append({**annotation, "id": len(annotations) + 1, "image_id": number})
        data = {"info": self._about["info"], "images": images, "annotations": annotations}
        if self._stamp() != self._seen:
            raise FileExistsError(
                errno.EEXIST,
                "another run has changed it in the meantime: run again, or use another output folder",
                str(self._path),
            )
        content = json.dumps({**data, "categories": self._about["categories"]}).encode()
        write_atomically(self._path, content, replace=self._seen is not None)
        self._seen = self._stamp()
        end = time.monotonic()
        self._next_save = end + max(_PAUSE, _PAUSE_PER_SAVE * (end - start))

    def _load(self) -> None:
        try:
            data = json.loads(self._path.read_bytes())
            self._about = {"info": data["info"], "categories": data["categories"]}
            entries = {image["id"]: (image, list[Any]()) for image in data["images"]}
            for annotation in data["annotations"]:
                entries[annotation["image_id"]][1].append(annotation)
            self._earlier = {image[record.KEY][record.SOURCE]: (image, found) for image, found in entries.values()}
            names = {identity: str(image["file_name"]) for identity, (image, _) in self._earlier.items()}
        except FileNotFoundError:
            return
        except (ValueError, KeyError, TypeError) as error:
            message = f"{streams.clean(self._path)} was not written by deeplab segment"
            raise ValueError(f"{message}: use another folder, or overwrite it with --force") from error
        others = [name for identity, name in names.items() if identity not in self._order]
        if others:
            raise ValueError(
                f"{streams.clean(self._path)} contains pictures that are not named now ({len(others)}, such as "
                f"{streams.one_line(others[0])}): name them too, use another folder, or overwrite the file with --force"
            )

    def _stamp(self) -> tuple[int, int, int] | None:
        """Return a stamp that changes when another run writes the file; None if there is no file."""
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_size, stat.st_mtime_ns

    def _name(self, source: Source) -> str:
        name = source.place.relative_to(self._root).as_posix()
        try:
            name.encode()
        except UnicodeEncodeError:
            # json.dumps would write lone surrogates, and many readers refuse a file with them.
            self._escaped += 1
            return os.fsencode(name).decode(errors="backslashreplace")
        return name
