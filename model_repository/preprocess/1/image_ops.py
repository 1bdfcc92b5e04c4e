"""From the bytes of an encoded image to the normalised pixels that DeepLabV3 takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from image_decoding import InvalidImageError, decode, decode_for_resize
from image_resizing import resize
from image_scaling import Picture

__all__ = ["InvalidImageError", "Settings", "decode", "decode_alike", "normalise", "preprocess"]


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
        scaled_decoding: whether large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resize_mode: str
    resize_size: int
    max_pixels: int
    max_resized_pixels: int
    scaled_decoding: bool

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
            scaled_decoding=_boolean(parameters, "scaled_decoding"),
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


def _boolean(parameters: Mapping[str, str], name: str) -> bool:
    text = _parameter(parameters, name)
    if text not in {"true", "false"}:
        raise ValueError(f"parameter {name} is {text!r}; use 'true' or 'false'")
    return text == "true"


def _three_floats(parameters: Mapping[str, str], name: str) -> tuple[float, float, float]:
    text = _parameter(parameters, name)
    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError as exc:
        raise ValueError(f"parameter {name} is {text!r}; it must be three numbers: 'R, G, B'") from exc
    if not all(math.isfinite(value) for value in (first, second, third)):
        raise ValueError(f"parameter {name} is {text!r}; every number must be finite")
    return first, second, third


def normalise(picture: Picture, settings: Settings, pixels: npt.NDArray[np.float32]) -> None:
    """Resize a picture to pixels' size, and write (value / 255 - mean) / std into them: (3, H, W), contiguous."""
    height, width = pixels.shape[-2:]
    samples = resize(picture, (height, width), max_pixels=settings.max_pixels)
    mean = torch.tensor(settings.mean).view(3, 1, 1)
    std = torch.tensor(settings.std).view(3, 1, 1)
    torch.from_numpy(pixels).copy_(samples).div_(255).sub_(mean).div_(std)


def preprocess(encoded: list[bytes], settings: Settings) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Turn the images of one request into PIXELS (N, 3, H, W) float32 and SIZE (N, 2) int32, height and width.

    Raises:
        InvalidImageError: an image is refused, or the images differ in size: one request has one MASK tensor.
    """
    pictures, sizes = decode_alike(encoded, settings)
    pixels = np.empty((len(pictures), 3, *settings.resized(*pictures[0].size)), np.float32)
    for picture, planes in zip(pictures, pixels, strict=True):
        normalise(picture, settings, planes)
    return pixels, sizes


def decode_alike(encoded: list[bytes], settings: Settings) -> tuple[list[Picture], npt.NDArray[np.int32]]:
    """Decode the images of one request; return them and SIZE (N, 2) int32, height and width.

    Raises:
        InvalidImageError: an image is refused, or the images differ in size.
    """
    resized = settings.resized if settings.scaled_decoding else None
    pictures = [decode_for_resize(data, max_pixels=settings.max_pixels, resized=resized) for data in encoded]
    sizes = [picture.size for picture in pictures]
    if len(set(sizes)) > 1:
        listed = ", ".join(f"{width}x{height}" for height, width in sizes)
        raise InvalidImageError(
            f"the images of one request must have one size, and these are {listed}; send one image a request, "
            "the server batches them"
        )
    return pictures, np.array(sizes, np.int32)
