"""The result of segmenting one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from deeplab_client import _exports
from deeplab_client._errors import UnknownClassError

if TYPE_CHECKING:
    import supervision
    from numpy.typing import NDArray
    from PIL import Image

    from deeplab_client._exports import CocoAnnotation, CocoCategory, Polygon, Rle
    from deeplab_client._image import ImageLike

# ruff: noqa: PLC0415  Pillow and what belongs to one format are loaded by the methods that need them

UNTRAINED = "none"


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds that one call took, by what it did.

    Attributes:
        encode: Reading the image and making the bytes that travel.
        wait: The network and the server, retries and the pauses before them included.
        decode: Checking the reply and making the result.
    """

    encode: float
    wait: float
    decode: float


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Segmentation:
    """Which class each pixel of an image belongs to.

    Two are equal where all but their timings is; for its mask can be written to, a result has no hash. `copy.copy`
    shares the mask, `copy.deepcopy` and pickling do not.

    Attributes:
        mask: Class ids, (H, W) uint8 at the image's own size; the result's own memory, writable, contiguous. What
            else is counted, `pixels` among it, stays as it arrived.
        class_names: Name of each class id, as the server gives them; id 0 is the background.
        pixels: Pixels of each class that is present, most first.
        model_name: The model that answered.
        model_version: Its version.
        weights: What the model's weights are: a torchvision name such as `COCO_WITH_VOC_LABELS_V1`, a file's name,
            `none` for untrained ones; None where the server does not tell.
        timings: Where the call's time went; None for a result that no client made.
    """

    mask: NDArray[np.uint8]
    class_names: tuple[str, ...]
    pixels: dict[str, int]
    model_name: str
    model_version: str
    weights: str | None
    timings: Timings | None = None

    @property
    def untrained(self) -> bool:
        """Whether the weights are random: the mask then means nothing."""
        return self.weights == UNTRAINED

    @property
    def top_class(self) -> str | None:
        """The class with most pixels, the background left out; None where there is only background."""
        return next((name for name in self.pixels if name != self.class_names[0]), None)

    def fraction(self, name: str) -> float:
        """Return the share of the image that a class covers, 0 to 1.

        Raises:
            UnknownClassError: The model has no such class.
        """
        self._ids(name)
        return self.pixels.get(name, 0) / self.mask.size

    def __getitem__(self, name: str) -> NDArray[np.bool_]:
        """Return where a class is, (H, W) bool.

        Raises:
            UnknownClassError: The model has no such class.
        """
        first, *others = self._ids(name)
        where = self.mask == first
        for class_id in others:
            where |= self.mask == class_id
        return where

    def __contains__(self, name: object) -> bool:
        """Return whether some pixel of the image is of a class."""
        return name in self.pixels

    __iter__ = None  # not a sequence, though it has __getitem__

    def overlay(self, image: ImageLike, *, alpha: float = 0.5, legend: bool = False) -> Image.Image:
        """Draw the mask over its image in the VOC colours; background pixels stay as they are.

        The picture of an untrained model gets a banner above it that says so.

        Args:
            image: The segmented image, in any form that `segment` takes; a file object rewound.
            alpha: Opacity of the mask, 0 to 1.
            legend: Append a panel of colours, names and shares.

        Raises:
            InvalidImageError: The image cannot be decoded, or its size is not the mask's.
            ValueError: `alpha` is out of range.
        """
        from deeplab_client import _drawing

        shares = {name: count / self.mask.size for name, count in self.pixels.items()} if legend else {}
        entries = [(self._ids(name)[0], name, share) for name, share in shares.items()]
        return _drawing.overlay(self.mask, image, alpha=alpha, entries=entries, untrained=self.untrained)

    def colorize(self) -> Image.Image:
        """Return the mask as an RGB picture in the VOC colours, with the banner where it is untrained."""
        from deeplab_client import _drawing

        return _drawing.colorize(self.mask, untrained=self.untrained)

    def to_png(self) -> bytes:
        """Return a palette PNG in the VOC colours whose pixel values are the class ids.

        That of an untrained model says so in a text chunk `Warning`.
        """
        from deeplab_client import _drawing

        return _drawing.png(self.mask, untrained=self.untrained)

    def to_rle(self, name: str) -> Rle:
        """Return where a class is in COCO's compressed run-length encoding, byte for byte as pycocotools encodes it.

        Raises:
            UnknownClassError: The model has no such class.
        """
        return _exports.rle(self[name])

    def to_polygons(self, name: str) -> list[Polygon]:
        """Return the outlines of a class's connected areas, largest first, with their holes.

        Raises:
            ModuleNotFoundError: contourpy is not installed; the extra `polygons` brings it.
            UnknownClassError: The model has no such class.
        """
        return _exports.trace(self[name])

    def to_coco(self, *, image_id: int, first_id: int = 1) -> list[CocoAnnotation]:
        """Return COCO annotations, one for each present class but the background, ready for JSON.

        Args:
            image_id: Of the image that the annotations belong to.
            first_id: Of the first annotation; a data set's ids are unique over all its images.

        Raises:
            UnknownClassError: The mask was written to, and holds an id that the model has no class of.
        """
        self._check_ids()
        return _exports.annotate(self.mask, image_id=image_id, first_id=first_id)

    def coco_categories(self) -> list[CocoCategory]:
        """Return what `category_id` means: every class of the model but the background."""
        return _exports.categories(self.class_names)

    def to_supervision(self) -> supervision.Detections:
        """Return supervision's Detections, one for each present class but the background.

        They hold masks, boxes, class ids, and names under `class_name`; no confidence, for a mask has none.

        Raises:
            ModuleNotFoundError: supervision is not installed; the extra `supervision` brings it.
            UnknownClassError: The mask was written to, and holds an id that the model has no class of.
        """
        self._check_ids()
        return _exports.detections(self.mask, self.class_names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segmentation):
            return NotImplemented
        return self._described() == other._described() and np.array_equal(self.mask, other.mask)

    __hash__: ClassVar[None]  # pyright: ignore[reportIncompatibleMethodOverride]  how Python says that there is none

    def _described(self) -> tuple[object, ...]:
        return self.class_names, self.pixels, self.model_name, self.model_version, self.weights

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows: the mask's colours, at most 1024 pixels wide and high."""
        from deeplab_client import _drawing

        return _drawing.preview(self.mask, untrained=self.untrained)

    def _ids(self, name: str) -> list[int]:
        ids = [class_id for class_id, known in enumerate(self.class_names) if known == name]
        if not ids:
            known = ", ".join(self.class_names)
            raise UnknownClassError(f"no class {name!r}; this model knows {known}", model=self.model_name)
        return ids

    def _check_ids(self) -> None:
        highest, known = int(self.mask.max()), len(self.class_names)
        if highest >= known:
            message = f"the mask holds class id {highest}; this model has {known} classes, 0 to {known - 1}"
            raise UnknownClassError(message, model=self.model_name)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        warning = "UNTRAINED WEIGHTS, " if self.untrained else ""
        top = self.top_class
        found = "background only" if top is None else f"{top} {self.fraction(top):.1%}"
        model = f"{self.model_name}/{self.model_version}"
        return f"<Segmentation {warning}{width}x{height}, {found}, {model}, weights {self.weights or 'unknown'}>"
