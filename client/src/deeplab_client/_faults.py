"""Foreign failures, of either protocol, turned into this package's errors."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http.client import BadStatusLine, RemoteDisconnected

from deeplab_client._errors import (
    AccessDeniedError,
    DeadlineExceededError,
    InvalidImageError,
    ModelError,
    ModelNotFoundError,
    SegmentationError,
    ServerOverloadedError,
    ServerUnavailableError,
    UnsupportedError,
)

_BY_GRPC_STATUS: dict[str, type[SegmentationError]] = {
    "INVALID_ARGUMENT": InvalidImageError,
    "UNAVAILABLE": ServerUnavailableError,
    "RESOURCE_EXHAUSTED": ServerOverloadedError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "NOT_FOUND": ModelNotFoundError,
    "UNAUTHENTICATED": AccessDeniedError,
    "PERMISSION_DENIED": AccessDeniedError,
    "UNIMPLEMENTED": UnsupportedError,
}
_BY_HTTP_STATUS: dict[int, type[SegmentationError]] = {
    400: InvalidImageError,
    401: AccessDeniedError,
    403: AccessDeniedError,
    404: ModelNotFoundError,
    405: UnsupportedError,
    413: InvalidImageError,
    429: ServerOverloadedError,
    501: UnsupportedError,
    502: ServerUnavailableError,
    503: ServerUnavailableError,
    504: ServerUnavailableError,
}
# Triton says one thing with several statuses and several things with one; its words decide. Per class by status:
# words, class in truth.
_NO_MODEL = (re.compile(r"unknown model", re.IGNORECASE), ModelNotFoundError)
_BY_WORDS: dict[type[SegmentationError], tuple[tuple[re.Pattern[str], type[SegmentationError]], ...]] = {
    InvalidImageError: (
        _NO_MODEL,
        # The model exists and is no segmentation ensemble: no picture would do.
        (
            re.compile(r"unexpected (inference (input|output)|shape)|expected \d+ inputs|data-?type is"),
            ModelError,
        ),
    ),
    ServerUnavailableError: (
        _NO_MODEL,
        (re.compile(r"restricted, expecting header"), AccessDeniedError),
        (re.compile(r"maximum queue size|timeout expired", re.IGNORECASE), ServerOverloadedError),
    ),
    ServerOverloadedError: ((re.compile(r"message larger than max"), InvalidImageError),),
}
_PREFIX = re.compile(r"^(\[request id: [^\]]*\] |in ensemble '[^']*', )+")
_LONGEST_BODY = 300  # characters of a proxy's error page that go into a message


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a message should name.

    Attributes:
        url: The server.
        model: The model that was asked.
        seconds: The timeout of the whole call.
        request_id: Where a request was sent under one.
    """

    url: str
    model: str
    seconds: float
    request_id: str | None = None


def from_grpc(status: str | None, message: str | None, where: Circumstances) -> SegmentationError:
    """Map a gRPC status, in tritonclient's spelling `StatusCode.X`, to an error."""
    kind = _BY_GRPC_STATUS.get((status or "").removeprefix("StatusCode."), ModelError)
    return _error(kind, message or status or "no details", where)


def from_http(status: int, body: bytes, where: Circumstances) -> SegmentationError:
    """Map an HTTP status other than 200, with its body, to an error."""
    return _error(_BY_HTTP_STATUS.get(status, ModelError), _http_message(status, body), where)


def from_connection(error: Exception, where: Circumstances) -> SegmentationError:
    """Map what sockets, name resolution and HTTP parsing raise to an error."""
    # The kernel's own ETIMEDOUT has a number: it gave up connecting before our deadline.
    if isinstance(error, TimeoutError) and error.errno is None:
        return _error(DeadlineExceededError, "", where)
    if isinstance(error, BadStatusLine) and not isinstance(error, RemoteDisconnected):
        return _error(ServerUnavailableError, "what answers there is no HTTP server; for gRPC say grpc://", where)
    return _error(ServerUnavailableError, str(error) or type(error).__name__, where)


def _error(kind: type[SegmentationError], message: str, where: Circumstances) -> SegmentationError:
    # What foreign servers say may hold control characters, which do not belong in logs and terminals.
    message = "".join(c if c.isprintable() or c == "\n" else "?" for c in _PREFIX.sub("", message))
    kind = next((other for words, other in _BY_WORDS.get(kind, ()) if words.search(message)), kind)
    if kind is DeadlineExceededError:
        message = f"no answer from {where.url} within {where.seconds:g} s"
    elif kind is ServerUnavailableError:
        message = f"{where.url} is not available: {message}"
    elif kind is ModelNotFoundError:
        message = f"{where.url} does not serve model {where.model!r}: {message}"
    return kind(message, model=where.model, request_id=where.request_id)


def _http_message(status: int, body: bytes) -> str:
    text = body.decode("utf-8", "replace").strip()
    try:
        return str(json.loads(text)["error"])
    except (ValueError, LookupError, TypeError):  # a proxy's page
        return f"HTTP status {status}" + (f": {text[:_LONGEST_BODY]}" if text else "")
