"""Resize pictures to the size for the model.

torch's antialiased uint8 kernel resizes them, as in torchvision's transforms on tensors.
"""

import warnings

import torch
from image_samples import samples_of
from image_scaling import FIRST_SWAPPED, Fraction, Picture, swapped
from PIL import Image

# The axes to flip, by EXIF orientation; from FIRST_SWAPPED on after the axes are swapped.
_FLIPPED = {2: [-1], 3: [-2, -1], 4: [-2], 6: [-1], 7: [-2, -1], 8: [-2]}
# torch rounds the size of a result down; this factor keeps 519.9999 from becoming 519.
_JUST_ABOVE = 1 + 1e-9


def resized_planes(picture: Picture, size: tuple[int, int], *, max_pixels: int) -> torch.Tensor:
    """Return a picture as shown, resized to (height, width): (3, H, W) uint8, with any strides.

    max_pixels limits the size of intermediate results.
    """
    # The batch dimension is added before the channels move, because otherwise torch would not detect channels-last, for
    # which it has a fast kernel.
    samples = tensor_of(picture.image).unsqueeze(0).permute(0, 3, 1, 2)
    height, width = size
    if picture.image.height * width > max_pixels:
        # torch resizes rows first, which would make a very high and narrow picture wide as well.
        samples = interpolate(samples, (height, picture.image.width), None)
    return interpolate(samples, size, picture.fraction)[0]


def tensor_of(image: Image.Image) -> torch.Tensor:
    """Return the samples of an RGB image, (height, width, 3) uint8, which must not be written to."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(samples_of(image))


def interpolate(pixels: torch.Tensor, size: tuple[int, int], fraction: Fraction | None) -> torch.Tensor:
    """Resize pixels (N, C, H, W), uint8 on a CPU or float32, to (height, width) as shown, bilinear, antialiased."""
    resize_to = torch.nn.functional.interpolate
    if fraction is None:
        if size == tuple(pixels.shape[-2:]):
            return pixels
        return resize_to(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    sides = zip(swapped(size, fraction.orientation), fraction.covered, strict=True)
    factors = [side / covered * _JUST_ABOVE for side, covered in sides]
    resized = resize_to(pixels, scale_factor=factors, mode="bilinear", align_corners=False, antialias=True)
    if fraction.orientation >= FIRST_SWAPPED:
        resized = resized.mT
    return resized.flip(_FLIPPED.get(fraction.orientation, []))
