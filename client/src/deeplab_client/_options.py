"""How a client talks to its server: encryption, credentials, compression."""

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


# Headers of the call under way, which `with_options` adds to the client's own. A context variable, as OpenTelemetry's
# current span is one: the clients that share connections differ in their headers alone.
added_headers: ContextVar[Mapping[str, str]] = ContextVar("added_headers")

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[\x20-\x7e]*")
# Ours to set: another value would break the request, or a later hop's idea of where it ends.
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
    """What an encrypted connection trusts and shows; files in PEM form, read by the first call.

    Attributes:
        ca_file: Certificates to trust in place of the system's: of the authority, or the server's own.
        certificate_file: The client's certificate, followed by its intermediate ones.
        key_file: The private key of it, without a password.
    """

    ca_file: str | os.PathLike[str] | None = None
    certificate_file: str | os.PathLike[str] | None = None
    key_file: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("a client certificate needs both certificate_file and key_file")


@dataclass(frozen=True, slots=True)
class Options:
    """How to talk to a server; what could be a secret is left out of the representation.

    Attributes:
        tls: For an encrypted connection.
        compression: Of replies, and of images that travel as pixels.
        headers: Sent with every request, names in lower case.
        token: Sent as bearer token, or called for one before every request.
    """

    tls: TLS = field(default_factory=TLS)
    compression: Compression | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    token: str | Callable[[], str | Awaitable[str]] | None = field(default=None, repr=False)

    def call_headers(self) -> dict[str, str]:
        """Return the headers of one request, names in lower case.

        Raises:
            TypeError: The token is no string.
            ValueError: It holds characters that no header can.
        """
        return self.headers_with(self.token() if callable(self.token) else self.token)

    def headers_with(self, token: object) -> dict[str, str]:
        """Return the headers of one request, with this token, None for none.

        Raises:
            TypeError: The token is no string.
            ValueError: It holds characters that no header can.
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
    """Check what a client was given.

    Raises:
        ValueError: A header cannot be sent, says what the client itself has to, or the token too; or TLS options are
            given for a connection without TLS. No message holds a value.
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
        ValueError: One cannot be sent, or says what the client itself or its token has to. No message holds a value.
    """
    checked = {name.lower(): _check_header(name, value) for name, value in headers.items()}
    if token is not None and "authorization" in checked:
        raise ValueError("both token and an authorization header are given: leave one out")
    return checked


def is_coroutine_function(function: object) -> bool:
    """Return whether calling something gives a coroutine, of objects with a `__call__` too."""
    return iscoroutinefunction(function) or iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004 - its kind


def check_token(token: object) -> str:
    """Return a token that can be sent; no message holds it.

    Raises:
        TypeError: It is no string.
        ValueError: It is empty, or holds characters that no header can.
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
    # Who has not loaded the tracing API has no span to tell of: nothing is imported then.
    if sys.modules.get("opentelemetry.trace") is None:
        return {}
    from opentelemetry import propagate  # noqa: PLC0415 # pyright: ignore[reportMissingImports] - optional

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return {name.lower(): value for name, value in carrier.items()}
