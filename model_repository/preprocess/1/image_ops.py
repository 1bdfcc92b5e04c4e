"""From the bytes of an encoded image to the samples that the core models take.

`image_decoding` decodes, torch resizes: its uint8 kernel with antialiasing is what torchvision's transforms use on
tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from image_decoding import InvalidImageError, decode, samples_of
from PIL import Image

__all__ = ["InvalidImageError", "Settings", "decode", "decode_alike", "preprocess", "resize", "samples_of"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters of the model's config.

    Attributes:
        resize_mode: "square" for resize_size x resize_size; "shorter_side" keeps the aspect ratio.
        resize_size: pixels.
        max_pixels: an image with more, as encoded, is refused.
        max_resized_pixels: an image that would have more after the resize is refused.
    """

    resize_mode: str
    resize_size: int
    max_pixels: int
    max_resized_pixels: int

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "Settings":
        """Parse the string parameters of config.pbtxt; a missing or impossible one is a ValueError that names it."""
        settings = cls(
            resize_mode=_parameter(parameters, "resize_mode"),
            resize_size=_positive_int(parameters, "resize_size"),
            max_pixels=_positive_int(parameters, "max_pixels"),
            max_resized_pixels=_positive_int(parameters, "max_resized_pixels"),
        )
        if settings.resize_mode not in {"square", "shorter_side"}:
            raise ValueError(f"parameter resize_mode is {settings.resize_mode!r}; use 'square' or 'shorter_side'")
        return settings

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) that an image is resized to.

        Raises:
            InvalidImageError: the result would have more than max_resized_pixels.
        """
        if self.resize_mode == "square":
            return self.resize_size, self.resize_size
        # torchvision's rule for a single size: the longer side is truncated, not rounded.
        longer = int(self.resize_size * max(height, width) / min(height, width))
        if longer * self.resize_size > self.max_resized_pixels:
            raise InvalidImageError(
                f"the image is {width} x {height} pixels; with its shorter side at {self.resize_size} it would have "
                f"{longer * self.resize_size} pixels, and the limit is {self.max_resized_pixels}; crop it, or set "
                "resize_mode to 'square' in the preprocess model's config"
            )
        return (self.resize_size, longer) if height <= width else (longer, self.resize_size)


def _parameter(parameters: Mapping[str, str], name: str) -> str:
    if name not in parameters:
        raise ValueError(f"parameter {name} is missing from the model's config.pbtxt")
    return parameters[name].strip()


def _positive_int(parameters: Mapping[str, str], name: str) -> int:
    text = _parameter(parameters, name)
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ValueError(f"parameter {name} is {text!r}; it must be an integer from 1")
    return int(text)


def _resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if size == tuple(pixels.shape[-2:]):
        return pixels
    return torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)


def resize(image: Image.Image, size: tuple[int, int], settings: Settings) -> npt.NDArray[np.uint8]:
    """Return the samples (height, width, 3) of an RGB image at a size of height and width."""
    # The batch dimension comes before the channels move, or torch would not see that this is channels-last, for which
    # it has a quick kernel.
    samples = torch.from_numpy(samples_of(image)).unsqueeze(0).permute(0, 3, 1, 2)
    if image.height * size[1] > settings.max_pixels:
        # torch resizes rows first: of a picture that is very high and narrow it would make one that is wide as well.
        samples = _resize(samples, (size[0], image.width))
    return _resize(samples, size)[0].permute(1, 2, 0).numpy()


def preprocess(encoded: list[bytes], settings: Settings) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Turn the images of one request into PIXELS (N, H, W, 3) uint8 and SIZE (N, 2) int32, height and width.

    Raises:
        InvalidImageError: an image is refused, or the images differ in size: one request has one MASK tensor.
    """
    images, sizes = decode_alike(encoded, max_pixels=settings.max_pixels)
    size = settings.resized(images[0].height, images[0].width)
    resized = [resize(image, size, settings)[np.newaxis] for image in images]
    return resized[0] if len(resized) == 1 else np.concatenate(resized), sizes


def decode_alike(encoded: list[bytes], *, max_pixels: int) -> tuple[list[Image.Image], npt.NDArray[np.int32]]:
    """Decode the images of one request; return them and SIZE (N, 2) int32, height and width.

    Raises:
        InvalidImageError: an image is refused, or the images differ in size.
    """
    images = [decode(data, max_pixels=max_pixels) for data in encoded]
    sizes = [(image.height, image.width) for image in images]
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{width}x{height}" for height, width in sizes)
        raise InvalidImageError(
            f"the images of one request must have one size, and these are {listed}; send one image a request, "
            "the server batches them"
        )
    return images, np.array(sizes, np.int32)
