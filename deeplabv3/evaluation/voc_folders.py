"""Pascal VOC's segmentation folders (VOC2012: JPEGImages, SegmentationClass, ImageSets/Segmentation)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from deeplabv3.evaluation.errors import EvaluationError
from deeplabv3.evaluation.samples import Sample, check_size, decode, read_bytes, require

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_REMEDY = "name a folder such as VOCdevkit/VOC2012, with ImageSets/Segmentation, JPEGImages and SegmentationClass"


class VocFolders:
    """One split of a VOC data set.

    Args:
        root: the folder of one year, such as VOCdevkit/VOC2012.
        split: a list in ImageSets/Segmentation, without .txt.
    """

    def __init__(self, root: Path, *, split: str = "val") -> None:
        lists = root / "ImageSets" / "Segmentation"
        for folder in (root, lists, root / "JPEGImages", root / "SegmentationClass"):
            require(folder, "--root", directory=True, remedy=_REMEDY)
        known = sorted(path.stem for path in lists.glob("*.txt"))
        if split not in known:
            raise EvaluationError(f"--split {split}: {lists} has {', '.join(known) or 'no list at all'}")
        self._root, self._split = root, split
        # Lists of VOC's other tasks have a second column.
        lines = read_bytes(lists / f"{split}.txt", "the list").decode("utf-8", "replace").splitlines()
        self._ids = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
        if not self._ids:
            raise EvaluationError(f"--split {split}: {lists / split}.txt names no image")

    @property
    def ids(self) -> Sequence[str]:
        """In the order of the list."""
        return self._ids

    @property
    def facts(self) -> dict[str, Any]:
        """What identifies the data set, as JSON can hold it."""
        return {"kind": "voc", "root": str(self._root.resolve()), "split": self._split, "size": len(self._ids)}

    @property
    def is_coco_val2017(self) -> bool:
        """Never."""
        return False

    def read(self, image_id: str) -> Sample:
        """Read one image and its mask.

        Raises:
            EvaluationError: a file is missing or broken, or the mask holds colours in place of class ids.
        """
        path = self._root / "JPEGImages" / f"{image_id}.jpg"
        data = read_bytes(path, "the image")
        image, turned = decode(data, path)
        mask_path = self._root / "SegmentationClass" / f"{image_id}.png"
        mask_data = read_bytes(mask_path, "the mask")
        try:
            with Image.open(io.BytesIO(mask_data)) as mask:
                if mask.mode not in {"P", "L"}:
                    raise EvaluationError(f"the mask {mask_path} has mode {mask.mode}; VOC's are palette PNGs")
                target = np.array(mask, np.uint8)
        except (OSError, SyntaxError, ValueError) as exc:
            raise EvaluationError(f"the mask {mask_path} cannot be decoded: {exc}; replace it") from exc
        check_size(path, image, target.shape)
        return Sample(path.name, data, image, turned, target)
