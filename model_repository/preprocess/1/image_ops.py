"""Turn the bytes of an encoded image into the samples for the core models."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from image_decoding import InvalidImageError, decode, decode_for_resize
from image_resizing import resized_planes
from image_scaling import Picture

__all__ = ["InvalidImageError", "Settings", "decode", "decode_alike", "preprocess", "resize"]


@dataclass(frozen=True, slots=True)
class Settings:
    """The parameters of the model's config.

    Attributes:
        resize_mode: "fixed" for one size of all images; "shorter_side" to keep the aspect ratio.
        resize_size: height and width in pixels; with "shorter_side" both are the shorter side.
        max_pixels: images with more pixels are refused.
        max_resized_pixels: images that would have more pixels after the resize are refused.
        scaled_decoding: whether large JPEGs are decoded at 1/2, 1/4 or 1/8 of their size.
    """

    resize_mode: str
    resize_size: tuple[int, int]
    max_pixels: int
    max_resized_pixels: int
    scaled_decoding: bool

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "Settings":
        """Parse the string parameters of config.pbtxt; raise a ValueError for a missing or impossible value."""
        settings = cls(
            resize_mode=_parameter(parameters, "resize_mode"),
            resize_size=_sides(parameters, "resize_size"),
            max_pixels=_positive_int(parameters, "max_pixels"),
            max_resized_pixels=_positive_int(parameters, "max_resized_pixels"),
            scaled_decoding=_boolean(parameters, "scaled_decoding"),
        )
        if settings.resize_mode not in {"fixed", "shorter_side"}:
            raise ValueError(f"parameter resize_mode is {settings.resize_mode!r}; use 'fixed' or 'shorter_side'")
        if settings.resize_mode == "shorter_side" and "x" in parameters["resize_size"]:
            raise ValueError(
                f"parameter resize_size is {parameters['resize_size']!r}; with resize_mode 'shorter_side' it must be "
                "one number"
            )
        return settings

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) after the resize.

        Raises:
            InvalidImageError: the result would have more than max_resized_pixels.
        """
        if self.resize_mode == "fixed":
            return self.resize_size
        shorter = self.resize_size[0]
        # As in torchvision, the longer side is truncated, not rounded.
        longer = int(shorter * max(height, width) / min(height, width))
        if longer * shorter > self.max_resized_pixels:
            raise InvalidImageError(
                f"the image is {width} x {height} pixels; with its shorter side at {shorter} it would have "
                f"{longer * shorter} pixels, but the limit is {self.max_resized_pixels}; crop it, or build the "
                "server's models with --set preprocess.resize_mode=fixed"
            )
        return (shorter, longer) if height <= width else (longer, shorter)


def _parameter(parameters: Mapping[str, str], name: str) -> str:
    if name not in parameters:
        raise ValueError(f"parameter {name} is missing from the model's config.pbtxt")
    return parameters[name].strip()


def _positive_int(parameters: Mapping[str, str], name: str) -> int:
    text = _parameter(parameters, name)
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise ValueError(f"parameter {name} is {text!r}; it must be an integer from 1")
    return int(text)


def _sides(parameters: Mapping[str, str], name: str) -> tuple[int, int]:
    """Return the height and width of "520", or of "1024x512" (width x height)."""
    text = _parameter(parameters, name)
    width, _, height = text.partition("x")
    try:
        return _positive_int({name: height if "x" in text else width}, name), _positive_int({name: width}, name)
    except ValueError:
        raise ValueError(
            f"parameter {name} is {text!r}; it must be an integer from 1, or WIDTHxHEIGHT such as 1024x512"
        ) from None


def _boolean(parameters: Mapping[str, str], name: str) -> bool:
    text = _parameter(parameters, name)
    if text not in {"true", "false"}:
        raise ValueError(f"parameter {name} is {text!r}; use 'true' or 'false'")
    return text == "true"


def resize(picture: Picture, size: tuple[int, int], settings: Settings) -> npt.NDArray[np.uint8]:
    """Return a picture as shown, resized to (height, width), as uint8 samples (height, width, 3)."""
    planes = resized_planes(picture, size, max_pixels=settings.max_pixels)
    return planes.permute(1, 2, 0).contiguous().numpy()


def preprocess(encoded: list[bytes], settings: Settings) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
    """Turn the images of one request into PIXELS (N, H, W, 3) uint8 and SIZE (N, 2) int32, height and width.

    Raises:
        InvalidImageError: an image is refused, or the images differ in size, because one request has one MASK tensor.
    """
    pictures, sizes = decode_alike(encoded, settings)
    size = settings.resized(*pictures[0].size)
    resized = [resize(picture, size, settings)[np.newaxis] for picture in pictures]
    return resized[0] if len(resized) == 1 else np.concatenate(resized), sizes


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
            f"the images of one request must have the same size, got {listed}; send one image per request, because the "
            "server batches requests"
        )
    return pictures, np.array(sizes, np.int32)
