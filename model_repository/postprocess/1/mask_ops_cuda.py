"""Class masks from logits on a GPU, with torch: the counterpart of `mask_ops`, which uses numpy.

`start` does not wait for the device, which fills the returned arrays later: call `wait` before reading them.
"""

import logit_tiles
import mask_ops
import numpy as np
import numpy.typing as npt
import torch

# The memory for the values of a tile. A picture of 1280 x 960 with 21 classes is one tile.
_TILE_BYTES = 512 << 20
# A tile holds this many arrays of C values per pixel: the two rows that are interpolated, their result, and the
# comparison with each class id, which takes less.
_VALUES = 4


class Masker:
    """Computes masks on one device, on torch's current stream.

    Args:
        device: the device; logits elsewhere are copied to it.
        class_count: the number of classes of the logits.
        max_pixels: the largest number of pixels of a mask.
    """

    def __init__(self, device: torch.device, *, class_count: int, max_pixels: int) -> None:
        self._device = device
        self._class_count = class_count
        self._max_pixels = max_pixels
        self._ids = torch.arange(class_count, device=device).view(-1, 1, 1)

    def start(self, logits: torch.Tensor, sizes: npt.NDArray[np.int32]) -> mask_ops.Masks:
        """Start to compute the masks of one request from its LOGITS (N, C, h, w) float32 and SIZE (N, 2).

        Raises:
            logit_tiles.InvalidLogitsError: as `logit_tiles.checked_size`.
        """
        height, width = logit_tiles.checked_size(
            tuple(logits.shape), sizes, class_count=self._class_count, max_pixels=self._max_pixels
        )
        with torch.inference_mode():
            logits = logits.to(self._device)
            masks = torch.empty((len(logits), height, width), dtype=torch.uint8, device=self._device)
            class_pixels = torch.zeros((len(logits), self._class_count), dtype=torch.int64, device=self._device)
            for planes, mask, counts in zip(logits, masks, class_pixels, strict=True):
                self._segment(planes, mask, counts)
            return mask_ops.Masks(self._to_host(masks).numpy(), self._to_host(class_pixels).numpy())

    def wait(self) -> None:
        """Wait until all started work is done."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._device.type == "cpu":
            return tensor
        # Page-locked, because otherwise the copy would wait for the device.
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def _segment(self, logits: torch.Tensor, mask: torch.Tensor, counts: torch.Tensor) -> None:
        """Write the (H, W) mask of (C, h, w) logits and add the (C,) pixels of each class, tile by tile.

        Of equal values the lower class id wins.
        """
        height, width = mask.shape
        rows = _axis(logits.shape[1], height, self._device)
        columns = _axis(logits.shape[2], width, self._device)
        tile_pixels = max(1, _TILE_BYTES // (_VALUES * logits.element_size() * self._class_count))
        tile_columns = min(width, tile_pixels)
        tile_rows = max(1, tile_pixels // max(logits.shape[2], tile_columns))
        for top in range(0, height, tile_rows):
            strip = slice(top, top + tile_rows)
            high = _blend(logits, 1, [part[strip] for part in rows])
            for left in range(0, width, tile_columns):
                tile = slice(left, left + tile_columns)
                found = _blend(high, 2, [part[tile] for part in columns]).argmax(0)
                mask[strip, tile] = found
                counts += (found == self._ids).sum((1, 2))


def _axis(source: int, target: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the source positions of one axis: floor index, ceiling index, weight of the ceiling.

    As torch's bilinear interpolation with half-pixel centers (align_corners false).
    """
    scale = source / target
    position = (torch.arange(target, dtype=torch.float32, device=device) + 0.5).mul_(scale).sub_(0.5).clamp_(min=0)
    low = position.long().clamp_(max=source - 1)
    return low, (low + 1).clamp_(max=source - 1), position - low


def _blend(values: torch.Tensor, dimension: int, axis: list[torch.Tensor]) -> torch.Tensor:
    """Interpolate (C, h, w) along one dimension."""
    low, high, weight = axis
    weight = weight.unsqueeze(1) if dimension == 1 else weight
    return values.index_select(dimension, low).lerp_(values.index_select(dimension, high), weight)
