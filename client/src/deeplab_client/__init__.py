"""Semantic segmentation from a Triton server in one call: image in, mask with class names out."""

from typing import TYPE_CHECKING

from deeplab_client import voc
from deeplab_client._client import SegmentationClient
from deeplab_client._coco import CocoAnnotation, CocoCategory, CocoRle, Rle
from deeplab_client._errors import (
    AccessDeniedError,
    ClientClosedError,
    ClientLimitError,
    DeadlineExceededError,
    InvalidImageError,
    MismatchedReplyError,
    ModelError,
    ModelNotFoundError,
    SegmentationError,
    ServerOverloadedError,
    ServerUnavailableError,
    TLSError,
    UnknownClassError,
    UnsupportedError,
)
from deeplab_client._hooks import RequestHook, RequestInfo, ResponseHook, ResponseInfo, RetryHook
from deeplab_client._image import ImageLike
from deeplab_client._models import ModelInfo
from deeplab_client._options import TLS, AsyncToken, Compression, Token
from deeplab_client._polygons import Polygon
from deeplab_client._result_dict import ResultDict
from deeplab_client._retry import RetryAttempt, RetryPolicy
from deeplab_client._segmentation import Segmentation, Timings
from deeplab_client._transport import AsyncTransport, ServerInfo, Transport
from deeplab_client._wire import MaskChoice

if TYPE_CHECKING:
    from deeplab_client._async_client import AsyncSegmentationClient

    __version__: str

__all__ = [
    "TLS",
    "AccessDeniedError",
    "AsyncSegmentationClient",
    "AsyncToken",
    "AsyncTransport",
    "ClientClosedError",
    "ClientLimitError",
    "CocoAnnotation",
    "CocoCategory",
    "CocoRle",
    "Compression",
    "DeadlineExceededError",
    "ImageLike",
    "InvalidImageError",
    "MaskChoice",
    "MismatchedReplyError",
    "ModelError",
    "ModelInfo",
    "ModelNotFoundError",
    "Polygon",
    "RequestHook",
    "RequestInfo",
    "ResponseHook",
    "ResponseInfo",
    "ResultDict",
    "RetryAttempt",
    "RetryHook",
    "RetryPolicy",
    "Rle",
    "Segmentation",
    "SegmentationClient",
    "SegmentationError",
    "ServerInfo",
    "ServerOverloadedError",
    "ServerUnavailableError",
    "TLSError",
    "Timings",
    "Token",
    "Transport",
    "UnknownClassError",
    "UnsupportedError",
    "voc",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version  # noqa: PLC0415 - only loaded when needed

        return version("deeplab-client")
    # Loading asyncio takes as long as all the rest, so it is only loaded when needed.
    if name == "AsyncSegmentationClient":
        from deeplab_client._async_client import AsyncSegmentationClient  # noqa: PLC0415 - see above

        globals()[name] = AsyncSegmentationClient
        return AsyncSegmentationClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
