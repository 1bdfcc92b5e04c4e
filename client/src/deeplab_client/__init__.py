"""Semantic segmentation from a Triton server in one call: image in, mask with class names out."""

from deeplab_client import voc
from deeplab_client._client import SegmentationClient
from deeplab_client._errors import (
    AccessDeniedError,
    ClientClosedError,
    DeadlineExceededError,
    InvalidImageError,
    ModelError,
    ModelNotFoundError,
    SegmentationError,
    ServerOverloadedError,
    ServerUnavailableError,
    UnknownClassError,
    UnsupportedError,
)
from deeplab_client._polygons import Polygon
from deeplab_client._segmentation import Segmentation
from deeplab_client._timings import Timings

__all__ = [
    "AccessDeniedError",
    "ClientClosedError",
    "DeadlineExceededError",
    "InvalidImageError",
    "ModelError",
    "ModelNotFoundError",
    "Polygon",
    "Segmentation",
    "SegmentationClient",
    "SegmentationError",
    "ServerOverloadedError",
    "ServerUnavailableError",
    "Timings",
    "UnknownClassError",
    "UnsupportedError",
    "voc",
]
