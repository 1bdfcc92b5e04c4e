"""From the bytes of an encoded image to the normalised pixels that DeepLabV3 takes.

Pillow decodes, torch resizes: its uint8 kernel with antialiasing is what torchvision's transforms use on tensors.
"""

import io
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM")

# The limit on pixels is ours, from the model's config, and holds before anything is decoded.
Image.MAX_IMAGE_PIXELS = None

# EXIF tag 0x0112 (Exif 2.32, table 4): how the stored rows and columns become the picture as shown; 1 is "as stored".
_ORIENTATION_TAG = 0x0112
_TRANSPOSE_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Decoders that Pillow has in Python: a file of a few kilobytes can hold them up for many seconds.
_SLOW_DECODERS = {
    "ppm": "send samples of 8 bits (a maximum of 255)",
    "ppm_plain": "send the binary form (P4, P5, P6)",
    "bmp_rle": "send it uncompressed",
}
# A progressive JPEG has about ten scans, and each may cost as much as the whole picture.
_MAX_JPEG_SCANS = 100
_JPEG_START_OF_SCAN = b"\xff\xda"

# Pillow's modes of 16-bit greyscale; its own conversion to RGB clips them at 255.
_SIXTEEN_BIT_MAXIMUM = 65_535
_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})


class InvalidImageError(ValueError):
    """The caller's image cannot be segmented; the message says why."""


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
        raise ValueError(f"parameter {name} is {text!r}; it must be a whole number of at least 1")
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


def decode(data: bytes, *, max_pixels: int) -> Image.Image:
    """Return the image as shown: RGB, EXIF orientation applied, the first frame of an animation.

    Alpha is dropped, 16-bit samples keep their high byte, ICC profiles are not applied.

    Raises:
        InvalidImageError: empty, not of FORMATS, broken or truncated, or more than max_pixels. The size is checked
            from the header, before any pixel is decoded.
    """
    if not data:
        raise InvalidImageError("the image is empty (0 bytes); send the bytes of one encoded image")
    with warnings.catch_warnings():
        # Pillow's remarks on odd metadata are of no use in a server's log.
        warnings.simplefilter("ignore")
        image = _open(data)
        width, height = image.size
        if width * height > max_pixels:
            raise InvalidImageError(
                f"the image is {width} x {height} = {width * height} pixels, and the limit is {max_pixels}; "
                "scale it down"
            )
        _refuse_slow(image, data)
        return _load(image)


def _open(data: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except MemoryError:
        raise
    except Exception as exc:
        raise InvalidImageError(
            f"the {len(data)} bytes cannot be opened as an image: broken, truncated or of another format; send one of "
            f"{', '.join(FORMATS)}"
        ) from exc


def _refuse_slow(image: Image.Image, data: bytes) -> None:
    """Refuse what takes its time out of proportion to its size."""
    for tile in getattr(image, "tile", []):
        if tile[0] in _SLOW_DECODERS:
            raise InvalidImageError(
                f"this kind of {image.format} image is not taken, for it decodes too slowly; {_SLOW_DECODERS[tile[0]]}"
            )
    scans = data.count(_JPEG_START_OF_SCAN) if image.format in {"JPEG", "MPO"} else 0
    if scans > _MAX_JPEG_SCANS:
        raise InvalidImageError(f"the JPEG image has {scans} scans, and the limit is {_MAX_JPEG_SCANS}; encode it anew")


def _load(image: Image.Image) -> Image.Image:
    try:
        image.load()
        return _upright(_to_rgb(image), _orientation(image))
    except (InvalidImageError, MemoryError):
        raise
    except Exception as exc:  # Pillow's decoders raise what they like, and all of it comes from these bytes.
        raise InvalidImageError(f"the {image.format} image is broken or truncated: {exc}") from exc


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # noqa: BLE001  Pixels whose EXIF block is garbled are shown as stored, as image viewers do.
        return 1
    return orientation if isinstance(orientation, int) else 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    method = _TRANSPOSE_BY_ORIENTATION.get(orientation)
    return image if method is None else image.transpose(method)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        samples = np.asarray(image)
        image = Image.fromarray((samples.clip(0, _SIXTEEN_BIT_MAXIMUM) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise InvalidImageError("the image has floating-point samples; send 8 or 16 bits a sample")
    return image if image.mode == "RGB" else image.convert("RGB")  # which would copy


def _resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if size == tuple(pixels.shape[-2:]):
        return pixels
    return torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)


def normalise(image: Image.Image, settings: Settings, pixels: npt.NDArray[np.float32]) -> None:
    """Resize an RGB image to pixels' size, and write (value / 255 - mean) / std into them: (3, H, W), contiguous."""
    # A copy of the samples: torch does not take read-only memory. The batch dimension comes before the channels
    # move, or torch would not see that this is channels-last, for which it has a quick kernel.
    samples = torch.from_numpy(np.array(image)).unsqueeze(0).permute(0, 3, 1, 2)
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
