"""The HTTP proxy between the client and the server."""

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
        port: Port of the proxy.
        authorization: Value of the header Proxy-Authorization; None without a password.
    """

    host: str
    port: int
    authorization: str | None = field(default=None, repr=False)

    @property
    def headers(self) -> dict[str, str]:
        """The headers for the proxy in each request."""
        return {} if self.authorization is None else {"Proxy-Authorization": self.authorization}

    def __str__(self) -> str:
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


class ProxyRefusedError(OSError):
    """A proxy refuses to connect to the server."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"the proxy answers CONNECT with HTTP status {status} {reason}")
        self.status = status


def proxy_of(text: object, *, source: str) -> Proxy:
    """Parse a proxy's URL; the default port is 80, and `http://` may be left out. No message contains a password.

    Args:
        text: The URL.
        source: The argument or variable it comes from, for messages.

    Raises:
        TypeError: It is not a string.
        ValueError: It is not the URL of an HTTP proxy.
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
    """Return the proxy of HTTP_PROXY or HTTPS_PROXY, unless NO_PROXY excludes the server.

    Args:
        scheme: `http` or `https`.
        host: Name or address of the server.
        authority: `host:port`, an IPv6 address in brackets.

    Raises:
        ValueError: The variable is not valid; the message names it.
    """
    from urllib.request import getproxies_environment, proxy_bypass  # noqa: PLC0415 - rarely used

    url = getproxies_environment().get(scheme)
    # Check both, because an IPv6 address in NO_PROXY may have no brackets.
    if url is None or proxy_bypass(authority) or proxy_bypass(host):
        return None
    return proxy_of(url, source=f"the environment variable {scheme.upper()}_PROXY")
