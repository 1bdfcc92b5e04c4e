"""What every peer serves: the repository's own pre- and postprocessing around the same model.pt, in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

# The folders of these two modules are on PYTHONPATH: they are the files that Triton's Python models run.
import image_ops
import mask_ops
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from benchmarks.peers.service import Service


class Preprocess:
    """The bytes of encoded images to pixels."""

    def __init__(self, service: Service) -> None:
        self._settings = image_ops.Settings.from_parameters(service.preprocess)

    def __call__(self, image: bytes) -> tuple[torch.Tensor, npt.NDArray[np.int32]]:
        """Return pixels (1, 3, H, W) float32 and the image's size (1, 2) int32, or raise InvalidImageError."""
        pixels, size = image_ops.preprocess([image], self._settings)
        return torch.from_numpy(pixels), size


class Core:
    """The model: from a file, or from the service's."""

    def __init__(self, service: Service, *, model: str = "") -> None:
        torch.set_num_threads(service.threads)
        self._model: Any = torch.jit.load(model or service.model)

    def __call__(self, pixels: Sequence[torch.Tensor]) -> list[npt.NDArray[np.float32]]:
        """Return logits (1, C, H / 8, W / 8) float32 for each (1, 3, H, W), which may not differ in size."""
        with torch.inference_mode():
            logits = self._model(pixels[0] if len(pixels) == 1 else torch.cat(list(pixels)))[1]
        return [each.numpy() for each in logits.split(1)]


class Postprocess:
    """Logits to masks."""

    def __init__(self, service: Service) -> None:
        self._class_count, self._max_pixels = service.class_count, service.max_pixels

    def __call__(self, logits: npt.NDArray[np.float32], size: npt.NDArray[np.int32]) -> bytes:
        """Return the class ids, one byte a pixel, row by row."""
        masks = mask_ops.postprocess(logits, size, class_count=self._class_count, max_pixels=self._max_pixels)
        return masks.masks.tobytes()


def predict(
    core: Core, images: Sequence[tuple[torch.Tensor, npt.NDArray[np.int32]]]
) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]]:
    """Run the model on the pixels of some images at once; their sizes go past it."""
    logits = core([pixels for pixels, _ in images])
    return [(each, size) for each, (_, size) in zip(logits, images, strict=True)]


class Pipeline:
    """All three steps."""

    def __init__(self, service: Service, *, model: str = "") -> None:
        self.preprocess = Preprocess(service)
        self.core = Core(service, model=model)
        self.postprocess = Postprocess(service)

    def predict(
        self, images: Sequence[tuple[torch.Tensor, npt.NDArray[np.int32]]]
    ) -> list[tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]]:
        """Run the model on the pixels of some images at once."""
        return predict(self.core, images)

    def __call__(self, images: Sequence[bytes]) -> list[bytes]:
        """Return the mask of each encoded image."""
        return [self.postprocess(*each) for each in self.predict([self.preprocess(image) for image in images])]
