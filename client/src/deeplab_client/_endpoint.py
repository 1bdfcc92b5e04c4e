"""Where the server is, and how it is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import NoReturn
from urllib.parse import SplitResult, urlsplit

from deeplab_client._proxy import Proxy, proxy_from_environment, proxy_of

_DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}
# Services of Kubernetes, and the domains that RFC 6762 and ICANN keep out of the public name system.
_NEAR_DOMAINS = (".svc", ".cluster.local", ".local", ".internal")
_FORMS = (
    "grpc://host:port or host:port for gRPC, http://host:port or http://host:port/prefix for HTTP, grpcs:// or "
    "https:// for TLS, or unix:///path or http+unix:///path for a Unix socket"
)
# Schemes of Unix sockets, the first of them gRPC's own, and what is spoken there.
_SOCKETS = {"unix": "grpc", "http+unix": "http"}
# What needs no escape in a URL (RFC 3986, 3.3), without `.` and `..`, which libraries resolve.
_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~!$&'()*+,;=:-]+)*")

_NOTHING_ELSE = "it may only have a host, a port and a path"
_USER = re.compile(r"^([a-z]+:/+)?.*@", re.IGNORECASE | re.DOTALL)
_LONGEST_NAME, _LONGEST_LABEL = 254, 63  # characters, a full stop at the end included


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address, checked.

    Attributes:
        scheme: Of the protocol: `grpc`, `grpcs`, `http` or `https`.
        host: Name or address.
        port: Its port.
        prefix: What stands before the paths of HTTP requests, such as `/seg`.
        socket: The path of a Unix socket, which is connected to instead of the host and the port.
        proxy: What is connected to instead of the server, over HTTP.
    """

    scheme: str
    host: str
    port: int
    prefix: str = ""
    socket: str | None = None
    proxy: Proxy | None = None

    @property
    def is_grpc(self) -> bool:
        """Whether gRPC is spoken there, and not HTTP."""
        return self.scheme in {"grpc", "grpcs"}

    @property
    def is_encrypted(self) -> bool:
        """Whether TLS is spoken there."""
        return self.scheme in {"grpcs", "https"}

    @property
    def is_near(self) -> bool:
        """Whether it is on this machine or, by its address or name, in a network of one's own such as a cluster's."""
        try:
            return ip_address(self.host).is_private  # loopback and link-local addresses are
        except ValueError:
            name = self.host.rstrip(".")
            return "." not in name or name.endswith(_NEAR_DOMAINS) or ".svc." in name

    @property
    def authority(self) -> str:
        """`host:port`, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_forwarded(self) -> bool:
        """Whether a proxy reads and forwards each request; what is encrypted goes through it unread."""
        return self.proxy is not None and not self.is_encrypted

    @property
    def secrets(self) -> tuple[str, ...]:
        """What no message may repeat."""
        return () if self.proxy is None else tuple(self.proxy.headers.values())

    def url_of(self, path: str) -> str:
        """Return the whole URL of an HTTP request."""
        return f"{self.scheme}://{self.authority}{self.prefix}{path}"

    def __str__(self) -> str:
        if self.socket is not None:
            return f"{'unix' if self.is_grpc else 'http+unix'}://{self.socket}"
        return self.url_of("") if self.proxy is None else f"{self.url_of('')} through the proxy {self.proxy}"


def parse_url(url: str, proxy: str | None = None) -> Endpoint:
    """Read a server's URL; the port defaults to Triton's own, 8001 for gRPC and 8000 for HTTP, and to 443 for HTTPS.

    `dns:///host:port`, gRPC's own way to name a server, is read as `grpc://host:port`.

    Args:
        url: The server's.
        proxy: The URL of a proxy, or `env` for that of the environment.

    Raises:
        TypeError: `url` or `proxy` is no string.
        ValueError: One is not in one of the accepted forms, or there is no proxy for the protocol.
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
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers without a type checker
        raise TypeError(f"url must be a string such as {_FORMS}, got {type(url).__name__}")
    if "@" in url:
        _refuse(_USER.sub(r"\1***@", url), _NOTHING_ELSE)  # before anything repeats a password
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
    """Return whether RFC 1035, 2.3.4 allows a name's lengths; an address passes."""
    try:
        ascii_name = name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        return False
    labels = ascii_name.removesuffix(".").split(".")
    return len(ascii_name) <= _LONGEST_NAME and all(0 < len(label) <= _LONGEST_LABEL for label in labels)


def _refuse(url: str, reason: str) -> NoReturn:
    raise ValueError(f"invalid server URL {url!r}: {reason}; use {_FORMS}")
