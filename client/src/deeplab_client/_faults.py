"""Map failures of both protocols to the exceptions of this package."""

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
    "CANCELLED": ServerUnavailableError,  # not by us: a server that stops ends its calls so
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
    499: ServerUnavailableError,  # Triton's for CANCELLED
    501: UnsupportedError,
    502: ServerUnavailableError,
    503: ServerUnavailableError,
    504: ServerUnavailableError,
}
# Triton uses several statuses for one cause, and one status for several causes, so the message decides. By the class
# that the status maps to: pattern of the message, class to raise.
_NO_MODEL = (re.compile(r"unknown model", re.IGNORECASE), ModelNotFoundError)
# Triton unloads its models before it stops: another replica, or the restarted server, has the model.
_UNLOADED = re.compile(r"has no available versions")
_BY_WORDS: dict[type[SegmentationError], tuple[tuple[re.Pattern[str], type[SegmentationError]], ...]] = {
    InvalidImageError: (
        _NO_MODEL,
        # The model exists but is not a segmentation ensemble, so every image would fail.
        (
            re.compile(r"unexpected (inference (input|output)|shape)|expected \d+ inputs|data-?type is"),
            ModelError,
        ),
    ),
    ServerUnavailableError: (
        _NO_MODEL,
        (re.compile(r"restricted, expecting header"), AccessDeniedError),
        # gRPC has no separate status for a failed handshake.
        (re.compile(r"CERTIFICATE|WRONG_VERSION_NUMBER|_ALERT_|peer certificate|Hostname Verification"), TLSError),
        (re.compile(r"maximum queue size|timeout expired", re.IGNORECASE), ServerOverloadedError),
    ),
    ServerOverloadedError: ((re.compile(r"message larger than max"), InvalidImageError),),
    ModelError: (
        # gRPC has no status for a proxy's 413: it is UNKNOWN, with a text of Envoy or of gRPC.
        (re.compile(r"^Payload Too Large$|http2 header with status: 413"), InvalidImageError),
        # Envoy lost the server: in the middle of its reply (INTERNAL), or too late to send the request again (507).
        (re.compile(r"Received RST_STREAM|exceeded request buffer limit while retrying"), ServerUnavailableError),
        # A step of the ensemble died or does not answer: another replica has it, or this one has it again soon.
        (re.compile(r"\bstub\b.*\b(not healthy|unhealthy)", re.IGNORECASE), ServerUnavailableError),
    ),
}
# gRPC's texts for failures on this side. In a message of the server they would be about the server.
_OWN_SIDE = re.compile(r"\blast error: |\bresolving\b|\bresolution failed\b")
_UNRESOLVED = re.compile(r"\bresolving\b|\bresolution failed\b")
_BINARY_TAIL = re.compile(r"\n[^\n]*[\0-\x08].*", re.DOTALL)  # a binary address that gRPC 1.85 appends to its text
_PREFIX = re.compile(r"^(\[request id: \S*\] |in ensemble '[^']*', )+")
# A server that requires a client certificate, or does not use TLS, may close the connection like one that shuts down.
_HUNG_UP = re.compile(r"EOF|closed|disconnected|reset|Cannot connect", re.IGNORECASE)
_HUNG_UP_REMEDY = (
    "if this happens every time, the server may require a client certificate, TLS(certificate_file=...) or "
    "DEEPLAB_CERTIFICATE_FILE, or may not use TLS"
)
_NOBODY_LISTENS = re.compile(r"Connection refused|Connect call failed")
# A server of another protocol, or one that requires TLS, may do so too.
_OTHER_PROTOCOL = re.compile(r"Socket closed|reset by peer|Failed parsing HTTP/2|[Dd]isconnected|closed connection")
_OTHER_PROTOCOL_REMEDIES = {
    "grpc": "if this happens every time, check that the port is Triton's gRPC port, and that it needs no TLS, grpcs://",
    "http": "if this happens every time, check that the server needs no TLS, https://",
}
_LONGEST_MESSAGE = 500  # characters of a server's text in a message
_LONGEST_SEARCHED = 10_000
_SHORTEST_SECRET = 4  # characters; shorter values occur by chance
# Causes of failed handshakes, as OpenSSL and BoringSSL word them, and their remedies.
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
    """Facts about a call, for error messages.

    Attributes:
        url: The server.
        model: Name of the requested model; empty if there is none.
        seconds: The timeout of the whole call.
        request_id: Id of the request, if there is one.
        secrets: Values that no message may contain, even if the server repeats them.
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
        # Not a number of seconds: the server forbids a retry.
        error.retryable = error.retryable and error.retry_after is not None
    return error


def from_http(status: int, message: str, where: CallContext, *, retry_after: str | None = None) -> SegmentationError:
    """Map an HTTP status other than 200 to an error; `retry_after` is the header on when to retry."""
    seconds = seconds_of_retry_after(retry_after, now=datetime.now(timezone.utc))
    error = _error(_BY_HTTP_STATUS.get(status, ModelError), message, where, retry_after=seconds)
    error.status = status
    return error


def from_connection(error: Exception, where: CallContext) -> SegmentationError:
    """Map an exception of sockets, name resolution or HTTP parsing to an error."""
    limit = limit_met(error)
    # For an IPv6 address, this error may mean that IPv6 is off.
    if limit is not None and not (
        isinstance(error, OSError) and error.errno == errno.EADDRNOTAVAIL and "[" in where.url
    ):
        return _about(limit, where)
    # With an errno, it is the kernel's ETIMEDOUT, from connecting, before our deadline.
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
    """Return the error for a reply that is not HTTP."""
    message = "the answer is not HTTP; use grpc:// for gRPC, https:// for TLS"
    return _error(ServerUnavailableError, message, where)


def unreadable(reason: Exception, where: CallContext) -> SegmentationError:
    """Return the error for a reply that violates the protocol, with its cause."""
    flaw = f"it has no {reason}" if isinstance(reason, KeyError) else reason_of(reason)
    message = f"{where.url} sent a reply that cannot be read: {_clean(flaw, where)}"
    return caused(ModelError(message, model=where.model, request_id=where.request_id), reason, where)


def of_another_request(found: str, where: CallContext) -> MismatchedReplyError:
    """Return the error for a reply with the id of another request."""
    difference = f"its id is {_clean(found, where)!r}, not {where.request_id!r}"
    remedy = "restart the server if this happens again"
    message = f"{where.url} answered with the reply to another request: {difference}; {remedy}"
    return MismatchedReplyError(message, model=where.model, request_id=where.request_id)


def _error(
    kind: type[SegmentationError], message: str, where: CallContext, *, retry_after: float | None = None
) -> SegmentationError:
    # Some errors of a server end with a colon and no reason.
    message = _PREFIX.sub("", message[:_LONGEST_SEARCHED]).strip().rstrip(":").strip() or "no reason given"
    # Before secrets are masked, because a header's value may be one of the words.
    by_status, kind = kind, next((other for words, other in _BY_WORDS.get(kind, ()) if words.search(message)), kind)
    tls_remedy = next((text for words, text in _TLS_REMEDIES if words.search(message)), "the handshake failed")
    message = _clean(message, where)
    if kind is DeadlineExceededError:
        remedy = "raise the timeout, or send less at once" if where.request_id else "check the URL, or wait longer"
        message = f"no answer from {where.url} within {where.seconds:g} s; {remedy}"
    elif kind is ServerUnavailableError:
        message = f"{where.url} is not available: {message}"
        if remedy := _unavailable_remedy(message, where):
            message = f"{message}; {remedy}"
    elif kind is TLSError:
        message = f"no TLS connection to {where.url}: {tls_remedy} ({message})"
    elif kind is ModelNotFoundError and not where.model:  # a request that every server of the protocol answers
        message = f"{where.url} does not answer like Triton: check the URL and its path ({message})"
        kind = UnsupportedError
    elif kind is ModelNotFoundError:
        message = f"{where.url} does not serve model {where.model!r}: {message}"
    elif kind is ModelError and by_status is InvalidImageError:
        message = f"model {where.model!r} of {where.url} is not a segmentation ensemble: {message}"
    error = kind(message, model=where.model, request_id=where.request_id, retry_after=retry_after)
    if kind is ModelNotFoundError and _UNLOADED.search(message):
        error.retryable = True
    return error


def _unavailable_remedy(message: str, where: CallContext) -> str | None:
    if _NOBODY_LISTENS.search(message) and "upstream" not in message:  # a proxy's message about its upstream
        return "check the URL, or wait until the server has started"
    if where.url.startswith(("grpcs:", "https:")) and _HUNG_UP.search(message):
        return _HUNG_UP_REMEDY
    if _OTHER_PROTOCOL.search(message):
        return _OTHER_PROTOCOL_REMEDIES.get(where.url.partition(":")[0])
    return None


def caused(ours: SegmentationError, by: BaseException, where: CallContext) -> SegmentationError:
    """Return an error with its cause, or without it if the cause contains a secret.

    Raise the error after the `except` block, because within the block Python adds the handled exception as its context.
    And raise it from a list, with `pop`: the traceback holds the frame, so a local variable that holds the error would
    be a cycle, which keeps the client and its connections alive until the next garbage collection.
    """
    chain: list[BaseException] = []
    error: BaseException | None = by
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__cause__ or error.__context__
    texts = "".join(f"{error}{error!r}" for error in chain)
    if _masked(texts, where) == texts:
        ours.__cause__ = by
    return ours


def _masked(message: str, where: CallContext) -> str:
    # Also the token alone of `Bearer TOKEN`. The longest first, because one secret may contain another.
    parts = {part for secret in where.secrets for part in (secret, secret.partition(" ")[2])}
    for part in sorted(parts, key=len, reverse=True):
        if len(part) >= _SHORTEST_SECRET:
            message = message.replace(part, "***")
    return message


def _clean(message: str, where: CallContext) -> str:
    """Return a server's text without secrets and control characters, and shortened."""
    message = _masked(message, where)
    if len(message) > _LONGEST_MESSAGE:
        message = f"{message[:_LONGEST_MESSAGE]}... ({len(message)} characters)"
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in message)
