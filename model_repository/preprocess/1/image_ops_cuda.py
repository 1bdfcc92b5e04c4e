"""The resize of `image_ops` on a GPU; images are still decoded on the CPU.

torch's uint8 resize exists only on CPUs, so a GPU resizes in float32 and rounds once, whereas the CPU also rounds
between the two directions. A test limits the difference.
"""

import image_ops
import numpy as np
import numpy.typing as npt
import torch
from image_resizing import interpolate, tensor_of
from image_scaling import Fraction, Picture, swapped

# torch keeps the weights of a resize in a block's shared memory, and refuses a scale with too many (about 80 to 1).
# Images that shrink more than this are resized on the CPU.
_MAX_SCALE = 16


class Preprocessor:
    """`image_ops.preprocess` with PIXELS on a device.

    Args:
        device: the device of PIXELS; work is on torch's current stream.
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
        pictures, sizes = image_ops.decode_alike(encoded, self._settings)
        target = self._settings.resized(*pictures[0].size)
        with torch.inference_mode():
            return torch.stack([self._resize(picture, target) for picture in pictures]), sizes

    def _resize(self, picture: Picture, target: tuple[int, int]) -> torch.Tensor:
        image, fraction = picture.image, picture.fraction
        height, width = target if fraction is None else swapped(target, fraction.orientation)
        if max(image.height / height, image.width / width) > _MAX_SCALE:
            return torch.from_numpy(image_ops.resize(picture, target, self._settings)).to(self._device)
        return resize(tensor_of(image).to(self._device), target, fraction)


def resize(samples: torch.Tensor, size: tuple[int, int], fraction: Fraction | None) -> torch.Tensor:
    """Resize (H, W, 3) uint8 to a (height, width) as shown, bilinearly with antialiasing."""
    if fraction is None and size == tuple(samples.shape[:2]):
        return samples
    planes = samples.permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    resized = interpolate(planes.unsqueeze(0), size, fraction)
    return resized[0].round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
