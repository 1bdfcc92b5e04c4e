"""Foreign failures, of either protocol, turned into this package's errors."""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass, field
from datetime import datetime, timezone
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
    TLSError,
    UnsupportedError,
)
from deeplab_client._retry import seconds_of_pushback, seconds_of_retry_after

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
    407: AccessDeniedError,
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
        # gRPC has no status of its own for a handshake that failed.
        (re.compile(r"CERTIFICATE|WRONG_VERSION_NUMBER|_ALERT_|peer certificate|Hostname Verification"), TLSError),
        (re.compile(r"maximum queue size|timeout expired", re.IGNORECASE), ServerOverloadedError),
    ),
    ServerOverloadedError: ((re.compile(r"message larger than max"), InvalidImageError),),
}
_PREFIX = re.compile(r"^(\[request id: [^\]]*\] |in ensemble '[^']*', )+")
# A server that wants a client's certificate, or knows no TLS, may just hang up, as one that goes away does.
_HUNG_UP = re.compile(r"EOF|closed|disconnected|reset|Cannot connect", re.IGNORECASE)
_HUNG_UP_REMEDY = "if it always does so, it may want a certificate, TLS(certificate_file=...), or not speak TLS"
_LONGEST_BODY = 300  # characters of a proxy's error page that go into a message
_SHORTEST_SECRET = 6  # characters; what is shorter hides nothing and occurs by chance
# What a handshake failed of, in OpenSSL's and BoringSSL's words, and what to do about it.
_TLS_REMEDIES = (
    (
        re.compile(r"certificate[ _]verify[ _]failed|peer certificate|Hostname Verification", re.IGNORECASE),
        "the server's certificate is not trusted for this host: name who signed it in TLS(ca_file=...)",
    ),
    (
        re.compile(r"wrong[ _]version[ _]number|http[ _]request", re.IGNORECASE),
        "what answers there does not speak TLS: use grpc:// or http://",
    ),
    (
        re.compile(r"alert", re.IGNORECASE),
        "the server may want a certificate that it trusts, TLS(certificate_file=..., key_file=...)",
    ),
)


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What a message should name.

    Attributes:
        url: The server.
        model: The model that was asked.
        seconds: The timeout of the whole call.
        request_id: Where a request was sent under one.
        secrets: Values that no message may repeat, even where the server does.
    """

    url: str
    model: str
    seconds: float
    request_id: str | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)


def from_grpc(
    status: str, message: str | None, where: Circumstances, *, pushback: str | bytes | None = None
) -> SegmentationError:
    """Map a gRPC status, such as `UNAVAILABLE`, to an error; `pushback` is the metadata on when to retry."""
    kind = _BY_GRPC_STATUS.get(status, ModelError)
    return _error(kind, message or status, where, retry_after=seconds_of_pushback(pushback))


def from_http(status: int, body: bytes, where: Circumstances, *, retry_after: str | None = None) -> SegmentationError:
    """Map an HTTP status other than 200, with its body and its header on when to retry, to an error."""
    seconds = seconds_of_retry_after(retry_after, now=datetime.now(timezone.utc))
    return _error(_BY_HTTP_STATUS.get(status, ModelError), _http_message(status, body), where, retry_after=seconds)


def from_connection(error: Exception, where: Circumstances) -> SegmentationError:
    """Map what sockets, name resolution and HTTP parsing raise to an error."""
    # The kernel's own ETIMEDOUT has a number: it gave up connecting before our deadline.
    if isinstance(error, TimeoutError) and error.errno is None:
        return _error(DeadlineExceededError, "", where)
    if isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return _error(TLSError, str(error), where)
    if isinstance(error, BadStatusLine) and not isinstance(error, RemoteDisconnected):
        return not_http(where)
    return _error(ServerUnavailableError, str(error) or type(error).__name__, where)


def not_http(where: Circumstances) -> SegmentationError:
    """Return the error for an answer that is not HTTP."""
    remedy = "for gRPC say grpc://, for TLS https://"
    return _error(ServerUnavailableError, f"what answers there is no HTTP server; {remedy}", where)


def unreadable(reason: object, where: Circumstances) -> ModelError:
    """Return the error for an answer that does not keep to the protocol."""
    message = f"{where.url} sent an answer that cannot be read: {_clean(str(reason), where)}"
    return ModelError(message, model=where.model, request_id=where.request_id)


def _error(
    kind: type[SegmentationError], message: str, where: Circumstances, *, retry_after: float | None = None
) -> SegmentationError:
    message = _clean(_PREFIX.sub("", message), where)
    kind = next((other for words, other in _BY_WORDS.get(kind, ()) if words.search(message)), kind)
    if kind is DeadlineExceededError:
        message = f"no answer from {where.url} within {where.seconds:g} s"
    elif kind is ServerUnavailableError:
        message = f"{where.url} is not available: {message}"
        if where.url.startswith(("grpcs:", "https:")) and _HUNG_UP.search(message):
            message = f"{message}; {_HUNG_UP_REMEDY}"
    elif kind is TLSError:
        remedy = next((text for words, text in _TLS_REMEDIES if words.search(message)), "TLS failed")
        message = f"no trusted connection to {where.url}: {remedy} ({message})"
    elif kind is ModelNotFoundError:
        message = f"{where.url} does not serve model {where.model!r}: {message}"
    return kind(message, model=where.model, request_id=where.request_id, retry_after=retry_after)


def _clean(message: str, where: Circumstances) -> str:
    for secret in where.secrets:
        for part in (secret, secret.removeprefix("Bearer ")):
            if len(part) >= _SHORTEST_SECRET:
                message = message.replace(part, "***")
    # What foreign servers say may hold control characters, which do not belong in logs and terminals.
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in message)


def _http_message(status: int, body: bytes) -> str:
    text = body.decode("utf-8", "replace").strip()
    try:
        return str(json.loads(text)["error"])
    except (ValueError, LookupError, TypeError):  # a proxy's page
        return f"HTTP status {status}" + (f": {text[:_LONGEST_BODY]}" if text else "")
