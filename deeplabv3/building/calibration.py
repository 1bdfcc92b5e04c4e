"""The calibration pictures of an int8 build: read as the server reads them, and partly held out."""

import functools
import hashlib
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deeplabv3.building.steps import MODEL_REPOSITORY
from deeplabv3.errors import BuildError

FEWEST = 20
"""The smallest number of calibration pictures: fewer would give the activation ranges of these pictures only."""

_HELD_OUT = 5  # every fifth picture
_PREPROCESS = MODEL_REPOSITORY / "preprocess" / "1"


def pixel_settings(parameters: Mapping[str, str]) -> dict[str, str]:
    """Return the parameters of `preprocess` that change pixels."""
    return {name: parameters[name] for name in ("resize_mode", "resize_size", "scaled_decoding")}


@dataclass(frozen=True, slots=True)
class Calibration:
    """The pictures in a folder, and how the server prepares them.

    Attributes:
        files: the pictures, sorted by name.
        parameters: those of `preprocess` in its config.pbtxt.
        digest: SHA-256 of the names, the pictures, and the code and settings that turn them into pixels.
    """

    files: tuple[Path, ...]
    parameters: Mapping[str, str]
    digest: str

    @classmethod
    def of(cls, folder: Path, parameters: Mapping[str, str]) -> "Calibration":
        """Find the pictures in a folder and its subfolders; hidden files are ignored.

        Raises:
            BuildError: the folder cannot be read, or has fewer than FEWEST files.
        """
        if not folder.is_dir():
            raise BuildError(
                f"--calibration {folder} is not a folder; give a folder of pictures like those that will be served"
            )
        try:
            files = sorted(
                file
                for file in folder.rglob("*")
                if file.is_file() and not any(part.startswith(".") for part in file.relative_to(folder).parts)
            )
            digest = hashlib.sha256(repr((pixel_settings(parameters), _versions())).encode())
            for file in files:
                digest.update(f"{file.relative_to(folder)}\0".encode(errors="surrogateescape"))
                digest.update(hashlib.sha256(file.read_bytes()).digest())
        except OSError as exc:
            raise BuildError(f"--calibration {folder}: {exc}") from exc
        if len(files) < FEWEST:
            raise BuildError(
                f"--calibration {folder} has {len(files)} files; give at least {FEWEST} pictures, better 100 or more, "
                "like those that will be served"
            )
        return cls(tuple(files), parameters, digest.hexdigest())

    def check(self) -> None:
        """Read every picture once, because a refused picture would end the build only after minutes.

        Raises:
            BuildError: the server would refuse a picture.
        """
        for file in self.files:
            self.read(file)

    def read(self, file: Path) -> torch.Tensor:
        """Return the samples (1, 3, H, W) uint8 that the server's preprocess makes of a picture.

        Raises:
            BuildError: preprocess refuses the picture, or it cannot be read.
        """
        image_ops = _image_ops()
        settings = image_ops.Settings.from_parameters(self.parameters)
        try:
            pixels, _ = image_ops.preprocess([file.read_bytes()], settings)
        except (image_ops.InvalidImageError, OSError) as exc:
            raise BuildError(
                f"--calibration: cannot use {file}: {exc}; replace it, or remove it from the folder"
            ) from exc
        return torch.from_numpy(pixels).permute(0, 3, 1, 2)

    @property
    def observed_count(self) -> int:
        """The number of pictures that determine the ranges."""
        return len(self.files) - len(self.files[::_HELD_OUT])

    def to_observe(self) -> Iterator[torch.Tensor]:
        """Yield the samples of the pictures that determine the ranges, four of five."""
        return map(self.read, [file for number, file in enumerate(self.files) if number % _HELD_OUT])

    def held_out(self) -> Iterator[torch.Tensor]:
        """Yield the samples of the held-out pictures, one of five."""
        return map(self.read, self.files[::_HELD_OUT])


def _versions() -> list[str]:
    """Return hashes and versions that identify the code that reads pictures."""
    sources = [file for file in sorted(_PREPROCESS.glob("image_*.py")) if not file.stem.endswith("_cuda")]
    hashes = [hashlib.sha256(file.read_bytes()).hexdigest() for file in sources]
    return [*hashes, *map(importlib.metadata.version, ("pillow", "pi-heif"))]


@functools.cache
def _image_ops() -> Any:  # noqa: ANN401 - a module without a package
    """Return the module that preprocess reads pictures with."""
    sys.path.insert(0, str(_PREPROCESS))
    try:
        return importlib.import_module("image_ops")
    finally:
        sys.path.remove(str(_PREPROCESS))
