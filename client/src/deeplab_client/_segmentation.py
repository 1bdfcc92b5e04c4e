"""The result of segmenting one image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from deeplab_client import _areas, _classes, _coco, _detections, _polygons, _result_dict

if TYPE_CHECKING:
    import supervision
    from numpy.typing import NDArray
    from PIL import Image

    from deeplab_client._coco import CocoAnnotation, CocoCategory, Rle
    from deeplab_client._image import ImageLike
    from deeplab_client._polygons import Polygon
    from deeplab_client._result_dict import ResultDict

# ruff: noqa: PLC0415 - Pillow and what belongs to one format are loaded by the methods that need them

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

    Everything is computed from the mask as it is now, also after you have written to it. Two results are equal if all
    but their timings and request ids is equal. A result has no hash, because its mask can be written to. `copy.copy`
    shares the arrays, `copy.deepcopy` and pickling do not.

    Attributes:
        mask: Class ids, (H, W) uint8 at the image's own size; the result's own memory, writable, contiguous.
        class_names: Name of each class id, as the server gives them.
        model_name: The model that answered.
        model_version: Its version.
        weights: What the model's weights are: a torchvision name such as `COCO_WITH_VOC_LABELS_V1`, a file's name,
            `none` for untrained ones; None where the server does not tell.
        background: Whether class 0 is the background.
        confidence: Probability of each pixel's class, (H, W) uint8, 255 is 1.0; None unless `segment` was asked for it.
        request_id: The id under which the answered request was sent to the server; after `segment_tiles` what the ids
            of all tiles begin with.
        timings: Where the call's time went; None for a result that no client made.
    """

    mask: NDArray[np.uint8]
    class_names: tuple[str, ...]
    model_name: str
    model_version: str
    weights: str | None
    background: bool = True
    confidence: NDArray[np.uint8] | None = None
    request_id: str = ""
    timings: Timings | None = None

    @property
    def width(self) -> int:
        """The image's width in pixels."""
        return self.mask.shape[1]

    @property
    def height(self) -> int:
        """The image's height in pixels."""
        return self.mask.shape[0]

    @property
    def untrained(self) -> bool:
        """Whether the weights are random: the mask then means nothing."""
        return self.weights == UNTRAINED

    @property
    def pixel_counts(self) -> dict[str, int]:
        """Pixels of each class that is present, most first.

        Raises:
            UnknownClassError: The mask was written to, and holds an id that the model has no class of.
        """
        self._check_ids()
        return _classes.counts(self.mask, self.class_names)

    @property
    def fractions(self) -> dict[str, float]:
        """Share of the image of each class that is present, 0 to 1, largest first.

        Raises:
            UnknownClassError: The mask was written to, and holds an id that the model has no class of.
        """
        return {name: count / self.mask.size for name, count in self.pixel_counts.items()}

    @property
    def top_class(self) -> str | None:
        """The class with most pixels, the background left out; None where there is only background."""
        left_out = self.class_names[0] if self.background else None
        return next((name for name in _classes.counts(self.mask, self.class_names) if name != left_out), None)

    def fraction(self, name: str) -> float:
        """Return the share of the image that a class covers, 0 to 1.

        Raises:
            UnknownClassError: The model has no such class.
        """
        return int(np.count_nonzero(self.mask_of(name))) / self.mask.size

    def mask_of(self, name: str) -> NDArray[np.bool_]:
        """Return where a class is, (H, W) bool; the same as `result[name]`.

        Raises:
            UnknownClassError: The model has no such class.
        """
        first, *others = self._ids(name)
        where = self.mask == first
        for class_id in others:
            where |= self.mask == class_id
        return where

    __getitem__ = mask_of

    def __contains__(self, name: object) -> bool:
        """Return whether some pixel of the image is of a class."""
        return name in _classes.counts(self.mask, self.class_names)

    __iter__ = None  # not a sequence, though it has __getitem__

    def at_least(self, confidence: float) -> Segmentation:
        """Return a result in which less certain pixels are background.

        Its mask is its own. `confidence` is shared with this result and still belongs to the model's own classes.

        Args:
            confidence: The lowest probability to keep, 0 to 1.

        Raises:
            ValueError: `confidence` is out of range, the result has none, or the model has no background.
        """
        if not 0 <= confidence <= 1:
            raise ValueError(f"confidence must be from 0 to 1, got {confidence!r}")
        if self.confidence is None:
            raise ValueError("this result has no confidence: request it with segment(..., confidence=True)")
        if not self.background:
            raise ValueError(
                f"at_least needs a model with a background, but class 0 of {self.model_name} is "
                f"{self.class_names[0]!r}: use result.confidence instead"
            )
        lowest = np.searchsorted(np.arange(256) / 255, confidence)
        return replace(self, mask=np.where(self.confidence >= lowest, self.mask, np.uint8(0)))

    def overlay(self, image: ImageLike, *, alpha: float = 0.5, legend: bool = False) -> Image.Image:
        """Draw the mask over its image in the VOC colors; background pixels stay as they are.

        A model without a background uses the colors from the second on, because VOC's first is black. The picture of an
        untrained model gets a banner above it that says so.

        Args:
            image: The segmented image, in any form that `segment` takes; a file object rewound.
            alpha: Opacity of the mask, 0 to 1.
            legend: Append a panel of colors, names and shares.

        Raises:
            InvalidImageError: The image cannot be decoded, or its size is not the mask's.
            UnknownClassError: The legend has an id that the model has no class of.
            ValueError: `alpha` is out of range.
        """
        from deeplab_client import _drawing

        shares = self.fractions if legend else {}
        entries = [(self._ids(name)[0], name, share) for name, share in shares.items()]
        return _drawing.overlay(
            self.mask, image, alpha=alpha, entries=entries, untrained=self.untrained, background=self.background
        )

    def colorize(self) -> Image.Image:
        """Return the mask as an RGB picture in the colors of `overlay`, with the banner where it is untrained."""
        from deeplab_client import _drawing

        return _drawing.colorize(self.mask, untrained=self.untrained, background=self.background)

    def to_png(self) -> bytes:
        """Return a palette PNG in the colors of `overlay` whose pixel values are the class ids.

        That of an untrained model says so in a text chunk `Warning`.
        """
        from deeplab_client import _drawing

        return _drawing.png(self.mask, untrained=self.untrained, background=self.background)

    def to_dict(self, *, rle: bool = False) -> ResultDict:
        """Return what `json.dumps` takes; `deeplab_client.ResultDict` has the keys and their types.

        Args:
            rle: Add the mask of each class in COCO's run-length encoding.

        Raises:
            UnknownClassError: The mask was written to, and holds an id that the model has no class of.
        """
        self._check_ids()
        return {
            "width": self.width,
            "height": self.height,
            "model_name": self.model_name,
            "model_version": self.model_version,
            "weights": self.weights,
            "untrained": self.untrained,
            "background": self.class_names[0] if self.background else None,
            "request_id": self.request_id,
            "top_class": self.top_class,
            "classes": _result_dict.classes(self.mask, self.class_names, self.confidence, rle=rle),
            "mean_confidence": None if self.confidence is None else float(self.confidence.mean()) / 255,
        }

    def to_rle(self, name: str) -> Rle:
        """Return where a class is in COCO's compressed run-length encoding, byte for byte as pycocotools encodes it.

        Raises:
            UnknownClassError: The model has no such class.
        """
        return _coco.rle(self[name])

    def to_polygons(self, name: str) -> list[Polygon]:
        """Return the outlines of a class's connected areas, one polygon each, largest first, with their holes.

        Pixels that touch at a corner are connected.

        Raises:
            ModuleNotFoundError: contourpy is not installed; the extra `polygons` brings it.
            UnknownClassError: The model has no such class.
        """
        return _polygons.trace(self[name])

    def to_coco(
        self, *, image_id: int, first_id: int = 1, components: bool = False, min_area: int = 1
    ) -> list[CocoAnnotation]:
        """Return COCO annotations, one for each present class but the background, ready for JSON.

        They have a `score`, the mean confidence of their pixels, if the result has a confidence.

        Args:
            image_id: Of the image that the annotations belong to.
            first_id: Of the first annotation; a data set's ids are unique over all its images.
            components: Make one annotation for each connected area of a class, largest first. Pixels that touch at a
                corner are connected.
            min_area: Leave out annotations of fewer pixels.

        Raises:
            ModuleNotFoundError: `components` needs scipy; the extra `components` brings it.
            UnknownClassError: The mask was written to, and holds an id that the model has no class of.
        """
        return _coco.annotate(self._areas(components, min_area), image_id=image_id, first_id=first_id)

    def coco_categories(self) -> list[CocoCategory]:
        """Return what `category_id` means: every class of the model but the background."""
        return _coco.categories(self.class_names, background=self.background)

    def to_supervision(self, *, components: bool = False, min_area: int = 1) -> supervision.Detections:
        """Return supervision's Detections, one for each present class but the background.

        They hold masks, boxes, class ids, and names under `class_name`; also the mean confidence of their pixels, 0 to
        1, if the result has a confidence.

        Args:
            components: Make one detection for each connected area of a class, largest first. Pixels that touch at a
                corner are connected.
            min_area: Leave out detections of fewer pixels.

        Raises:
            ModuleNotFoundError: supervision is not installed; the extra `supervision` brings it. Or `components` needs
                scipy, which the extra `components` brings.
            UnknownClassError: The mask was written to, and holds an id that the model has no class of.
        """
        return _detections.detections(self._areas(components, min_area), self.class_names)

    def _areas(self, components: bool, min_area: int) -> list[_areas.Area]:  # noqa: FBT001 - named by its callers
        self._check_ids()
        return _areas.areas(
            self.mask, self.confidence, background=self.background, components=components, min_area=min_area
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Segmentation):
            return NotImplemented
        return (
            self._described() == other._described()
            and np.array_equal(self.mask, other.mask)
            and np.array_equal(self.confidence, other.confidence)  # pyright: ignore[reportArgumentType] - None equals None
        )

    __hash__: ClassVar[None]  # pyright: ignore[reportIncompatibleMethodOverride] - how Python says that there is none

    def _described(self) -> tuple[object, ...]:
        return self.class_names, self.model_name, self.model_version, self.weights, self.background

    def _repr_png_(self) -> bytes:
        """Return what a notebook shows: the mask's colors, at most 1024 pixels wide and high."""
        from deeplab_client import _drawing

        return _drawing.preview(self.mask, untrained=self.untrained, background=self.background)

    def _ids(self, name: str) -> list[int]:
        return _classes.ids_of(name, self.class_names, model=self.model_name)

    def _check_ids(self) -> None:
        _classes.check_ids(self.mask, self.class_names, model=self.model_name)

    def __repr__(self) -> str:
        height, width = self.mask.shape
        warning = "UNTRAINED WEIGHTS, " if self.untrained else ""
        top = self.top_class
        found = "background only" if top is None else f"{top} {self.fraction(top):.1%}"
        model = f"{self.model_name}/{self.model_version}"
        return f"<Segmentation {warning}{width}x{height}, {found}, {model}, weights {self.weights or 'unknown'}>"
