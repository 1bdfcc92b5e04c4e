"""The resize and the normalisation of `image_ops` on a GPU; the decoding stays what and where it is.

torch's uint8 resize exists on CPUs only, so that a GPU resizes in float32 and rounds the result, once, where the CPU
rounds between the two directions as well. A test states by how much the results differ.
"""

import image_ops
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

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
        images, sizes = image_ops.decode_alike(encoded, max_pixels=self._settings.max_pixels)
        target = self._settings.resized(images[0].height, images[0].width)
        with torch.inference_mode():
            return torch.stack([self._normalise(image, target) for image in images]), sizes

    def _normalise(self, image: Image.Image, target: tuple[int, int]) -> torch.Tensor:
        if max(image.height / target[0], image.width / target[1]) > _MAX_SCALE:
            planes = np.empty((3, *target), np.float32)
            image_ops.normalise(image, self._settings, planes)
            return torch.from_numpy(planes).to(self._device)
        pixels = torch.from_numpy(image_ops.samples_of(image)).to(self._device).permute(2, 0, 1)
        return (resize(pixels, target) / 255).sub_(self._mean).div_(self._std)


def resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (3, H, W) uint8 to a height and width, bilinearly with antialiasing; whole numbers in float32."""
    values = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    if size == tuple(pixels.shape[-2:]):
        return values
    resized = torch.nn.functional.interpolate(
        values.unsqueeze(0), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].round_().clamp_(0, 255)
