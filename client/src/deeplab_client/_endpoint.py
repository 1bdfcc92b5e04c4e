"""Where the server is, and by which protocol it is spoken to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NoReturn
from urllib.parse import urlsplit

_DEFAULT_PORTS = {"grpc": 8001, "grpcs": 8001, "http": 8000, "https": 443}
# Services of Kubernetes, and the domains that RFC 6762 and ICANN keep out of the public name system.
_NEAR_DOMAINS = (".svc", ".cluster.local", ".local", ".internal")
_FORMS = "grpc://host:port, http://host:port, their encrypted forms grpcs:// and https://, or host:port for gRPC"

_HOST_AND_PORT_ONLY = "it must hold a host and a port only"
_USER = re.compile(r"^([a-z]+:/+)?.*@", re.IGNORECASE | re.DOTALL)
_LONGEST_NAME, _LONGEST_LABEL = 254, 63  # characters, a full stop at the end included


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A server's address, checked."""

    scheme: str
    host: str
    port: int

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

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


def parse_url(url: str) -> Endpoint:
    """Read a server's URL; the port defaults to Triton's own, 8001 for gRPC and 8000 for HTTP, and to 443 for HTTPS.

    `dns:///host:port`, gRPC's own way to name a server, is read as `grpc://host:port`.

    Raises:
        TypeError: `url` is no string.
        ValueError: It is not in one of the accepted forms.
    """
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance] callers without a type checker
        raise TypeError(f"url must be a string such as {_FORMS}; found {type(url).__name__}")
    if "@" in url:
        _refuse(_USER.sub(r"\1***@", url), _HOST_AND_PORT_ONLY)  # before anything repeats a password
    if url != url.strip() or not url.isprintable() or " " in url:
        _refuse(url, "it holds blanks or control characters")
    plain = url.removeprefix("dns:///")
    try:
        parts = urlsplit(plain if "://" in plain else f"grpc://{plain}")
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{url!r} is no server URL ({error}): use {_FORMS}") from error
    if parts.scheme not in _DEFAULT_PORTS:
        _refuse(url, f"unknown scheme {parts.scheme!r}")
    if parts.path.strip("/") or parts.query or parts.fragment:
        _refuse(url, _HOST_AND_PORT_ONLY)
    host = parts.hostname or _refuse(url, "it has no host")
    if ":" in host and "[" not in parts.netloc:
        _refuse(url, "an IPv6 address needs brackets, [::1]:8001")
    if not _may_be_a_host(host):
        _refuse(url, "no host has such a name")
    if port == 0:
        _refuse(url, "0 is no port")
    return Endpoint(parts.scheme, host, _DEFAULT_PORTS[parts.scheme] if port is None else port)


def _may_be_a_host(name: str) -> bool:
    """Return whether RFC 1035, 2.3.4 allows a name's lengths; an address passes."""
    try:
        ascii_name = name if name.isascii() else name.encode("idna").decode("ascii")
    except UnicodeError:
        return False
    labels = ascii_name.removesuffix(".").split(".")
    return len(ascii_name) <= _LONGEST_NAME and all(0 < len(label) <= _LONGEST_LABEL for label in labels)


def _refuse(url: str, reason: str) -> NoReturn:
    raise ValueError(f"{url!r} is no server URL ({reason}): use {_FORMS}")
