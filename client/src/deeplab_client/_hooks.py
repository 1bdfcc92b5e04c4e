"""Arguments of a client's hooks, which are called for each attempt of an inference."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from deeplab_client._retry import RetryAttempt

if TYPE_CHECKING:
    from deeplab_client._errors import SegmentationError


@dataclass(frozen=True, slots=True)
class RequestInfo:
    """A request that is about to be sent.

    Attributes:
        model: Name of the ensemble.
        request_id: The id of the request, the same for all its attempts.
        attempt: Number of the attempt, starting at 1.
        image_bytes: Length of the encoded image in bytes, before compression. The message adds a few hundred bytes.
    """

    model: str
    request_id: str
    attempt: int
    image_bytes: int


@dataclass(frozen=True, slots=True)
class ResponseInfo:
    """The outcome of a request.

    Attributes:
        request: The request.
        seconds: Seconds from before it was sent until its result was read, or until it failed.
        error: The error; None if there is a result.
    """

    request: RequestInfo
    seconds: float
    error: SegmentationError | None


HookArgument: TypeAlias = "RequestInfo | ResponseInfo | RetryAttempt"
RequestHook: TypeAlias = Callable[[RequestInfo], object]
ResponseHook: TypeAlias = Callable[[ResponseInfo], object]
RetryHook: TypeAlias = Callable[[RetryAttempt], object]
