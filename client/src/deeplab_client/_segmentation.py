"""The result of segmenting one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplab_client import _drawing
from deeplab_client._errors import UnknownClassError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from deeplab_client._image import ImageLike
    from deeplab_client._timings import Timings

_UNTRAINED = "none"


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Segmentation:
    """Which class each pixel of an image belongs to.

    Attributes:
        mask: Class ids, (H, W) uint8 at the image's own size; the result's own memory, writable, contiguous.
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
        return self.weights == _UNTRAINED

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
            image: The segmented image, in any form that `segment` takes.
            alpha: Opacity of the mask, 0 to 1.
            legend: Append a panel of colours, names and shares.

        Raises:
            InvalidImageError: The image cannot be decoded, or its size is not the mask's.
            ValueError: `alpha` is out of range.
        """
        shares = {name: count / self.mask.size for name, count in self.pixels.items()} if legend else {}
        entries = [(self._ids(name)[0], name, share) for name, share in shares.items()]
        return _drawing.overlay(self.mask, image, alpha=alpha, entries=entries, untrained=self.untrained)

    def colorize(self) -> Image.Image:
        """Return the mask as an RGB picture in the VOC colours, with the banner where it is untrained."""
        return _drawing.colorize(self.mask, untrained=self.untrained)

    def _ids(self, name: str) -> list[int]:
        ids = [class_id for class_id, known in enumerate(self.class_names) if known == name]
        if not ids:
            known = ", ".join(self.class_names)
            raise UnknownClassError(f"no class {name!r}; this model knows {known}", model=self.model_name)
        return ids

    def __repr__(self) -> str:
        height, width = self.mask.shape
        warning = "UNTRAINED WEIGHTS, " if self.untrained else ""
        top = self.top_class
        found = "background only" if top is None else f"{top} {self.fraction(top):.1%}"
        model = f"{self.model_name}/{self.model_version}"
        return f"<Segmentation {warning}{width}x{height}, {found}, {model}, weights {self.weights or 'unknown'}>"
