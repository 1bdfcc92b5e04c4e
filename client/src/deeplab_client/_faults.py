"""Foreign failures, of either protocol, turned into this package's errors."""

from __future__ import annotations

import errno
import re
import ssl
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.client import BadStatusLine, RemoteDisconnected

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
    UnsupportedError,
    reason_of,
)
from deeplab_client._limits import descriptors_left, limit_met, limit_named, limit_of
from deeplab_client._proxy import ProxyRefusedError
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
    408: ServerUnavailableError,
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
    ModelError: (
        # gRPC has no status for a proxy's 413 either: UNKNOWN, in Envoy's words or gRPC's for what is not its own.
        (re.compile(r"^Payload Too Large$|http2 header with status: 413"), InvalidImageError),
        # Envoy lost the server: in the middle of its answer, INTERNAL, or too late to send all of it again, 507.
        (re.compile(r"Received RST_STREAM|exceeded request buffer limit while retrying"), ServerUnavailableError),
        # A step of the pipeline died, or does not answer for now: another replica has it, or this one soon again.
        (re.compile(r"\bstub\b.*\b(not healthy|unhealthy)", re.IGNORECASE), ServerUnavailableError),
    ),
}
# gRPC's words for what happened on this side; in a message of the server's they would be about the server.
_OWN_SIDE = re.compile(r"\blast error: |\bresolving\b|\bresolution failed\b")
_UNRESOLVED = re.compile(r"\bresolving\b|\bresolution failed\b")
_BINARY_TAIL = re.compile(r"\n[^\n]*[\0-\x08].*", re.DOTALL)  # of an address; gRPC 1.85 has it behind its words
_PREFIX = re.compile(r"^(\[request id: \S*\] |in ensemble '[^']*', )+")
# A server that wants a client's certificate, or knows no TLS, may just hang up, as one that goes away does.
_HUNG_UP = re.compile(r"EOF|closed|disconnected|reset|Cannot connect", re.IGNORECASE)
_HUNG_UP_REMEDY = (
    "if this happens every time, the server may require a client certificate, TLS(certificate_file=...) or "
    "DEEPLAB_CERTIFICATE_FILE, or may not use TLS"
)
# What answers by another protocol, or wants TLS, may just hang up too.
_OTHER_PROTOCOL = re.compile(r"Socket closed|reset by peer|Failed parsing HTTP/2|[Dd]isconnected|closed connection")
_OTHER_PROTOCOL_REMEDIES = {
    "grpc": "if this happens every time, check that the port is Triton's gRPC port, and that it needs no TLS, grpcs://",
    "http": "if this happens every time, check that the server needs no TLS, https://",
}
_LONGEST_MESSAGE = 500  # characters of what a server says that go into a message
_LONGEST_SEARCHED = 10_000
_SHORTEST_SECRET = 4  # characters; what is shorter hides nothing and occurs by chance
# What a handshake failed of, in OpenSSL's and BoringSSL's words, and what to do about it.
_TLS_REMEDIES = (
    (
        re.compile(r"has[ _]expired|CERTIFICATE_EXPIRED|not[ _]yet[ _]valid", re.IGNORECASE),
        "the server's certificate has expired or is not valid yet: renew it, or set this machine's clock",
    ),
    (
        re.compile(r"hostname|IP address mismatch|Peer name", re.IGNORECASE),
        "the server's certificate is for another host name: use one of its names in the URL",
    ),
    (
        re.compile(r"certificate[ _]verify[ _]failed|peer certificate", re.IGNORECASE),
        "the server's certificate is not trusted: give its authority in TLS(ca_file=...) or DEEPLAB_CA_FILE",
    ),
    (
        re.compile(r"wrong[ _]version[ _]number|http[ _]request", re.IGNORECASE),
        "the server does not use TLS: use grpc:// or http://",
    ),
    (
        re.compile(r"alert", re.IGNORECASE),
        (
            "the server may require a client certificate that it trusts: give TLS(certificate_file=..., "
            "key_file=...), or DEEPLAB_CERTIFICATE_FILE and DEEPLAB_KEY_FILE"
        ),
    ),
)


@dataclass(frozen=True, slots=True)
class CallContext:
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
    status: str, message: str | None, where: CallContext, *, pushback: str | bytes | None = None
) -> SegmentationError:
    """Map a gRPC status, such as `UNAVAILABLE`, to an error; `pushback` is the metadata on when to retry."""
    if status == "UNAVAILABLE" and message is not None and _OWN_SIDE.search(message):
        message = _BINARY_TAIL.sub("", message)
        limit = limit_named(message)
        if limit is None and _UNRESOLVED.search(message) and descriptors_left() == 0:
            limit = limit_of(errno.EMFILE)
        if limit is not None:
            return _about(limit, where)
    kind = _BY_GRPC_STATUS.get(status, ModelError)
    error = _error(kind, (message or "").strip() or status, where)
    error.status = status
    if pushback is not None:
        error.retry_after = seconds_of_pushback(pushback)
        # No number of seconds: the server asks not to try again.
        error.retryable = error.retryable and error.retry_after is not None
    return error


def from_http(status: int, message: str, where: CallContext, *, retry_after: str | None = None) -> SegmentationError:
    """Map an HTTP status other than 200 to an error; `retry_after` is the header on when to try again."""
    seconds = seconds_of_retry_after(retry_after, now=datetime.now(timezone.utc))
    error = _error(_BY_HTTP_STATUS.get(status, ModelError), message, where, retry_after=seconds)
    error.status = status
    return error


def from_connection(error: Exception, where: CallContext) -> SegmentationError:
    """Map what sockets, name resolution and HTTP parsing raise to an error."""
    limit = limit_met(error)
    # An IPv6 address has no local port either where IPv6 is off.
    if limit is not None and not (
        isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL and "[" in where.url
    ):
        return _about(limit, where)
    # The kernel's own ETIMEDOUT has a number: it gave up connecting before our deadline.
    if isinstance(error, TimeoutError) and error.errno is None:
        return too_late(where)
    if isinstance(error, ssl.SSLError) and not isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
        return _error(TLSError, str(error), where)
    if isinstance(error, ProxyRefusedError) and _BY_HTTP_STATUS.get(error.status) is AccessDeniedError:
        return _error(AccessDeniedError, f"no connection to {where.url}: {error}", where)
    if isinstance(error, BadStatusLine) and not isinstance(error, RemoteDisconnected):
        return not_http(where)
    return _error(ServerUnavailableError, str(error).strip() or type(error).__name__, where)


def too_late(where: CallContext) -> SegmentationError:
    """Return the error for a deadline that has passed."""
    return _error(DeadlineExceededError, "", where)


def closed(where: CallContext) -> ClientClosedError:
    """Return the error for a call whose client was closed."""
    return ClientClosedError("the client was closed during the call", model=where.model)


def _about(limit: ClientLimitError, where: CallContext) -> ClientLimitError:
    limit.model = where.model
    return limit


def not_http(where: CallContext) -> SegmentationError:
    """Return the error for an answer that is not HTTP."""
    message = "the answer is not HTTP; use grpc:// for gRPC, https:// for TLS"
    return _error(ServerUnavailableError, message, where)


def unreadable(reason: Exception, where: CallContext) -> SegmentationError:
    """Return the error for an answer that does not keep to the protocol, with its cause."""
    flaw = f"it has no {reason}" if isinstance(reason, KeyError) else reason_of(reason)
    message = f"{where.url} sent a reply that cannot be read: {_clean(flaw, where)}"
    return caused(ModelError(message, model=where.model, request_id=where.request_id), reason, where)


def of_another_request(found: str, where: CallContext) -> MismatchedReplyError:
    """Return the error for an answer under another request's id."""
    difference = f"its id is {_clean(found, where)!r}, not {where.request_id!r}"
    remedy = "restart the server if this happens again"
    message = f"{where.url} answered with the reply to another request: {difference}; {remedy}"
    return MismatchedReplyError(message, model=where.model, request_id=where.request_id)


def _error(
    kind: type[SegmentationError], message: str, where: CallContext, *, retry_after: float | None = None
) -> SegmentationError:
    # Some errors of a server's end where the reason should come.
    message = _PREFIX.sub("", message[:_LONGEST_SEARCHED]).strip().rstrip(":").strip() or "no reason given"
    # Before anything is masked: a header's value may be one of the words.
    told, kind = kind, next((other for words, other in _BY_WORDS.get(kind, ()) if words.search(message)), kind)
    tls_remedy = next((text for words, text in _TLS_REMEDIES if words.search(message)), "the handshake failed")
    message = _clean(message, where)
    if kind is DeadlineExceededError:
        message = f"no answer from {where.url} within {where.seconds:g} s"
    elif kind is ServerUnavailableError:
        message = f"{where.url} is not available: {message}"
        if where.url.startswith(("grpcs:", "https:")) and _HUNG_UP.search(message):
            message = f"{message}; {_HUNG_UP_REMEDY}"
        elif remedy := _other_protocol_remedy(message, where):
            message = f"{message}; {remedy}"
    elif kind is TLSError:
        message = f"no TLS connection to {where.url}: {tls_remedy} ({message})"
    elif kind is ModelNotFoundError and not where.model:  # what every server of the protocol has
        message = f"{where.url} does not answer like Triton: check the URL and its path ({message})"
        kind = UnsupportedError
    elif kind is ModelNotFoundError:
        message = f"{where.url} does not serve model {where.model!r}: {message}"
    elif kind is ModelError and told is InvalidImageError:
        message = f"model {where.model!r} of {where.url} is not a segmentation ensemble: {message}"
    return kind(message, model=where.model, request_id=where.request_id, retry_after=retry_after)


def _other_protocol_remedy(message: str, where: CallContext) -> str | None:
    if not _OTHER_PROTOCOL.search(message):
        return None
    return _OTHER_PROTOCOL_REMEDIES.get(where.url.partition(":")[0])


def caused(ours: SegmentationError, by: BaseException, where: CallContext) -> SegmentationError:
    """Return an error with its cause, or without where the cause would tell a secret.

    Raise it after the `except` block: within the block, the error that is being handled becomes a part of it. And raise
    it out of a list, with `pop`: the traceback holds the frame, so a variable of the frame that holds the error is a
    cycle, which keeps the client and its connections until the garbage collector comes by.
    """
    chain: list[BaseException] = []
    error: BaseException | None = by
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    told = "".join(f"{error}{error!r}" for error in chain)
    if _masked(told, where) == told:
        ours.__cause__ = by
    return ours


def _masked(message: str, where: CallContext) -> str:
    # Of `Bearer TOKEN` the token alone too; the longest first, for one may hold another.
    parts = {part for secret in where.secrets for part in (secret, secret.partition(" ")[2])}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _SHORTEST_SECRET:
            message = message.replace(part, "***")
    return message


def _clean(message: str, where: CallContext) -> str:
    """Return what a server says without secrets, without control characters, and short."""
    message = _masked(message, where)
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[:_LONGEST_MESSAGE]}... ({len(message)} characters)"
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in message)
