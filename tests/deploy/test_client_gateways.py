"""The client and a real server with a real Envoy between them: below a path, on a Unix socket, and as an HTTP proxy."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import certificates
import pytest
from drivers import Kind, connected
from envoy_process import FREE_PORT, EnvoyProcess

from benchmarks import toy
from benchmarks.proxy import Proxy
from deeplab_client import TLS, AccessDeniedError, ServerUnavailableError, TLSError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from certificates import Certificates
    from drivers import Driver
    from triton_process import TritonProcess

pytestmark = [pytest.mark.deploy, pytest.mark.stack]

PICTURE = toy.Picture(7, 40, 50)
PASSWORD = "p@ss:w0rd"  # noqa: S105 - a made up one
ESCAPED = "p%40ss%3Aw0rd"
AUTHORIZATION = f"Basic {base64.b64encode(f'team:{PASSWORD}'.encode()).decode()}"

_TYPES = "type.googleapis.com/envoy.extensions"
_CACHE = {"name": "hosts", "dns_lookup_family": "V4_ONLY"}


def listener(name: str, address: dict[str, Any], routes: list[dict[str, Any]], *filters: Any) -> dict[str, Any]:  # noqa: ANN401 - a part of a configuration
    """Return a listener for HTTP/1 and HTTP/2."""
    router = {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
    }
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "http_filters": [*filters, router],
        "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]},
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {"name": name, "address": address, "filter_chains": [chain]}


def cluster(name: str, server: str, **options: Any) -> dict[str, Any]:  # noqa: ANN401 - a part of a configuration
    """Return a cluster of one server, `host:port`."""
    host, port = server.split(":")
    address = {"socket_address": {"address": host, "port_value": int(port)}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": address}}]}]
    return {"name": name, "load_assignment": {"cluster_name": name, "endpoints": endpoints}, **options}


def gateway(server: TritonProcess, sockets: Path) -> dict[str, Any]:
    """Return a configuration: the server below /seg on two sockets, and a forward proxy with a password."""
    known = [{"name": "proxy-authorization", "string_match": {"exact": AUTHORIZATION}}]
    anywhere = {"route": {"cluster": "anywhere"}}
    tunnel = {"route": {"cluster": "anywhere", "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}]}}
    stranger = {"direct_response": {"status": 407, "body": {"inline_string": "who are you?"}}}
    cache = {
        "name": "envoy.filters.http.dynamic_forward_proxy",
        "typed_config": {
            "@type": f"{_TYPES}.filters.http.dynamic_forward_proxy.v3.FilterConfig",
            "dns_cache_config": _CACHE,
        },
    }
    http2 = {
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        }
    }
    forward = {
        "name": "envoy.clusters.dynamic_forward_proxy",
        "typed_config": {
            "@type": f"{_TYPES}.clusters.dynamic_forward_proxy.v3.ClusterConfig",
            "dns_cache_config": _CACHE,
        },
    }
    listeners = [
        listener(
            "prefix",
            FREE_PORT,
            [{"match": {"prefix": "/seg/"}, "route": {"cluster": "http", "prefix_rewrite": "/"}}],
        ),
        listener(
            "grpc",
            {"pipe": {"path": str(sockets / "grpc.sock")}},
            [{"match": {"prefix": "/"}, "route": {"cluster": "grpc"}}],
        ),
        listener(
            "http",
            {"pipe": {"path": str(sockets / "http.sock")}},
            [{"match": {"prefix": "/"}, "route": {"cluster": "http"}}],
        ),
        listener(
            "proxy",
            FREE_PORT,
            [
                {"match": {"connect_matcher": {}, "headers": known}, **tunnel},
                {"match": {"connect_matcher": {}}, **stranger},
                {"match": {"prefix": "/", "headers": known}, **anywhere},
                {"match": {"prefix": "/"}, **stranger},
            ],
            cache,
        ),
    ]
    clusters = [
        cluster("http", server.http_url),
        cluster("grpc", server.grpc_url, **http2),
        {"name": "anywhere", "lb_policy": "CLUSTER_PROVIDED", "cluster_type": forward},
    ]
    return {"admin": {"address": FREE_PORT}, "static_resources": {"listeners": listeners, "clusters": clusters}}


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sockets")


@pytest.fixture(scope="module")
def envoy(toy_server: TritonProcess, sockets: Path) -> Iterator[EnvoyProcess]:
    with EnvoyProcess(gateway(toy_server, sockets), folder=sockets) as envoy:
        yield envoy


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates.issue(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def encrypted(toy_server: TritonProcess, files: Certificates) -> Iterator[str]:
    """Yield the URL of the TLS listener in front of the server."""
    with Proxy(toy_server.http_url, tls=files.server_context(mutual=False)) as proxy:
        yield f"https://localhost:{proxy.port}"


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


def check_all(client: Driver) -> None:
    """Make every kind of request, and repeat the one with a picture so that a connection is reused."""
    client.wait_until_ready(timeout=20)
    assert client.server().name == "triton"
    assert toy.ENSEMBLE in {model.name for model in client.models()}
    for _ in range(3):
        assert PICTURE.is_mask(client.segment(PICTURE.ppm()).mask)


@pytest.mark.parametrize("form", ["http://{}/seg", "http://{}/seg/"])
def test_a_server_below_a_path(envoy: EnvoyProcess, kind: Kind, form: str) -> None:
    address = form.format(envoy.urls["prefix"])
    with connected(kind, address, model=toy.ENSEMBLE, timeout=20) as client:
        check_all(client)
    with connected(kind, address.replace("seg", "elsewhere"), retries=0) as client:
        assert not client.is_ready()


@pytest.mark.parametrize("form", ["unix://{}/grpc.sock", "unix:{}/grpc.sock", "http+unix://{}/http.sock"])
def test_a_server_on_a_unix_socket(envoy: EnvoyProcess, sockets: Path, kind: Kind, form: str) -> None:
    del envoy
    with connected(kind, form.format(sockets), model=toy.ENSEMBLE, timeout=20) as client:
        check_all(client)


@pytest.fixture(params=["http", "https"])
def place(
    request: pytest.FixtureRequest, toy_server: TritonProcess, encrypted: str, files: Certificates
) -> tuple[str, TLS | None]:
    """Return the server's URL and the file of the certificate authority."""
    if request.param == "http":
        return f"http://{toy_server.http_url}", None
    return encrypted, TLS(ca_file=files.ca)


def test_a_server_behind_a_proxy(place: tuple[str, TLS | None], envoy: EnvoyProcess, kind: Kind) -> None:
    address, tls = place
    proxy = f"http://team:{ESCAPED}@{envoy.urls['proxy']}"
    before = envoy.counters("http.proxy.downstream_cx_total")
    with connected(kind, address, tls=tls, model=toy.ENSEMBLE, timeout=20, proxy=proxy) as client:
        check_all(client)
    assert envoy.counters("http.proxy.downstream_cx_total") == before + 1  # kept for all requests
    with (
        connected(kind, address, tls=tls, proxy=f"http://{envoy.urls['proxy']}") as client,
        pytest.raises(AccessDeniedError, match="407"),
    ):
        client.segment(PICTURE.ppm())


def test_a_proxy_does_not_vouch_for_a_server(
    envoy: EnvoyProcess, encrypted: str, files: Certificates, kind: Kind
) -> None:
    proxy = f"http://team:{ESCAPED}@{envoy.urls['proxy']}"
    with (
        connected(kind, encrypted, tls=TLS(ca_file=files.stranger), proxy=proxy) as client,
        pytest.raises(TLSError, match=f"{encrypted} through the proxy http://{envoy.urls['proxy']}: .*not trusted"),
    ):
        client.segment(PICTURE.ppm())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_server_that_the_proxy_does_not_reach(envoy: EnvoyProcess, kind: Kind, scheme: str) -> None:
    proxy = f"http://team:{ESCAPED}@{envoy.urls['proxy']}"
    with (
        connected(kind, f"{scheme}://127.0.0.1:1", retries=0, proxy=proxy) as client,
        pytest.raises(ServerUnavailableError, match=f"through the proxy http://{envoy.urls['proxy']} .* 503"),
    ):
        client.segment(PICTURE.ppm())
