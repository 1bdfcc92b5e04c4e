"""The pipeline that every peer serves: the repository's pre- and postprocessing around the same model.pt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# The folders of these two modules are on PYTHONPATH; they are the files that Triton's Python models use.
import image_ops
import mask_ops
import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.service import Service

# Of one image: pixels (1, H, W, 3) uint8 or logits (1, C, H / 8, W / 8) float32, and its size (1, 2) int32.
Pixels = tuple[torch.Tensor, npt.NDArray[np.int32]]
Logits = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]


class Pipeline:
    """The three steps.

    Args:
        service: the settings of the peer.
        model: the model file, if it is not the service's; None for the steps around the model only.
    """

    def __init__(self, service: Service, *, model: str | None = "") -> None:
        self._service = service
        self._settings = image_ops.Settings.from_parameters(service.preprocess)
        torch.set_num_threads(service.threads)
        self._model: Any = None if model is None else torch.jit.load(model or service.model)

    def preprocess(self, image: bytes) -> Pixels:
        """Return the pixels of an encoded image; raises InvalidImageError."""
        pixels, size = image_ops.preprocess([image], self._settings)
        return torch.from_numpy(pixels), size

    def predict(self, images: Sequence[Pixels]) -> list[Logits]:
        """Run the model on a batch of images, whose pixels must have the same height and width."""
        pixels = [each for each, _ in images]
        with torch.inference_mode():
            ids = torch.zeros(len(pixels), 1, dtype=torch.int64)
            logits = self._model(pixels[0] if len(pixels) == 1 else torch.cat(pixels), ids)[0]
        return [(each.numpy(), size) for each, (_, size) in zip(logits.split(1), images, strict=True)]

    def postprocess(self, logits: npt.NDArray[np.float32], size: npt.NDArray[np.int32]) -> bytes:
        """Return the class ids, one byte per pixel, row by row."""
        limits = {"class_count": self._service.class_count, "max_pixels": self._service.max_pixels}
        return mask_ops.postprocess(logits, size, **limits).masks.tobytes()

    def __call__(self, images: Sequence[bytes]) -> list[bytes]:
        """Return the mask of each encoded image."""
        return [self.postprocess(*each) for each in self.predict([self.preprocess(image) for image in images])]
