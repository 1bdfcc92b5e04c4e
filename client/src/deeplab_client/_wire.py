"""The ensemble's tensors, the same on every protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from deeplab_client._errors import ModelError
from deeplab_client._segmentation import Segmentation

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deeplab_client._transport import Reply

IMAGE = "IMAGE"
IMAGE_SHAPE = (1, 1)
OUTPUTS = ("MASK", "CLASS_PIXELS", "CLASS_NAMES")
WEIGHTS_PARAMETER = "weights"


def image_tensor(image: bytes) -> NDArray[np.object_]:
    """Wrap one encoded image as a batch of one."""
    # numpy's own bytes dtype would drop trailing zero bytes.
    tensor = np.empty(IMAGE_SHAPE, np.object_)
    tensor[0, 0] = image
    return tensor


def read_reply(reply: Reply, *, weights: str | None, request_id: str) -> Segmentation:
    """Check a reply against the contract and make a result that owns its memory.

    Raises:
        ModelError: Tensors are missing, or do not fit each other.
    """
    mask, counts, names = (reply.outputs.get(name) for name in OUTPUTS)
    flaw = _flaw(mask, counts, names)
    if flaw or mask is None or counts is None or names is None:
        message = f"{reply.model_name!r} does not answer like a segmentation ensemble: {flaw}"
        raise ModelError(message, model=reply.model_name, request_id=request_id)
    class_names = tuple(_text(name) for name in names[0])
    return Segmentation(
        mask=np.array(mask[0], order="C"),
        class_names=class_names,
        pixels=_present(class_names, counts[0]),
        model_name=reply.model_name,
        model_version=reply.model_version,
        weights=weights,
    )


def _flaw(mask: NDArray[Any] | None, counts: NDArray[Any] | None, names: NDArray[Any] | None) -> str | None:
    if mask is None or counts is None or names is None:
        absent = [name for name, tensor in zip(OUTPUTS, (mask, counts, names), strict=True) if tensor is None]
        return f"no output {', '.join(absent)}"
    if mask.dtype != np.uint8 or mask.ndim != 3 or len(mask) != 1:  # noqa: PLR2004 batch, height, width
        return f"MASK is {mask.dtype} {mask.shape}, not uint8 (1, H, W)"
    if counts.shape != names.shape or counts.ndim != 2 or len(counts) != 1:  # noqa: PLR2004 batch, class
        return f"CLASS_PIXELS {counts.shape} and CLASS_NAMES {names.shape} are not both (1, C)"
    if int(counts.sum()) != mask.size:
        return f"CLASS_PIXELS count {int(counts.sum())} pixels, MASK has {mask.size}"
    return None


def _text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode("utf-8", "replace")


def _present(class_names: tuple[str, ...], counts: NDArray[Any]) -> dict[str, int]:
    pixels: dict[str, int] = {}
    for name, count in zip(class_names, counts, strict=True):
        if count > 0:  # a label file may use one name for several ids
            pixels[name] = pixels.get(name, 0) + int(count)
    return dict(sorted(pixels.items(), key=lambda item: -item[1]))
