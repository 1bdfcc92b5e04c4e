"""Options of the connection: TLS, credentials, headers, compression."""

from __future__ import annotations

import re
import sys
from contextvars import ContextVar
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Literal, TypeAlias, TypedDict

if TYPE_CHECKING:
    import os
    from collections.abc import Awaitable, Callable, Mapping

    from deeplab_client._hooks import RequestHook, ResponseHook, RetryHook
    from deeplab_client._retry import RetryPolicy
    from deeplab_client._transport import AsyncTransport, Transport
    from deeplab_client._wire import MaskChoice

Compression: TypeAlias = Literal["gzip", "deflate"]
Token: TypeAlias = "str | Callable[[], str]"  # noqa: S105 - a type
AsyncToken: TypeAlias = "str | Callable[[], str | Awaitable[str]]"


class _CommonArguments(TypedDict, total=False):
    url: str
    model: str
    timeout: float
    retries: int | RetryPolicy
    on_retry: RetryHook | None
    on_request: RequestHook | None
    on_response: ResponseHook | None
    mask_format: MaskChoice
    tls: TLS | None
    headers: Mapping[str, str] | None
    compression: Compression | None
    proxy: str | None


class ClientArguments(_CommonArguments, total=False):
    """The arguments of `SegmentationClient`, all optional, for type checkers."""

    token: Token | None
    transport: Transport | None


class AsyncClientArguments(_CommonArguments, total=False):
    """The arguments of `AsyncSegmentationClient`, all optional, for type checkers."""

    token: AsyncToken | None
    transport: AsyncTransport | None


# Headers of the current call, which `with_options` adds to those of the client. A context variable, like the current
# span of OpenTelemetry, because views that share connections have different headers.
added_headers: ContextVar[Mapping[str, str]] = ContextVar("added_headers")

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
# Headers that the client sets itself. Another value would break the request, or how a proxy finds its end.
_RESERVED = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "inference-header-content-length",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


@dataclass(frozen=True, slots=True)
class TLS:
    """Certificates for a TLS connection: files in PEM format, read by the first call.

    Attributes:
        ca_file: Certificates to trust instead of the system's: those of the authority, or the server's own.
        certificate_file: The client's certificate, followed by intermediate certificates.
        key_file: The private key of the client's certificate, without a password.

    Raises:
        ValueError: Only one of `certificate_file` and `key_file` is given.
    """

    ca_file: str | os.PathLike[str] | None = None
    certificate_file: str | os.PathLike[str] | None = None
    key_file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("a client certificate needs both certificate_file and key_file")


@dataclass(frozen=True, slots=True)
class Options:
    """Options of the connection; its `repr` contains no secrets.

    Attributes:
        tls: Certificates for an encrypted connection.
        compression: Compression of replies, and of images sent as pixels.
        headers: Headers of every request, with names in lower case.
        token: The bearer token, or a function that returns it before every request.
    """

    tls: TLS = field(default_factory=TLS)
    compression: Compression | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    token: str | Callable[[], str | Awaitable[str]] | None = field(default=None, repr=False)

    def call_headers(self) -> dict[str, str]:
        """Return the headers of one request, names in lower case.

        Raises:
            TypeError: The token is not a string.
            ValueError: It contains characters that a header cannot.
        """
        return self.headers_with(self.token() if callable(self.token) else self.token)

    def headers_with(self, token: object) -> dict[str, str]:
        """Return the headers of one request with this token, or without one.

        Raises:
            TypeError: The token is not a string.
            ValueError: It contains characters that a header cannot.
        """
        headers = {**self.headers, **added_headers.get({})}
        if token is not None:
            headers["authorization"] = f"Bearer {check_token(token)}"
        headers.update(_trace_headers())
        return headers


def make_options(
    *,
    encrypted: bool,
    tls: TLS | None,
    compression: Compression | None,
    headers: Mapping[str, str] | None,
    token: str | Callable[[], str | Awaitable[str]] | None,
) -> Options:
    """Check the options of a client.

    Raises:
        ValueError: A header cannot be sent, or the client or the token sets it; or TLS options are given for a
            connection without TLS. No message contains a value.
    """
    if tls is not None and not encrypted:
        raise ValueError("tls needs a URL with TLS: use grpcs:// or https://")
    if compression not in {None, "gzip", "deflate"}:
        raise ValueError(f"compression must be 'gzip', 'deflate' or None, got {compression!r}")
    checked = check_headers(headers or {}, token=token)
    if token is not None and not callable(token):
        check_token(token)
    return Options(tls or TLS(), compression, checked, token)


def check_headers(headers: Mapping[str, str], *, token: object) -> dict[str, str]:
    """Return headers, names in lower case.

    Raises:
        ValueError: A header cannot be sent, or the client or the token sets it. No message contains a value.
    """
    checked = {name.lower(): _check_header(name, value) for name, value in headers.items()}
    if token is not None and "authorization" in checked:
        raise ValueError("both token and an authorization header are given: leave one out")
    return checked


def is_coroutine_function(function: object) -> bool:
    """Return whether a call returns a coroutine, also for objects with `__call__`."""
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - the method itself is needed


def check_token(token: object) -> str:
    """Return a valid token; no message contains it.

    Raises:
        TypeError: It is not a string.
        ValueError: It is empty, or contains characters that a header cannot.
    """
    if not isinstance(token, str):
        raise TypeError(f"the token must be a string, or a function that returns one, got {type(token).__name__}")
    if not token or not _VALUE.fullmatch(token) or " " in token:
        raise ValueError("the token must be one or more printable ASCII characters without spaces")
    return token


def _check_header(name: str, value: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"header {name!r} cannot be set: its name is not valid in HTTP")
    if name.lower().startswith("grpc-") or name.lower() in _RESERVED:
        raise ValueError(f"header {name!r} cannot be set: the client or the protocol sets it")
    if name.lower().endswith("-bin"):
        raise ValueError(f"header {name!r} cannot be set: gRPC reserves names ending in -bin for binary values")
    if not isinstance(value, str) or not _VALUE.fullmatch(value):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a type checker
        raise ValueError(f"the value of header {name!r} must be a string of printable ASCII characters")
    return value


def _trace_headers() -> dict[str, str]:
    # Without the tracing API, there is no span: nothing is imported.
    if sys.modules.get("opentelemetry.trace") is None:
        return {}
    from opentelemetry import propagate  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - optional

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {name.lower(): value for name, value in carrier.items()}
