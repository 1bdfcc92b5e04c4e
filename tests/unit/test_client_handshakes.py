"""Failed handshakes: each error names the cause and only remedies that help."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from datetime import datetime, timezone
from typing import TYPE_CHECKING

import pytest
import trustme
from drivers import Kind, connected
from script_servers import GrpcServer, HttpServer, Script

from deeplab_client import TLS, ServerUnavailableError, TLSError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

pytestmark = pytest.mark.unit

LONG_AGO = datetime(2019, 1, 1, tzinfo=timezone.utc), datetime(2020, 1, 1, tzinfo=timezone.utc)


@pytest.fixture(params=["grpcs", "https"])
def scheme(request: pytest.FixtureRequest) -> str:
    return request.param


@contextlib.contextmanager
def shaking(certificate: trustme.LeafCert) -> Generator[int]:
    """Yield a port that completes the handshake and does nothing else."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    context.set_alpn_protocols(["h2", "http/1.1"])

    def serve(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
                    tls.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def refusal(kind: Kind, url: str, tls: TLS) -> str:
    with connected(kind, url, tls=tls, timeout=10, retries=0) as client, pytest.raises(TLSError) as caught:
        client.segment(b"\x05")
    return str(caught.value)


def test_a_certificate_out_of_date(kind: Kind, scheme: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    expired = authority.issue_cert("127.0.0.1", not_before=LONG_AGO[0], not_after=LONG_AGO[1])
    with shaking(expired) as port:
        told = refusal(kind, f"{scheme}://127.0.0.1:{port}", TLS(ca_file=tmp_path / "ca.pem"))
    assert "has expired or is not valid yet" in told
    assert "ca_file" not in told


def test_a_certificate_for_another_name(kind: Kind, scheme: str, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with shaking(authority.issue_cert("elsewhere.example")) as port:
        told = refusal(kind, f"{scheme}://127.0.0.1:{port}", TLS(ca_file=tmp_path / "ca.pem"))
    assert "for another host name" in told
    assert "ca_file" not in told


@pytest.mark.parametrize("plain", ["grpc", "http"])
def test_a_server_that_requires_tls_is_called_without(kind: Kind, plain: str) -> None:
    with (
        shaking(trustme.CA().issue_cert("127.0.0.1")) as port,
        connected(kind, f"{plain}://127.0.0.1:{port}", timeout=10, retries=0) as client,
        pytest.raises(ServerUnavailableError, match="grpcs://" if plain == "grpc" else "https://"),
    ):
        client.segment(b"\x05")


def test_an_untrusted_certificate_is_not_reported_as_a_closed_connection(kind: Kind, scheme: str) -> None:
    with (
        shaking(trustme.CA().issue_cert("127.0.0.1")) as port,
        connected(kind, f"{scheme}://127.0.0.1:{port}", timeout=10) as client,
        pytest.raises(TLSError, match=r"TLS\(ca_file=\.\.\.\) or DEEPLAB_CA_FILE"),
    ):
        client.is_ready()


def test_a_server_without_tls(kind: Kind, scheme: str) -> None:
    server = GrpcServer(Script()) if scheme == "grpcs" else HttpServer(Script())
    assert "does not use TLS" in refusal(kind, f"{scheme}://127.0.0.1:{server.port}", TLS())
    server.stop()
