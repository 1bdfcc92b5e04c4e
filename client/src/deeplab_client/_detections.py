"""Areas as detections of the library supervision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from deeplab_client._errors import missing_extra

if TYPE_CHECKING:
    from collections.abc import Sequence

    import supervision

    from deeplab_client._areas import Area


def detections(found: Sequence[Area], class_names: Sequence[str]) -> supervision.Detections:
    """Return one detection for each area.

    Raises:
        ModuleNotFoundError: supervision is not installed.
    """
    try:
        import supervision  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        if error.name != "supervision":
            raise
        raise missing_extra("to_supervision", "supervision", "supervision") from error
    if not found:
        return supervision.Detections.empty()
    masks = np.stack([area.in_image() for area in found])
    scores = [area.score for area in found if area.score is not None]
    return supervision.Detections(
        xyxy=supervision.mask_to_xyxy(masks).astype(np.float64),
        mask=masks,
        confidence=np.array(scores) if scores else None,
        class_id=np.array([area.class_id for area in found]),
        data={"class_name": np.array([class_names[area.class_id] for area in found])},
    )
