"""Encrypted connections to the real server: gRPC's own TLS, and HTTP behind a proxy that ends it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import certificates
import pytest
from drivers import Kind, connected
from triton_process import TritonProcess

from benchmarks import toy
from benchmarks.proxy import Proxy
from deeplab_client import TLS, AccessDeniedError, SegmentationError, ServerUnavailableError, TLSError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from certificates import Certificates

pytestmark = pytest.mark.server

PICTURE = toy.Picture(7, 40, 50)


@dataclass(frozen=True, slots=True)
class Place:
    """A server with its TLS URL, the same URL without TLS, and the certificates it requires."""

    url: str
    plain_url: str
    mutual: bool
    headers: dict[str, str] = field(default_factory=dict[str, str])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates.issue(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def places(
    toy_server: TritonProcess, toy_repository: Path, files: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Place]]:
    options = [
        "--",
        "--grpc-use-ssl=true",
        "--grpc-use-ssl-mutual=true",
        f"--grpc-server-cert={files.server}",
        f"--grpc-server-key={files.server_key}",
        f"--grpc-root-cert={files.ca}",
        # Flags of serve.py restrict other interfaces in the same way.
        "--grpc-restricted-protocol=inference:team-key=open-sesame",
        "--http-restricted-api=inference:team-key=open-sesame",
    ]
    log = tmp_path_factory.mktemp("tls") / "serve.log"
    with contextlib.ExitStack() as stack:
        triton = stack.enter_context(TritonProcess(toy_repository, log=log, options=options))

        def behind_proxy(server: str, *, mutual: bool) -> str:
            return stack.enter_context(Proxy(server, tls=files.server_context(mutual=mutual))).address

        ours = behind_proxy(toy_server.http_url, mutual=False)
        mutual = behind_proxy(toy_server.http_url, mutual=True)
        # gRPC requires ALPN, which our small proxy lacks; Triton's own TLS has it.
        yield {
            "grpc": Place(
                f"grpcs://{triton.grpc_url}",
                f"grpc://{triton.grpc_url}",
                mutual=True,
                headers={"triton-grpc-protocol-team-key": "open-sesame"},
            ),
            "http-restricted": Place(
                "", f"http://{triton.http_url}", mutual=False, headers={"team-key": "open-sesame"}
            ),
            "http": Place(f"https://{ours}", f"http://{ours}", mutual=False),
            "http-mutual": Place(f"https://{mutual}", f"http://{mutual}", mutual=True),
        }


@pytest.fixture(params=["grpc", "http", "http-mutual"])
def place(places: dict[str, Place], request: pytest.FixtureRequest) -> Place:
    return places[request.param]


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_masks_come_over_an_encrypted_connection(
    place: Place, files: Certificates, kind: Kind, host: Literal["127.0.0.1", "localhost"]
) -> None:
    tls = TLS(ca_file=files.ca, certificate_file=files.client, key_file=files.client_key)
    with connected(kind, place.url.replace("127.0.0.1", host), tls=tls, headers=place.headers) as client:
        client.wait_until_ready(timeout=20)
        for _ in range(3):  # the connection is kept
            assert PICTURE.is_mask(client.segment(PICTURE.ppm()).mask)


@pytest.mark.parametrize("name", ["grpc", "http-restricted"])
def test_a_restricted_api_opens_to_its_key_alone(
    places: dict[str, Place], files: Certificates, kind: Kind, name: str
) -> None:
    place = places[name]
    tls = TLS(ca_file=files.ca, certificate_file=files.client, key_file=files.client_key) if place.url else None
    url = place.url or place.plain_url
    for wrong in ({}, dict.fromkeys(place.headers, "closed-barley")):
        with connected(kind, url, tls=tls, headers=wrong) as client, pytest.raises(AccessDeniedError) as caught:
            client.segment(PICTURE.ppm())
        assert "closed-barley" not in str(caught.value)
    with connected(kind, url, tls=tls, headers=place.headers) as client:
        assert PICTURE.is_mask(client.segment(PICTURE.ppm()).mask)


def refusal(kind: Kind, url: str, tls: TLS | None) -> SegmentationError:
    with connected(kind, url, tls=tls, timeout=5) as client, pytest.raises(SegmentationError) as caught:
        client.segment(PICTURE.ppm())
    assert isinstance(caught.value, ConnectionError)
    assert url in caught.value.message
    return caught.value


def test_a_server_with_an_unknown_authority_is_not_trusted(place: Place, files: Certificates, kind: Kind) -> None:
    for tls in (None, TLS(ca_file=files.stranger)):
        error = refusal(kind, place.url, tls)
        assert type(error) is TLSError
        assert "certificate is not trusted" in error.message
        assert "ca_file" in error.message


def test_a_server_under_another_name_is_not_trusted(place: Place, files: Certificates, kind: Kind) -> None:
    tls = TLS(ca_file=files.ca, certificate_file=files.client, key_file=files.client_key)
    scheme, _, address = place.url.partition("://")
    with Proxy(address, host="127.0.0.2") as other:
        error = refusal(kind, f"{scheme}://{other.address}", tls)
    assert type(error) is TLSError
    assert "certificate is for another host name" in error.message
    assert "ca_file" not in error.message


def test_the_error_names_a_missing_client_certificate(place: Place, files: Certificates, kind: Kind) -> None:
    if place.mutual:
        error = refusal(kind, place.url, TLS(ca_file=files.ca))
        assert "TLS(certificate_file=...)" in error.message


def test_a_server_without_tls_is_a_clear_error(toy_server: TritonProcess, files: Certificates, kind: Kind) -> None:
    for url in (f"https://{toy_server.http_url}", f"grpcs://{toy_server.grpc_url}"):
        assert "not use TLS" in refusal(kind, url, TLS(ca_file=files.ca)).message


def test_a_url_without_tls_to_a_tls_port_is_unavailable(place: Place, kind: Kind) -> None:
    assert type(refusal(kind, place.plain_url, None)) is ServerUnavailableError


def test_files_that_cannot_be_used_are_named(place: Place, files: Certificates, kind: Kind, tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("no certificate")
    wrong = (
        TLS(ca_file=tmp_path / "absent.pem"),
        TLS(ca_file=tmp_path / "text.pem"),
        TLS(ca_file=files.ca, certificate_file=files.client, key_file=files.server_key),
    )
    for tls in wrong:
        error = refusal(kind, place.url, tls)
        assert type(error) is TLSError
        assert ".pem" in error.message
