"""One image with its annotation, and what a set of them has to offer."""

from __future__ import annotations

import functools
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from PIL import Image

from deeplabv3.evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from deeplabv3.evaluation.reference import Prepared

_ORIENTATION_TAG = 0x0112  # EXIF 2.32, table 4; 1 is "as stored"


@dataclass(frozen=True)
class Sample:
    """One image and its annotation, both as stored: annotations know no EXIF orientation, nor do torchvision's loaders.

    Attributes:
        name: identifies it in messages.
        data: the file's own bytes.
        image: RGB.
        turned: whether the file's EXIF asks viewers to turn or mirror it.
        target: class ids at the image's size, (H, W) uint8; 255 counts for nothing.
    """

    name: str
    data: bytes
    image: Image.Image
    turned: bool
    target: npt.NDArray[np.uint8]

    @functools.cached_property
    def prepared(self) -> Prepared:
        """The sample at the size that the published figures belong to; made once, however many predictors ask."""
        from deeplabv3.evaluation.reference import prepare  # noqa: PLC0415  loads torch

        return prepare(self.image, self.target)


class Dataset(Protocol):
    """Annotated images, each found by its id."""

    @property
    def ids(self) -> Sequence[str]:
        """In a fixed order."""
        ...

    @property
    def facts(self) -> Mapping[str, Any]:
        """What identifies the data set, as JSON can hold it."""
        ...

    @property
    def is_coco_val2017(self) -> bool:
        """Whether it is, whole, the one that torchvision's published figures were measured on."""
        ...

    def read(self, image_id: str) -> Sample:
        """Read one image and its annotation; safe to call from several threads.

        Raises:
            EvaluationError: a file is missing or broken; names it.
        """
        ...


def read_bytes(path: Path, what: str) -> bytes:
    """Read a file of a data set."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise EvaluationError(f"{what} {path} cannot be read: {exc.strerror}; complete the data set") from exc


def decode(data: bytes, path: Path) -> tuple[Image.Image, bool]:
    """Return an image as stored, RGB, and whether its EXIF asks viewers to turn it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata
            with Image.open(io.BytesIO(data)) as opened:
                orientation = opened.getexif().get(_ORIENTATION_TAG, 1)
                return opened.convert("RGB"), orientation in range(2, 9)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise EvaluationError(f"the image {path} cannot be decoded: {exc}; replace it") from exc


def check_size(path: Path, image: Image.Image, annotated: tuple[int, ...]) -> None:
    """Raise an EvaluationError where an annotation, of this height and width, does not have its image's size."""
    if annotated != (image.height, image.width):
        raise EvaluationError(
            f"the image {path} is {image.width} x {image.height} pixels and its annotation "
            f"{' x '.join(map(str, annotated[::-1]))}: they do not belong together"
        )


def require(path: Path, option: str, *, directory: bool, remedy: str) -> None:
    """Raise an EvaluationError where a file or folder that an option names is not there."""
    if not (path.is_dir() if directory else path.is_file()):
        kind = "folder" if directory else "file"
        raise EvaluationError(f"{option} {path}: no such {kind}; {remedy}")
