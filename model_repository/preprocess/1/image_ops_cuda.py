"""The resize and the normalisation of `image_ops` on a GPU; the decoding stays what and where it is.

torch's uint8 resize exists on CPUs only, so that a GPU resizes in float32 and rounds the result, once, where the CPU
rounds between the two directions as well. A test states by how much the results differ.
"""

import image_ops
import numpy as np
import numpy.typing as npt
import torch
from image_resizing import interpolate
from image_samples import samples_of
from image_scaling import Fraction, Picture, swapped

# torch keeps a resize's weights in a block's shared memory, and refuses a scale for which they are too many (some 80
# to 1). What is shrunk further than this is resized on the CPU.
_MAX_SCALE = 16


class Preprocessor:
    """What `image_ops.preprocess` does, with PIXELS on a device.

    Args:
        device: where PIXELS are made, on torch's current stream.
        settings: the parameters of the model's config.
    """

    def __init__(self, device: torch.device, settings: image_ops.Settings) -> None:
        self._device = device
        self._settings = settings
        self._mean = torch.tensor(settings.mean, device=device).view(3, 1, 1)
        self._std = torch.tensor(settings.std, device=device).view(3, 1, 1)

    def preprocess(self, encoded: list[bytes]) -> tuple[torch.Tensor, npt.NDArray[np.int32]]:
        """Turn the images of one request into PIXELS (N, 3, H, W) float32 and SIZE (N, 2) int32, height and width.

        Raises:
            image_ops.InvalidImageError: as `image_ops.preprocess`.
        """
        pictures, sizes = image_ops.decode_alike(encoded, self._settings)
        target = self._settings.resized(*pictures[0].size)
        with torch.inference_mode():
            return torch.stack([self._normalise(picture, target) for picture in pictures]), sizes

    def _normalise(self, picture: Picture, target: tuple[int, int]) -> torch.Tensor:
        image, fraction = picture.image, picture.fraction
        height, width = target if fraction is None else swapped(target, fraction.orientation)
        if max(image.height / height, image.width / width) > _MAX_SCALE:
            planes = np.empty((3, *target), np.float32)
            image_ops.normalise(picture, self._settings, planes)
            return torch.from_numpy(planes).to(self._device)
        pixels = torch.from_numpy(samples_of(image)).to(self._device)[..., :3].permute(2, 0, 1)
        return (resize(pixels, target, fraction) / 255).sub_(self._mean).div_(self._std)


def resize(pixels: torch.Tensor, size: tuple[int, int], fraction: Fraction | None) -> torch.Tensor:
    """Resize (3, H, W) uint8 to a height and width as shown; whole numbers in float32."""
    values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    if fraction is None and size == tuple(pixels.shape[-2:]):
        return values
    return interpolate(values.unsqueeze(0), size, fraction)[0].round_().clamp_(0, 255)
