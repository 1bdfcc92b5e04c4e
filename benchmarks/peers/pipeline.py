"""What every peer serves: the repository's own pre- and postprocessing around the same model.pt, in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

# The folders of these two modules are on PYTHONPATH: they are the files that Triton's Python models run.
import image_ops
import mask_ops
import torch

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from benchmarks.peers.service import Service


class Preprocess:
    """The bytes of encoded images to pixels."""

    def __init__(self, service: Service) -> None:
        self._settings = image_ops.Settings.from_parameters(service.preprocess)

    def __call__(self, image: bytes) -> tuple[torch.Tensor, npt.NDArray[np.float32]]:
        """Return pixels (1, 3, H, W) float32 and the image's size (1, 2) int32, or raise InvalidImageError."""
        pixels, size = image_ops.preprocess([image], self._settings)
        return torch.from_numpy(pixels), size


class Core:
    """The model."""

    def __init__(self, service: Service) -> None:
        torch.set_num_threads(service.threads)
        self._model = torch.jit.load(service.model)

    def __call__(self, pixels: list[torch.Tensor]) -> list[npt.NDArray[np.float32]]:
        """Return logits (1, C, H / 8, W / 8) float32 for each (1, 3, H, W), which may not differ in size."""
        with torch.inference_mode():
            logits = self._model(pixels[0] if len(pixels) == 1 else torch.cat(pixels))[1]
        return [each.numpy() for each in logits.split(1)]


class Postprocess:
    """Logits to masks."""

    def __init__(self, service: Service) -> None:
        self._limits = {"class_count": service.class_count, "max_pixels": service.max_pixels}

    def __call__(self, logits: npt.NDArray[np.float32], size: np.ndarray) -> bytes:
        """Return the class ids, one byte a pixel, row by row."""
        return mask_ops.postprocess(logits, size, **self._limits).masks.tobytes()


class Pipeline:
    """All three steps."""

    def __init__(self, service: Service) -> None:
        self.preprocess = Preprocess(service)
        self.core = Core(service)
        self.postprocess = Postprocess(service)

    def __call__(self, images: list[bytes]) -> list[bytes]:
        """Return the mask of each encoded image."""
        pixels, sizes = zip(*map(self.preprocess, images), strict=True)
        logits = self.core(list(pixels))
        return [self.postprocess(each, size) for each, size in zip(logits, sizes, strict=True)]
