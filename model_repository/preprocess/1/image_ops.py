"""From the bytes of an encoded image to the normalised pixels that DeepLabV3 takes.

`image_decoding` decodes, torch resizes: its uint8 kernel with antialiasing is what torchvision's transforms use on
tensors.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from image_decoding import InvalidImageError, decode, samples_of
from PIL import Image

__all__ = ["InvalidImageError", "Settings", "decode", "decode_alike", "normalise", "preprocess", "samples_of"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters of the model's config.

    Attributes:
        mean: per channel R, G, B, on the scale 0 to 1.
        std: per channel R, G, B, on the scale 0 to 1.
        resize_mode: "square" for resize_size x resize_size; "shorter_side" keeps the aspect ratio.
        resize_size: pixels.
        max_pixels: an image with more, as encoded, is refused.
        max_resized_pixels: an image that would have more after the resize is refused.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize_mode: str
    resize_size: int
    max_pixels: int
    max_resized_pixels: int

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "Settings":
        """Parse the string parameters of config.pbtxt; a missing or impossible one is a ValueError that names it."""
        settings = cls(
            mean=_three_floats(parameters, "mean"),
            std=_three_floats(parameters, "std"),
            resize_mode=_parameter(parameters, "resize_mode"),
            resize_size=_positive_int(parameters, "resize_size"),
            max_pixels=_positive_int(parameters, "max_pixels"),
            max_resized_pixels=_positive_int(parameters, "max_resized_pixels"),
        )
        if settings.resize_mode not in {"square", "shorter_side"}:
            raise ValueError(f"parameter resize_mode is {settings.resize_mode!r}; use 'square' or 'shorter_side'")
        if min(settings.std) <= 0:
            raise ValueError(f"parameter std is {parameters['std']!r}; every number must be above 0")
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


def _three_floats(parameters: Mapping[str, str], name: str) -> tuple[float, float, float]:
    text = _parameter(parameters, name)
    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError as exc:
        raise ValueError(f"parameter {name} is {text!r}; it must be three numbers: 'R, G, B'") from exc
    if not all(math.isfinite(value) for value in (first, second, third)):
        raise ValueError(f"parameter {name} is {text!r}; every number must be finite")
    return first, second, third


def _resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if size == tuple(pixels.shape[-2:]):
        return pixels
    return torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)


def normalise(image: Image.Image, settings: Settings, pixels: npt.NDArray[np.float32]) -> None:
    """Resize an RGB image to pixels' size, and write (value / 255 - mean) / std into them: (3, H, W), contiguous."""
    # The batch dimension comes before the channels move, or torch would not see that this is channels-last, for which
    # it has a quick kernel.
    samples = torch.from_numpy(samples_of(image)).unsqueeze(0).permute(0, 3, 1, 2)
    height, width = pixels.shape[-2:]
    if image.height * width > settings.max_pixels:
        # torch resizes rows first: of a picture that is very high and narrow it would make one that is wide as well.
        samples = _resize(samples, (height, image.width))
    samples = _resize(samples, (height, width))
    mean = torch.tensor(settings.mean).view(3, 1, 1)
    std = torch.tensor(settings.std).view(3, 1, 1)
    torch.from_numpy(pixels).copy_(samples[0]).div_(255).sub_(mean).div_(std)


def preprocess(encoded: list[bytes], settings: Settings) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Turn the images of one request into PIXELS (N, 3, H, W) float32 and SIZE (N, 2) int32, height and width.

    Raises:
        InvalidImageError: an image is refused, or the images differ in size: one request has one MASK tensor.
    """
    images, sizes = decode_alike(encoded, max_pixels=settings.max_pixels)
    pixels = np.empty((len(images), 3, *settings.resized(images[0].height, images[0].width)), np.float32)
    for image, planes in zip(images, pixels, strict=True):
        normalise(image, settings, planes)
    return pixels, sizes


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
