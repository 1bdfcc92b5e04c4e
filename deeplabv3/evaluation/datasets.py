"""Annotated images: the interface of a data set, and pictures and mask PNGs in folders."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from deeplab_client import voc
from deeplabv3.evaluation import EvaluationError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from deeplabv3.evaluation.predictors import Prepared

IGNORED = 255
"""The class id of pixels that are not counted, in COCO's and VOC's masks and by default in a user's own."""

_NAMED_IDS = 5


@dataclass(frozen=True)
class Sample:
    """One image and its annotation as stored, because annotations and torchvision's loaders ignore EXIF orientation.

    Attributes:
        name: identifies it in messages.
        data: the file's own bytes.
        image: RGB.
        turned: whether the EXIF orientation turns or mirrors the image.
        target: class ids at the image's size, (H, W) uint8.
        annotation: where the target comes from, for messages.
    """

    name: str
    data: bytes
    image: Image.Image
    turned: bool
    target: npt.NDArray[np.uint8]
    annotation: str

    @functools.cached_property
    def prepared(self) -> Prepared:
        """The sample at the size of the published figures; computed once for all predictors."""
        from deeplabv3.evaluation.predictors import prepare  # noqa: PLC0415 - loads torch

        return prepare(self.image, self.target)

    def check_class_ids(self, classes: int, *, ignore: int) -> None:
        """Raise an EvaluationError if the annotation has a class that the models do not have.

        Args:
            classes: the number of classes.
            ignore: the class id of pixels that are not counted.
        """
        found: list[int] = np.flatnonzero(np.bincount(self.target.ravel())).tolist()
        unknown = [class_id for class_id in found if class_id >= classes and class_id != ignore]
        if unknown:
            ids = ", ".join(map(str, unknown[:_NAMED_IDS])) + (", ..." if len(unknown) > _NAMED_IDS else "")
            raise EvaluationError(
                f"{self.annotation} has the class ids {ids}, but the models have {classes} classes, "
                f"0 to {classes - 1}, and --ignore is {ignore}; correct the mask, or measure a model with these classes"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Annotated images, each found by its id.

    Attributes:
        ids: in a fixed order.
        facts: values that identify the data set, JSON-compatible.
        read: returns one image and its annotation, in any thread; raises an EvaluationError that names a file that is
            missing, broken, or not an annotation of its image.
        files: returns the files of one image and its annotation.
        class_names: name of each class id in the annotations; None if the models determine them.
        ignore: the class id of pixels that are not counted.
        is_coco_val2017: whether this is the complete data set of torchvision's published figures.
    """

    ids: Sequence[str]
    facts: Mapping[str, Any]
    read: Callable[[str], Sample]
    files: Callable[[str], tuple[Path, ...]]
    class_names: tuple[str, ...] | None = voc.CLASS_NAMES
    ignore: int = IGNORED
    is_coco_val2017: bool = False

    def stamp(self, image_id: str) -> list[list[int]]:
        """Return size and modification time (ns) of the files of one image, to detect changes."""
        found: list[list[int]] = []
        for path in self.files(image_id):
            with contextlib.suppress(OSError):  # `read` reports a missing file
                stat = path.stat()
                found.append([stat.st_size, stat.st_mtime_ns])
        return found


def voc_folders(root: Path, *, split: str = "val") -> Dataset:
    """Open one split of a Pascal VOC data set.

    Args:
        root: the folder of one year, such as VOCdevkit/VOC2012.
        split: a list in ImageSets/Segmentation, without .txt.

    Raises:
        EvaluationError: a folder or the list is missing, or the list is empty.
    """
    lists, images, masks = root / "ImageSets" / "Segmentation", root / "JPEGImages", root / "SegmentationClass"
    remedy = "name a folder such as VOCdevkit/VOC2012, with ImageSets/Segmentation, JPEGImages and SegmentationClass"
    for folder in (root, lists, images, masks):
        require(folder, "--root", directory=True, remedy=remedy)
    known = sorted(path.stem for path in lists.glob("*.txt"))
    if split not in known:
        raise EvaluationError(f"--split {split}: {lists} has no such list; it has {', '.join(known) or 'none'}")
    # The lists of other VOC tasks have a second column.
    lines = read_bytes(lists / f"{split}.txt", "the list").decode("utf-8", "replace").splitlines()
    ids = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
    if not ids:
        raise EvaluationError(f"--split {split}: {lists / split}.txt lists no images; give another --split")

    def files(image_id: str) -> tuple[Path, Path]:
        return images / f"{image_id}.jpg", masks / f"{image_id}.png"

    def read(image_id: str) -> Sample:
        sample = _read_pair(*files(image_id))
        # torchvision's references do not count ids that are not VOC classes.
        sample.target[sample.target >= len(voc.CLASS_NAMES)] = IGNORED
        return sample

    return Dataset(
        ids=ids,
        facts={"kind": "voc", "root": str(root.resolve()), "split": split, "size": len(ids)},
        read=read,
        files=files,
    )


def mask_folders(
    images: Path, masks: Path, *, class_names: tuple[str, ...] | None = None, ignore: int = IGNORED
) -> Dataset:
    """Open a user's own pictures and masks: two folders, in which the files of a pair differ only in their suffix.

    Args:
        images: the folder of the pictures.
        masks: the folder of the masks, palette or grayscale PNGs of class ids.
        class_names: name of each class id; None if the models determine them.
        ignore: the class id of pixels that are not counted.

    Raises:
        EvaluationError: a folder is missing or empty, or a picture has no mask or a mask no picture.
    """
    Image.init()
    readable = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    pictures = _by_stem(images, "--images", readable, "pictures")
    drawn = _by_stem(masks, "--masks", {".png"}, "mask PNGs")
    for these, those, kind, other in ((pictures, drawn, "pictures", "masks"), (drawn, pictures, "masks", "pictures")):
        alone = sorted(these.keys() - those.keys())
        if alone:
            more = f", nor for {len(alone) - 1} more of the {kind}" if alone[1:] else ""
            raise EvaluationError(
                f"there is no file of the same name among the {other} for {these[alone[0]]}{more}; add the {other}, or "
                f"remove the {kind} from the folder"
            )
    return Dataset(
        ids=sorted(pictures),
        facts={
            "kind": "folders",
            "images": str(images.resolve()),
            "masks": str(masks.resolve()),
            "ignore": ignore,
            "size": len(pictures),
        },
        read=lambda image_id: _read_pair(pictures[image_id], drawn[image_id]),
        files=lambda image_id: (pictures[image_id], drawn[image_id]),
        class_names=class_names,
        ignore=ignore,
    )


def _by_stem(folder: Path, option: str, suffixes: set[str], kind: str) -> dict[str, Path]:
    """Return the files with given suffixes by their names without suffix; hidden files are ignored."""
    require(folder, option, directory=True, remedy=f"name the folder of the {kind}")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            if path.stem in found:
                raise EvaluationError(
                    f"{option} {folder} has both {found[path.stem].name} and {path.name}, but a mask and its picture "
                    "are matched by the name without suffix; rename or remove one of them"
                )
            found[path.stem] = path
    if not found:
        raise EvaluationError(
            f"{option} {folder} has no {kind}; give the folder that holds them, because subfolders are not read"
        )
    return found


def _read_pair(image_path: Path, mask_path: Path) -> Sample:
    data = read_bytes(image_path, "the image")
    image, turned = decode(data, image_path)
    annotation = f"the mask {mask_path}"
    content = read_bytes(mask_path, "the mask")
    # Only PNG, because lossy formats change class ids.
    with _decoding(annotation, unknown="it is not a PNG"), Image.open(io.BytesIO(content), formats=["PNG"]) as mask:
        if mask.mode not in {"P", "L"}:
            raise EvaluationError(
                f"{annotation} has mode {mask.mode}, but a mask must be a palette or 8-bit grayscale PNG of class ids; "
                "convert it"
            )
        target = np.array(mask, np.uint8)
    check_size(image_path, image, target.shape, annotation, turned=turned)
    return Sample(image_path.name, data, image, turned, target, annotation)


def read_bytes(path: Path, what: str) -> bytes:
    """Read a file of a data set."""
    try:
        return path.read_bytes()
    except OSError as exc:
        raise EvaluationError(f"{what} {path} cannot be read: {exc.strerror}; check the data set") from exc


def decode(data: bytes, path: Path) -> tuple[Image.Image, bool]:
    """Return an image as stored, in RGB, and whether it has an EXIF orientation."""
    with _decoding(f"the image {path}", unknown="its format is unknown"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about odd metadata
        with Image.open(io.BytesIO(data)) as opened:
            orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
            return opened.convert("RGB"), orientation in range(2, 9)


@contextlib.contextmanager
def _decoding(what: str, *, unknown: str) -> Generator[None]:
    """Turn Pillow's errors about a file into an EvaluationError; `unknown` is the reason for another format."""
    try:
        yield
    except UnidentifiedImageError as exc:
        raise EvaluationError(f"{what} cannot be decoded: {unknown}; replace it") from exc
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise EvaluationError(f"{what} cannot be decoded: {exc}; replace it") from exc


def check_size(path: Path, image: Image.Image, annotated: tuple[int, ...], annotation: str, *, turned: bool) -> None:
    """Raise an EvaluationError if an annotation of this height and width does not have the size of its image."""
    if annotated != (image.height, image.width):
        reason = ", without its EXIF orientation, because annotations are for the image as stored" if turned else ""
        raise EvaluationError(
            f"the image {path} is {image.width} x {image.height} pixels{reason}, but its annotation is "
            f"{' x '.join(map(str, annotated[::-1]))} ({annotation}); replace one of them"
        )


def require(path: Path, option: str, *, directory: bool, remedy: str) -> None:
    """Raise an EvaluationError if the file or folder of an option does not exist."""
    if not (path.is_dir() if directory else path.is_file()):
        kind = "folder" if directory else "file"
        raise EvaluationError(f"{option} {path}: no such {kind}; {remedy}")
