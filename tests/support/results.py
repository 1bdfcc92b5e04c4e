"""Results that no server made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deeplab_client import Segmentation, voc

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def segmentation(mask: NDArray[np.uint8], **changes: Any) -> Segmentation:  # noqa: ANN401 - the fields' own
    """Return the result that a server with VOC's classes would give for a mask."""
    fields: dict[str, Any] = {
        "mask": mask,
        "class_names": voc.CLASS_NAMES,
        "model_name": "segment_resnet50",
        "model_version": "1",
        "weights": "COCO_WITH_VOC_LABELS_V1",
    }
    return Segmentation(**{**fields, **changes})
