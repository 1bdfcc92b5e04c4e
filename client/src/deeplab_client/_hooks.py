"""What the hooks of a client are told about each attempt of an inference."""

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
        model: The ensemble that is asked.
        request_id: The id of the request, the same for all its attempts.
        attempt: Number of the attempt, the first being 1.
        image_bytes: Length of the encoded image. The message around it takes a few hundred bytes more, and compression
            makes pixels shorter.
    """

    model: str
    request_id: str
    attempt: int
    image_bytes: int


@dataclass(frozen=True, slots=True)
class ResponseInfo:
    """What became of a request.

    Attributes:
        request: The request.
        seconds: From before it was sent until its result was read, or until it failed.
        error: Why it failed; None where there is a result.
    """

    request: RequestInfo
    seconds: float
    error: SegmentationError | None


HookArgument: TypeAlias = "RequestInfo | ResponseInfo | RetryAttempt"
RequestHook: TypeAlias = Callable[[RequestInfo], object]
ResponseHook: TypeAlias = Callable[[ResponseInfo], object]
RetryHook: TypeAlias = Callable[[RetryAttempt], object]
