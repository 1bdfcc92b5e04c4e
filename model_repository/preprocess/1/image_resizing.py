"""Pictures at the size that the model takes.

torch resizes: its uint8 kernel with antialiasing is what torchvision's transforms use on tensors.
"""

import warnings

import torch
from image_samples import samples_of
from image_scaling import FIRST_SWAPPED, Fraction, Picture, swapped
from PIL import Image

# By EXIF's orientation the axes to flip; from FIRST_SWAPPED on after both are swapped.
_FLIPPED = {2: [-1], 3: [-2, -1], 4: [-2], 6: [-1], 7: [-2, -1], 8: [-2]}
# torch rounds the size of a result down; this keeps 519.9999 from becoming 519.
_JUST_ABOVE = 1 + 1e-9


def resized_planes(picture: Picture, size: tuple[int, int], *, max_pixels: int) -> torch.Tensor:
    """Return a picture as shown at a height and width: (3, H, W) uint8, of any strides.

    max_pixels bounds what the resize makes on its way.
    """
    # The batch dimension comes before the channels move, or torch would not see that this is channels-last, for which
    # it has a quick kernel.
    samples = tensor_of(picture.image).unsqueeze(0).permute(0, 3, 1, 2)
    height, width = size
    if picture.image.height * width > max_pixels:
        # torch resizes rows first: of a picture that is very high and narrow it would make one that is wide as well.
        samples = interpolate(samples, (height, picture.image.width), None)
    return interpolate(samples, size, picture.fraction)[0]


def tensor_of(image: Image.Image) -> torch.Tensor:
    """Return the samples of an RGB image, (height, width, 3) uint8, to which nobody may write."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(samples_of(image))


def interpolate(pixels: torch.Tensor, size: tuple[int, int], fraction: Fraction | None) -> torch.Tensor:
    """Resize pixels (N, C, H, W), uint8 on a CPU or float32, bilinearly with antialiasing, to a size as shown."""
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
