"""What is written, where, and that it is whole."""

from __future__ import annotations

import contextlib
import json
import os
from enum import Enum
from io import BytesIO
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from deeplab_client import _banner

if TYPE_CHECKING:
    from pathlib import Path

    from deeplab_client import Segmentation
    from deeplab_client._cli.sources import Source

ANNOTATIONS = "annotations.json"


class Format(str, Enum):
    """Formats of the output."""

    OVERLAY = "overlay"
    MASK = "mask"
    PNG = "png"
    COCO = "coco"


class Output(Protocol):
    """Where results go."""

    def existing(self, source: Source) -> Path | None:
        """Return the output that a picture has already and that is to be kept.

        Raises:
            OSError: There is no telling.
        """
        ...

    def write(self, source: Source, result: Segmentation) -> Path | None:
        """Write one result; return the file.

        Raises:
            OSError: It cannot be written.
            InvalidImageError: The picture cannot be drawn on.
        """
        ...

    def finish(self) -> Path | None:
        """Write what stands for all of them; return the file."""
        ...


class Nothing:
    """Writes no file."""

    def existing(self, source: Source) -> None:
        """Return None."""
        del source

    def write(self, source: Source, result: Segmentation) -> None:
        """Do nothing."""
        del source, result

    def finish(self) -> None:
        """Do nothing."""


class Pictures:
    """One PNG for each picture.

    Args:
        folder: Where they go; it exists.
        kind: Which PNG.
        force: Overwrite what exists.
        alpha: Of an overlay.
        legend: Of an overlay.
    """

    def __init__(self, folder: Path, *, kind: Format, force: bool, alpha: float, legend: bool) -> None:
        self._folder = folder
        self._kind = kind
        self._force = force
        self._alpha = alpha
        self._legend = legend

    def existing(self, source: Source) -> Path | None:
        """Return the PNG of an earlier run."""
        path = self._path(source)
        return path if not self._force and path.exists() else None

    def write(self, source: Source, result: Segmentation) -> Path:
        """Draw and write one PNG."""
        path = self._path(source)
        data = self._draw(source, result)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
        return path

    def finish(self) -> None:
        """Do nothing: each PNG stands for itself."""

    def _path(self, source: Source) -> Path:
        suffix = "classes" if self._kind is Format.PNG else self._kind.value
        return self._folder / source.name.with_name(f"{source.name.name}.{suffix}.png")

    def _draw(self, source: Source, result: Segmentation) -> bytes:
        if self._kind is Format.PNG:
            return result.to_png()
        if self._kind is Format.MASK:
            picture = result.colorize()
        else:
            picture = result.overlay(source.path, alpha=self._alpha, legend=self._legend)
        file = BytesIO()
        picture.save(file, "PNG")
        return file.getvalue()


class Annotations:
    """One COCO file for all pictures.

    Args:
        folder: Where it goes; it exists.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / ANNOTATIONS
        self._images: list[dict[str, Any]] = []
        self._annotations: list[Any] = []
        self._categories: list[Any] = []
        self._about = ""

    def existing(self, source: Source) -> None:
        """Return None: the file is made anew."""
        del source

    def write(self, source: Source, result: Segmentation) -> Path:
        """Keep one picture's annotations until the end."""
        height, width = result.mask.shape
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": str(source.path), "width": width, "height": height})
        self._annotations += result.to_coco(image_id=number, first_id=len(self._annotations) + 1)
        self._categories = result.coco_categories()
        warning = f"{_banner.TEXT}; " if result.untrained else ""
        self._about = f"{warning}{result.model_name}/{result.model_version}, weights {result.weights or 'unknown'}"
        return self._path

    def finish(self) -> Path | None:
        """Write the file if there is something to write."""
        if not self._images:
            return None
        data = {
            "info": {"description": self._about},
            "images": self._images,
            "annotations": self._annotations,
            "categories": self._categories,
        }
        write_whole(self._path, json.dumps(data).encode())
        return self._path


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that there is never half of it under its name.

    Raises:
        OSError: It cannot be written; what was there before is left.
    """
    part = path.with_name(f".{uuid4().hex}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)  # noqa: PTH105 the same, and it says what it does
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
