"""Ways to reach a server: a path prefix, a Unix socket, an HTTP proxy."""

from __future__ import annotations

import base64
import logging
import re
import socket
import traceback
from typing import TYPE_CHECKING, Any

import certificates
import pytest
from drivers import AsyncDriver, Kind, connected
from script_servers import GrpcServer, HttpServer, Script

from deeplab_client import (
    TLS,
    AccessDeniedError,
    AsyncSegmentationClient,
    DeadlineExceededError,
    SegmentationClient,
    SegmentationError,
    ServerUnavailableError,
    TLSError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from certificates import Certificates
    from drivers import Driver

pytestmark = pytest.mark.unit

# Only a proxy resolves it.
SERVER = "seg.invalid:8000"
PASSWORD = "p@ss w0rd"  # noqa: S105 - a made up one
ESCAPED = "p%40ss%20w0rd"
ENCODED = base64.b64encode(f"team:{PASSWORD}".encode()).decode()


@pytest.fixture
def server() -> Iterator[HttpServer]:
    server = HttpServer(Script())
    yield server
    server.stop()


@pytest.fixture
def proxy(server: HttpServer) -> str:
    """Return the URL of a proxy, which is also the server."""
    server.base = f"http://{SERVER}"
    return f"http://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates.issue(tmp_path_factory.mktemp("certificates"))


def use(client: Driver) -> None:
    assert client.segment(b"\x05").mask.shape == (3, 5)
    assert client.is_ready()


def test_all_requests_go_below_the_prefix(server: HttpServer, kind: Kind) -> None:
    server.base = "/team-a/seg"
    with connected(kind, f"http://127.0.0.1:{server.port}/team-a/seg/") as client:
        use(client)
    assert len(server.script.headers) == 4
    server.script.failures["infer"] = (503, "busy")
    with (
        connected(kind, f"http://127.0.0.1:{server.port}/team-a/seg", retries=0) as client,
        pytest.raises(ServerUnavailableError, match=f"^http://127.0.0.1:{server.port}/team-a/seg is not available"),
    ):
        client.segment(b"\x05")


def test_grpc_over_a_unix_socket(tmp_path: Path, kind: Kind) -> None:
    path = tmp_path / "triton.sock"
    server = GrpcServer(Script(), str(path), host="unix")
    with connected(kind, f"unix://{path}") as client:
        use(client)
    assert "MASK" in server.script.requests[0]["outputs"]
    server.stop()
    with (
        connected(kind, f"unix:{path}", retries=0) as client,
        pytest.raises(ServerUnavailableError, match=f"^unix://{path} is not available"),
    ):
        client.segment(b"\x05")


def test_http_over_a_unix_socket_that_is_not_there(tmp_path: Path, kind: Kind) -> None:
    address = f"http+unix://{tmp_path}/triton.sock"
    with (
        connected(kind, address, retries=0) as client,
        pytest.raises(ServerUnavailableError, match=f"^{re.escape(address)} is not available: .*No such file"),
    ):
        client.segment(b"\x05")


@pytest.mark.parametrize("user", ["", f"team:{ESCAPED}@"])
def test_plain_requests_are_forwarded(server: HttpServer, proxy: str, kind: Kind, user: str) -> None:
    with connected(kind, f"http://{SERVER}", proxy=proxy.replace("//", f"//{user}")) as client:
        use(client)
    told = {(sent["host"], sent.get("proxy-authorization")) for sent in server.script.headers}
    assert told == {(SERVER, f"Basic {ENCODED}" if user else None)}


@pytest.mark.parametrize("user", ["", f"team:{ESCAPED}@"])
def test_a_proxy_sees_nothing_of_encrypted_requests(
    server: HttpServer, files: Certificates, kind: Kind, user: str
) -> None:
    server.tls = files.server_context(mutual=False)
    proxy = f"http://{user}127.0.0.1:{server.port}"
    with connected(kind, "https://localhost:4", proxy=proxy, tls=TLS(ca_file=files.ca), token="secret") as client:  # noqa: S106 - a made up one
        use(client)
    tunnel, *requests = server.script.headers
    assert tunnel["host"] == "localhost:4"
    assert "authorization" not in tunnel
    assert tunnel.get("proxy-authorization") == (f"Basic {ENCODED}" if user else None)
    assert {request["host"] for request in requests} == {"localhost:4"}
    assert not any("proxy-authorization" in request for request in requests)
    with (
        connected(kind, "https://localhost:4", proxy=proxy, tls=TLS(ca_file=files.stranger)) as client,
        pytest.raises(
            TLSError, match=f"https://localhost:4 through the proxy http://127.0.0.1:{server.port}: .*trusted"
        ),
    ):
        client.segment(b"\x05")


@pytest.mark.parametrize(("status", "kind_of_error"), [(407, AccessDeniedError), (502, ServerUnavailableError)])
def test_a_proxy_that_does_not_connect(
    server: HttpServer, kind: Kind, status: int, kind_of_error: type[SegmentationError]
) -> None:
    server.script.failures["connect to seg.invalid:443"] = (status, "no")
    proxy = f"http://127.0.0.1:{server.port}"
    words = f"https://seg.invalid:443 through the proxy {proxy}.*: the proxy answers CONNECT with HTTP status {status}"
    with (
        connected(kind, "https://seg.invalid", proxy=proxy, retries=0) as client,
        pytest.raises(kind_of_error, match=words),
    ):
        client.segment(b"\x05")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_is_not_there_is_named_without_its_password(
    kind: Kind, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{refusing.getsockname()[1]}"
        with (
            caplog.at_level(logging.DEBUG),
            connected(kind, f"{scheme}://{SERVER}", proxy=f"http://team:{ESCAPED}@{address}", retries=1) as client,
        ):
            told = [repr(client.client if isinstance(client, AsyncDriver) else client)]
            with pytest.raises(
                ServerUnavailableError,
                match=f"^{scheme}://{SERVER} through the proxy http://{address} is not available",
            ) as caught:
                client.segment(b"\x05")
    told += traceback.format_exception(caught.value)
    told += [record.getMessage() for record in caplog.records if record.name == "deeplab_client"]
    assert len(told) > 3
    for text in told:
        assert not any(secret in text for secret in (PASSWORD, ESCAPED, ENCODED))


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_repeats_a_password_is_not_quoted(server: HttpServer, kind: Kind, scheme: str) -> None:
    server.base = f"http://{SERVER}"
    server.script.failures |= dict.fromkeys(["infer", f"connect to {SERVER}"], (407, f"Basic {ENCODED} is wrong"))
    proxy = f"http://team:{ESCAPED}@127.0.0.1:{server.port}"
    with (
        connected(kind, f"{scheme}://{SERVER}", proxy=proxy) as client,
        pytest.raises(AccessDeniedError, match=r"407|wrong") as caught,
    ):
        client.segment(b"\x05")
    assert ENCODED not in "".join(traceback.format_exception(caught.value))
    assert ENCODED not in f"{caught.value.__cause__!r}{caught.value.__context__!r}"


def test_the_deadline_holds_against_a_proxy_that_never_answers(kind: Kind) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        proxy = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            connected(kind, "https://seg.invalid", proxy=proxy) as client,
            pytest.raises(DeadlineExceededError, match=f"through the proxy {proxy} within 0.3 s"),
        ):
            client.segment(b"\x05", timeout=0.3)


def test_the_environments_proxy_is_used_on_request_only(
    server: HttpServer, proxy: str, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", proxy)
    monkeypatch.setenv("HTTPS_PROXY", "proxy.invalid:3128")
    with connected(kind, f"http://{SERVER}", proxy="env") as client:
        use(client)
    assert server.script.headers
    for direct in ({}, {"proxy": None}):
        with connected(kind, f"http://{SERVER}", retries=0, **direct) as client:
            assert not client.is_ready()
    kinds = (SegmentationClient, AsyncSegmentationClient)
    monkeypatch.setenv("DEEPLAB_PROXY", "env")
    for each in kinds:
        through = each.from_env(url="https://seg.example.com")
        assert "https://seg.example.com:443 through the proxy http://proxy.invalid:3128," in repr(through)
        assert "proxy" not in repr(each.from_env(url="https://seg.example.com", proxy=None))
    monkeypatch.setenv("NO_PROXY", "example.com,127.0.0.1")
    for each in kinds:
        assert "proxy" not in repr(each("https://seg.example.com", proxy="env"))
        assert "proxy" in repr(each("https://seg.example.org", proxy="env"))
    for name in ("::1", "[::1]"):
        monkeypatch.setenv("NO_PROXY", f"localhost,{name}")
        assert "proxy" not in repr(SegmentationClient("https://[::1]:8000", proxy="env"))
    monkeypatch.delenv("HTTPS_PROXY")
    assert "proxy" not in repr(SegmentationClient("https://seg.example.org", proxy="env"))


@pytest.mark.parametrize("url", ["grpc://host", "grpcs://host", "unix:///run/x", "http+unix:///run/x"])
@pytest.mark.parametrize("proxy", ["env", "http://proxy:3128"])
def test_proxies_are_for_http_alone(url: str, proxy: str) -> None:
    for client in (SegmentationClient, AsyncSegmentationClient):
        with pytest.raises(ValueError, match=f"^proxy needs a server at http:// or https://, got {re.escape(url)}"):
            client(url, proxy=proxy)


@pytest.mark.parametrize(
    ("proxy", "words"),
    [
        ("https://{}proxy", "scheme 'https'"),
        ("socks5://{}proxy:1080", "scheme 'socks5'"),
        ("http://{}", "must be http://host:port"),
        ("http://{}proxy:port", "must be http://host:port"),
        ("http://{}proxy:0", "must be http://host:port"),
        ("http://{}proxy/path", "must be http://host:port"),
        ("http://{}proxy\n", "must be http://host:port"),
        ("", "must be http://host:port"),
    ],
)
def test_an_invalid_proxy_is_refused_without_its_password(
    proxy: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = proxy.format(f"team:{ESCAPED}@")
    monkeypatch.setenv("HTTPS_PROXY", url)
    for option, source in ((url, "proxy"), *([("env", "the environment variable HTTPS_PROXY")] if url else ())):
        with pytest.raises(ValueError, match=f"^{source} must.*{words}|^{source} {words}") as caught:
            SegmentationClient("https://host", proxy=option)
        assert ESCAPED not in "".join(traceback.format_exception(caught.value))
    wrong: Any = 3128
    with pytest.raises(TypeError, match="proxy"):
        SegmentationClient("https://host", proxy=wrong)
