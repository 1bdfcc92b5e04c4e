"""The files of deploy/envoy: envoy.yaml, which test_balancing.py runs, and gateway.yaml for the chart's routes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from chart import READY, objects

pytestmark = pytest.mark.deploy

FILE = Path(__file__).resolve().parents[2] / "deploy" / "envoy" / "envoy.yaml"
RESOURCES: dict[str, Any] = yaml.safe_load(FILE.read_text())["static_resources"]
PORTS = {"triton_http": 8000, "triton_grpc": 8001}


@pytest.mark.parametrize("cluster", RESOURCES["clusters"], ids=lambda cluster: cluster["name"])
def test_requests_go_to_ready_servers(cluster: dict[str, Any]) -> None:
    """Triton is live long before its models are loaded."""
    assert [check["http_health_check"] for check in cluster["health_checks"]] == [{"path": "/v2/health/ready"}]
    (group,) = cluster["load_assignment"]["endpoints"]
    (each,) = group["lb_endpoints"]
    port = each["endpoint"]["address"]["socket_address"]["port_value"]
    assert port == PORTS[cluster["name"]]
    # The gRPC port does not accept HTTP.
    assert each["endpoint"].get("health_check_config", {"port_value": port}) == {"port_value": PORTS["triton_http"]}


def test_ports_are_tritons_own_and_lead_to_the_same_behind() -> None:
    listened = {
        f"triton_{listener['name']}": listener["address"]["socket_address"]["port_value"]
        for listener in RESOURCES["listeners"]
    }
    assert listened == PORTS


def test_the_file_states_how_often_the_service_name_occurs() -> None:
    named = [line for line in FILE.read_text().splitlines() if "deeplab-triton-headless" in line]
    assert len(named) == 2
    assert "the name of the headless Service (twice)" in FILE.read_text()


GATEWAY: dict[str, dict[str, Any]] = {
    each["kind"]: each for each in yaml.safe_load_all((FILE.parent / "gateway.yaml").read_text())
}


def test_the_gateway_serves_the_charts_routes_with_tls() -> None:
    routes = [each for each in objects(READY["gateway"], namespace="vision") if each["kind"].endswith("Route")]
    listeners = {each["hostname"]: each for each in GATEWAY["Gateway"]["spec"]["listeners"]}
    assert {host for route in routes for host in route["spec"]["hostnames"]} == listeners.keys()
    for listener in listeners.values():
        assert (listener["port"], listener["protocol"], listener["tls"]["mode"]) == (443, "HTTPS", "Terminate")
    for route in routes:
        assert route["spec"]["parentRefs"] == [{"name": GATEWAY["Gateway"]["metadata"]["name"]}]
        # Listeners accept routes of their own namespace.
        assert route["metadata"]["namespace"] == GATEWAY["Gateway"]["metadata"]["namespace"]
    policy = GATEWAY["BackendTrafficPolicy"]["spec"]
    targets = {(each["kind"], each["name"]) for each in policy["targetRefs"]}
    assert targets == {(route["kind"], route["metadata"]["name"]) for route in routes}
    assert GATEWAY["Gateway"]["spec"]["gatewayClassName"] == GATEWAY["GatewayClass"]["metadata"]["name"]


def test_the_gateways_policies_are_what_envoys_file_sets() -> None:
    policy = GATEWAY["BackendTrafficPolicy"]["spec"]
    manager = RESOURCES["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    buffer = manager["http_filters"][0]["typed_config"]["max_request_bytes"]
    assert policy["requestBuffer"] == {"limit": f"{buffer // 2**20}Mi"}
    route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
    assert policy["timeout"]["http"]["requestTimeout"] == route["timeout"]
    retried = route["retry_policy"]
    assert policy["retry"]["numRetries"] == retried["num_retries"]
    assert policy["retry"]["retryOn"] == {
        "triggers": retried["retry_on"].split(","),
        "httpStatusCodes": retried["retriable_status_codes"],
    }
    assert RESOURCES["clusters"][0]["lb_policy"] == "LEAST_REQUEST"
    assert policy["loadBalancer"] == {"type": "LeastRequest"}
    received = GATEWAY["ClientTrafficPolicy"]["spec"]["timeout"]["http"]["requestReceivedTimeout"]
    assert received == manager["request_timeout"]
