"""The resize of `image_ops` on a GPU; the decoding stays what and where it is.

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

    def preprocess(self, encoded: list[bytes]) -> tuple[torch.Tensor, npt.NDArray[np.int32]]:
        """Turn the images of one request into PIXELS (N, H, W, 3) uint8 and SIZE (N, 2) int32, height and width.

        Raises:
            image_ops.InvalidImageError: as `image_ops.preprocess`.
        """
        images, sizes = image_ops.decode_alike(encoded, max_pixels=self._settings.max_pixels)
        target = self._settings.resized(images[0].height, images[0].width)
        with torch.inference_mode():
            return torch.stack([self._resize(image, target) for image in images]), sizes

    def _resize(self, image: Image.Image, target: tuple[int, int]) -> torch.Tensor:
        if max(image.height / target[0], image.width / target[1]) > _MAX_SCALE:
            return torch.from_numpy(image_ops.resize(image, target, self._settings)).to(self._device)
        return resize(torch.from_numpy(image_ops.samples_of(image)).to(self._device), target)


def resize(samples: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize (H, W, 3) uint8 to a height and width, bilinearly with antialiasing."""
    if size == tuple(samples.shape[:2]):
        return samples
    planes = samples.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    resized = torch.nn.functional.interpolate(
        planes.unsqueeze(0), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
