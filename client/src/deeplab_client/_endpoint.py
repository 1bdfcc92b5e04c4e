"""The server's URL, checked and taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

from deeplab_client._proxy import Proxy, proxy_from_environment, proxy_of

_DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}
# Kubernetes services, and the domains that RFC 6762 and ICANN reserve for private use.
_NEAR_DOMAINS = (".svc", ".cluster.local", ".local", ".internal")
_FORMS = (
    "grpc://host:port or host:port for gRPC, http://host:port or http://host:port/prefix for HTTP, grpcs:// or "
    "https:// for TLS, or unix:///path or http+unix:///path for a Unix socket"
)
# Schemes of Unix sockets and their protocols; `unix` is gRPC's own spelling.
_SOCKETS = {"unix": "grpc", "http+unix": "http"}
# Characters that need no escape in a URL (RFC 3986, 3.3), without `.` and `..`, which libraries resolve.
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&'()*+,;=:-]+)*")

_NOTHING_ELSE = "it may only have a host, a port and a path"
_USER = re.compile(r"^([a-z]+:/+)?.*@", re.IGNORECASE | re.DOTALL)
_LONGEST_NAME, _LONGEST_LABEL = 254, 63  # characters, a full stop at the end included


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address, checked.

    Attributes:
        scheme: `grpc`, `grpcs`, `http` or `https`.
        host: Name or address.
        port: Port of the server.
        prefix: Prefix of the paths of HTTP requests, such as `/seg`.
        socket: Path of a Unix socket, used instead of host and port.
        proxy: HTTP proxy in front of the server.
    """

    scheme: str
    host: str
    port: int
    prefix: str = ""
    socket: str | None = None
    proxy: Proxy | None = None

    @property
    def is_grpc(self) -> bool:
        """Whether the protocol is gRPC instead of HTTP."""
        return self.scheme in {"grpc", "grpcs"}

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection uses TLS."""
        return self.scheme in {"grpcs", "https"}

    @property
    def is_near(self) -> bool:
        """Whether it is on this machine or, by its address or name, in a private network such as a cluster's."""
        try:
            return ip_address(self.host).is_private  # includes loopback and link-local addresses
        except ValueError:
            name = self.host.rstrip(".")
            return "." not in name or name.endswith(_NEAR_DOMAINS) or ".svc." in name

    @property
    def authority(self) -> str:
        """`host:port`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_forwarded(self) -> bool:
        """Whether a proxy reads and forwards each request; an encrypted connection passes through it unread."""
        return self.proxy is not None and not self.is_encrypted

    @property
    def secrets(self) -> tuple[str, ...]:
        """Values that no message may contain."""
        return () if self.proxy is None else tuple(self.proxy.headers.values())

    def url_of(self, path: str) -> str:
        """Return the whole URL of an HTTP request."""
        return f"{self.scheme}://{self.authority}{self.prefix}{path}"

    def __str__(self) -> str:
        if self.socket is not None:
            return f"{'unix' if self.is_grpc else 'http+unix'}://{self.socket}"
        return self.url_of("") if self.proxy is None else f"{self.url_of('')} through the proxy {self.proxy}"


def parse_url(url: str, proxy: str | None = None) -> Endpoint:
    """Parse a server's URL; the default port is 8001 for gRPC, 8000 for HTTP and 443 for HTTPS.

    `dns:///host:port`, gRPC's own spelling, means `grpc://host:port`.

    Args:
        url: URL of the server.
        proxy: URL of a proxy, or `env` for the proxy of the environment.

    Raises:
        TypeError: `url` or `proxy` is not a string.
        ValueError: One of them is not valid, or the protocol does not support a proxy.
    """
    endpoint = _parse(url)
    if proxy is None:
        return endpoint
    if endpoint.is_grpc or endpoint.socket is not None:
        raise ValueError(f"proxy needs a server at http:// or https://, got {endpoint}")
    if proxy == "env":
        return replace(endpoint, proxy=proxy_from_environment(endpoint.scheme, endpoint.host, endpoint.authority))
    return replace(endpoint, proxy=proxy_of(proxy, source="proxy"))


def _parse(url: str) -> Endpoint:
    parts = _split(url)
    path = _path(url, parts)
    if parts.scheme in _SOCKETS:
        if parts.netloc or not path:
            _refuse(url, "a Unix socket needs an absolute path, after three slashes")
        return Endpoint(_SOCKETS[parts.scheme], "localhost", 80, socket=path)
    host = parts.hostname or _refuse(url, "the host is missing")
    if ":" in host and "[" not in parts.netloc:
        _refuse(url, "an IPv6 address needs brackets, [::1]:8001")
    if not _may_be_a_host(host):
        _refuse(url, "the host name is not valid")
    if parts.port == 0:
        _refuse(url, "the port must be from 1 to 65535")
    return Endpoint(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port, path)


def _split(url: str) -> SplitResult:
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance] - for callers without a type checker
        raise TypeError(f"url must be a string such as {_FORMS}, got {type(url).__name__}")
    if "@" in url:
        _refuse(_USER.sub(r"\1***@", url), _NOTHING_ELSE)  # first, because a later message could contain a password
    if url != url.strip() or not url.isprintable() or " " in url:
        _refuse(url, "it contains spaces or control characters")
    plain = url.removeprefix("dns:///")
    try:
        parts = urlsplit(plain if "://" in plain or plain.startswith("unix:/") else f"grpc://{plain}")
        parts.port  # noqa: B018 - it is read here to raise for a port that is not a number
    except ValueError as error:
        raise ValueError(f"invalid server URL {url!r}: {error}; use {_FORMS}") from error
    if parts.scheme not in {*_DEFAULT_PORTS, *_SOCKETS}:
        _refuse(url, f"unknown scheme {parts.scheme!r}")
    return parts


def _path(url: str, parts: SplitResult) -> str:
    path = parts.path.rstrip("/")
    if parts.query or parts.fragment:
        _refuse(url, _NOTHING_ELSE)
    if path and parts.scheme.startswith("grpc"):
        _refuse(url, "gRPC takes no path: give the server its own host name or port, or use HTTP")
    if not _PATH.fullmatch(path):
        _refuse(
            url, "a path may have letters, digits and -._~!$&'()*+,;=: between single slashes, but no . or .. segment"
        )
    if f"{path}/".startswith("/v2/"):
        _refuse(url, "leave out /v2 and the rest, because the client adds them")
    return path


def _may_be_a_host(name: str) -> bool:
    """Return whether a name has the lengths that RFC 1035, 2.3.4 allows; addresses pass."""
    try:
        ascii_name = name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        return False
    labels = ascii_name.removesuffix(".").split(".")
    return len(ascii_name) <= _LONGEST_NAME and all(0 < len(label) <= _LONGEST_LABEL for label in labels)


def _refuse(url: str, reason: str) -> NoReturn:
    raise ValueError(f"invalid server URL {url!r}: {reason}; use {_FORMS}")
