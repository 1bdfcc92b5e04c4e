"""Results for Roboflow's supervision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deeplab_client._extras import missing

if TYPE_CHECKING:
    from collections.abc import Sequence

    import supervision
    from numpy.typing import NDArray


def detections(mask: NDArray[np.uint8], class_names: Sequence[str]) -> supervision.Detections:
    """Return one detection for each class id in a mask, the background left out.

    Raises:
        ModuleNotFoundError: supervision is not installed.
    """
    try:
        import supervision  # noqa: PLC0415 of an extra
    except ModuleNotFoundError as error:
        if error.name != "supervision":
            raise
        raise missing("to_supervision", "supervision", "supervision") from error
    present = np.unique(mask)
    class_ids = present[present != 0].astype(np.int64)
    if not class_ids.size:
        return supervision.Detections.empty()
    masks = mask == class_ids[:, np.newaxis, np.newaxis]
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks).astype(np.float64),
        mask=masks,
        class_id=class_ids,
        data={"class_name": np.array([class_names[class_id] for class_id in class_ids])},
    )
