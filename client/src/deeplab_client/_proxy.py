"""The HTTP proxy between a client and its server."""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

_DEFAULT_PORT = 80


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy.

    Attributes:
        host: Name or address.
        port: Its port.
        authorization: The value of the header Proxy-Authorization; None where the proxy asks for nothing.
    """

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """What it is sent with a request."""
        return {} if self.authorization is None else {"Proxy-Authorization": self.authorization}

    def __str__(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


class ProxyRefusedError(OSError):
    """A proxy does not connect to the server."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"the proxy answers CONNECT with HTTP status {status} {reason}")
        self.status = status


def proxy_of(text: object, *, source: str) -> Proxy:
    """Read a proxy's URL; the port defaults to 80, and `http://` may be left out. No message holds a password.

    Args:
        text: The URL.
        source: Where it comes from, for messages.

    Raises:
        TypeError: It is no string.
        ValueError: It is no HTTP proxy's.
    """
    if not isinstance(text, str):
        raise TypeError(f"{source} must be a string, a proxy's URL or 'env', got {type(text).__name__}")
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host, port = parts.hostname, _DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        parts, host, port = None, None, 0
    is_plain = text.isprintable() and " " not in text
    if parts is None or not host or not port or not is_plain or parts.path.strip("/") or parts.query or parts.fragment:
        raise ValueError(f"{source} must be http://host:port or http://user:password@host:port")
    if parts.scheme != "http":
        raise ValueError(f"{source} must be an HTTP proxy, http://host:port, got the scheme {parts.scheme!r}")
    if parts.username is None:
        return Proxy(host, port)
    credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(host, port, f"Basic {b64encode(credentials.encode()).decode()}")


def proxy_from_environment(scheme: str, host: str, authority: str) -> Proxy | None:
    """Return the proxy that HTTP_PROXY or HTTPS_PROXY names, unless NO_PROXY excepts the server.

    Args:
        scheme: `http` or `https`.
        host: The server's name or address.
        authority: `host:port`, an IPv6 address in brackets.

    Raises:
        ValueError: The variable cannot be used; the message names it.
    """
    from urllib.request import getproxies_environment, proxy_bypass  # noqa: PLC0415 - seldom used

    url = getproxies_environment().get(scheme)
    # Both: an IPv6 address may stand in NO_PROXY without brackets.
    if url is None or proxy_bypass(authority) or proxy_bypass(host):
        return None
    return proxy_of(url, source=f"the environment variable {scheme.upper()}_PROXY")
