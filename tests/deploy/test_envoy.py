"""deploy/envoy/envoy.yaml as a file; test_balancing.py runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.deploy

FILE = Path(__file__).resolve().parents[2] / "deploy" / "envoy" / "envoy.yaml"
RESOURCES: dict[str, Any] = yaml.safe_load(FILE.read_text())["static_resources"]
PORTS = {"triton_http": 8000, "triton_grpc": 8001}


@pytest.mark.parametrize("cluster", RESOURCES["clusters"], ids=lambda cluster: cluster["name"])
def test_requests_go_to_servers_that_say_that_they_are_ready(cluster: dict[str, Any]) -> None:
    """Triton is live long before its models are loaded."""
    assert [check["http_health_check"] for check in cluster["health_checks"]] == [{"path": "/v2/health/ready"}]
    (group,) = cluster["load_assignment"]["endpoints"]
    (each,) = group["lb_endpoints"]
    port = each["endpoint"]["address"]["socket_address"]["port_value"]
    assert port == PORTS[cluster["name"]]
    # gRPC's port knows no HTTP.
    assert each["endpoint"].get("health_check_config", {"port_value": port}) == {"port_value": PORTS["triton_http"]}


def test_ports_are_tritons_own_and_lead_to_the_same_behind() -> None:
    listened = {
        f"triton_{listener['name']}": listener["address"]["socket_address"]["port_value"]
        for listener in RESOURCES["listeners"]
    }
    assert listened == PORTS


def test_the_places_to_change_are_as_many_as_the_file_says() -> None:
    named = [line for line in FILE.read_text().splitlines() if "deeplab-triton-headless" in line]
    assert len(named) == 2
    assert "the name of the headless Service (twice)" in FILE.read_text()
