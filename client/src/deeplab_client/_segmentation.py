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

# ruff: noqa: PLC0415 - Pillow and the exports are only loaded by the methods that need them

UNTRAINED = "none"


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of the parts of one call.

    Attributes:
        encode: Reading the image and encoding it for sending.
        wait: Waiting for the server, including retries and the pauses before them.
        decode: Checking the reply and creating the result.
    """

    encode: float
    wait: float
    decode: float


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Segmentation:
    """The class of each pixel of an image.

    Everything is computed from the current mask, also after you have written to it. Two results are equal if everything
    except timings and request ids is equal. A result has no hash, because its mask is writable. `copy.copy` shares the
    arrays, `copy.deepcopy` and pickling copy them.

    Attributes:
        mask: Class ids, (H, W) uint8 at the image's own size; the result's own memory, writable, contiguous.
        class_names: Name of each class id, as the server reports them.
        model_name: Name of the model that answered.
        model_version: Version of the model.
        weights: Name of the model's weights: a torchvision name such as `COCO_WITH_VOC_LABELS_V1`, a file name, or
            `none` for untrained weights; None if the server does not report it.
        background: Whether class 0 is the background.
        confidence: Probability of each pixel's class, (H, W) uint8, 255 is 1.0; None without `confidence=True`.
        request_id: Id of the request on the server; after `segment_tiles`, the prefix of the ids of all tiles.
        timings: Seconds of the parts of the call; None for a result that no client created.
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
        """Whether the weights are random, so that the mask is noise."""
        return self.weights == UNTRAINED

    @property
    def pixel_counts(self) -> dict[str, int]:
        """Number of pixels of each present class, largest first.

        Raises:
            UnknownClassError: The mask was written to, and contains an id without a name.
        """
        self._check_ids()
        return _classes.counts(self.mask, self.class_names)

    @property
    def fractions(self) -> dict[str, float]:
        """Share of the image of each present class, 0 to 1, largest first.

        Raises:
            UnknownClassError: The mask was written to, and contains an id without a name.
        """
        return {name: count / self.mask.size for name, count in self.pixel_counts.items()}

    @property
    def top_class(self) -> str | None:
        """The class with the most pixels, without the background; None if there is only background."""
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
        """Return whether any pixel of the image is of a class."""
        return name in _classes.counts(self.mask, self.class_names)

    __iter__ = None  # not a sequence, though it has __getitem__

    def at_least(self, confidence: float) -> Segmentation:
        """Return a result in which less certain pixels are set to background.

        It has a new mask. Its `confidence` is shared with this result, and still refers to the original classes.

        Args:
            confidence: The lowest probability to keep, 0 to 1.

        Raises:
            ValueError: `confidence` is out of range, the result has no confidence, or the model has no background.
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
        """Return the image as an RGB picture with the mask drawn over it in the VOC colors.

        Background pixels are unchanged. For a model without a background, the colors start with VOC's second, because
        the first is black. For an untrained model, a banner above the picture says so.

        Args:
            image: The segmented image, of any type that `segment` accepts; a file object must be rewound.
            alpha: Opacity of the mask, 0 to 1.
            legend: Add a panel of colors, names and shares.

        Raises:
            InvalidImageError: The image cannot be decoded, or its size differs from that of the mask.
            UnknownClassError: The mask contains an id without a name, which the legend needs.
            ValueError: `alpha` is out of range.
        """
        from deeplab_client import _drawing

        shares = self.fractions if legend else {}
        entries = [(self._ids(name)[0], name, share) for name, share in shares.items()]
        return _drawing.overlay(
            self.mask, image, alpha=alpha, entries=entries, untrained=self.untrained, background=self.background
        )

    def colorize(self) -> Image.Image:
        """Return the mask as an RGB picture in the colors of `overlay`, with its banner for an untrained model."""
        from deeplab_client import _drawing

        return _drawing.colorize(self.mask, untrained=self.untrained, background=self.background)

    def to_png(self) -> bytes:
        """Return a palette PNG in the colors of `overlay` whose pixel values are the class ids.

        For an untrained model, a text chunk `Warning` says so.
        """
        from deeplab_client import _drawing

        return _drawing.png(self.mask, untrained=self.untrained, background=self.background)

    def to_dict(self, *, rle: bool = False) -> ResultDict:
        """Return a dict for `json.dumps`; `deeplab_client.ResultDict` has the keys and their types.

        Args:
            rle: Add the mask of each class in COCO's run-length encoding.

        Raises:
            UnknownClassError: The mask was written to, and contains an id without a name.
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
        """Return the mask of a class in COCO's compressed run-length encoding, byte for byte as from pycocotools.

        Raises:
            UnknownClassError: The model has no such class.
        """
        return _coco.rle(self[name])

    def to_polygons(self, name: str) -> list[Polygon]:
        """Return the outlines of the connected areas of a class with their holes, largest first.

        Pixels that touch at a corner are connected.

        Raises:
            ModuleNotFoundError: contourpy is not installed; the extra `polygons` installs it.
            UnknownClassError: The model has no such class.
        """
        return _polygons.trace(self[name])

    def to_coco(
        self, *, image_id: int, first_id: int = 1, components: bool = False, min_area: int = 1
    ) -> list[CocoAnnotation]:
        """Return COCO annotations for JSON, one for each present class except the background.

        If the result has a confidence, they have a `score`: the mean confidence of their pixels, 0 to 1.

        Args:
            image_id: Id of the image that the annotations belong to.
            first_id: Id of the first annotation; ids must be unique over all images of a data set.
            components: Return one annotation for each connected area of a class, largest first. Pixels that touch at
                a corner are connected.
            min_area: Leave out annotations with fewer pixels.

        Raises:
            ModuleNotFoundError: `components` needs scipy; the extra `components` installs it.
            UnknownClassError: The mask was written to, and contains an id without a name.
        """
        return _coco.annotate(self._areas(components, min_area), image_id=image_id, first_id=first_id)

    def coco_categories(self) -> list[CocoCategory]:
        """Return the COCO categories: every class of the model except the background."""
        return _coco.categories(self.class_names, background=self.background)

    def to_supervision(self, *, components: bool = False, min_area: int = 1) -> supervision.Detections:
        """Return supervision's Detections, one for each present class except the background.

        They have masks, boxes, class ids, and names under `class_name`. If the result has a confidence, they also have
        the mean confidence of their pixels, 0 to 1.

        Args:
            components: Return one detection for each connected area of a class, largest first. Pixels that touch at a
                corner are connected.
            min_area: Leave out detections with fewer pixels.

        Raises:
            ModuleNotFoundError: supervision, or scipy for `components`, is not installed; the extras `supervision` and
                `components` install them.
            UnknownClassError: The mask was written to, and contains an id without a name.
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

    __hash__: ClassVar[None]  # pyright: ignore[reportIncompatibleMethodOverride] - Python's way to disable it

    def _described(self) -> tuple[object, ...]:
        return self.class_names, self.model_name, self.model_version, self.weights, self.background

    def _repr_png_(self) -> bytes:
        """Return the PNG that a notebook shows: the colored mask, at most 1024 pixels wide and high."""
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
