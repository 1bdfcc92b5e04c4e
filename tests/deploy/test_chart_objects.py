"""The chart's objects besides the server: autoscalers, policies, routes, `helm test`, load test, monitoring."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import helm_python
import pytest
import yaml
from chart import (
    CHART,
    NAME,
    NAMESPACE,
    VARIANTS,
    files,
    matches,
    objects,
    one,
    pods,
)

if TYPE_CHECKING:
    from pathlib import Path

    from chart import Object

pytestmark = pytest.mark.deploy


@pytest.mark.parametrize("variant", ["hpa", "keda"])
def test_an_autoscaler_alone_decides_on_the_replicas(variant: str) -> None:
    deployment = one("Deployment", VARIANTS[variant])
    assert "replicas" not in deployment["spec"]
    kind = {"hpa": "HorizontalPodAutoscaler", "keda": "ScaledObject"}
    assert [each["kind"] for each in objects(VARIANTS[variant]) if each["kind"] in kind.values()] == [kind[variant]]
    target = one(kind[variant], VARIANTS[variant])["spec"]["scaleTargetRef"]
    assert target == {"apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"]}
    assert one("Deployment")["spec"]["replicas"] == 1


def test_the_hpa_scales_on_what_the_core_models_have_waiting() -> None:
    spec = one("HorizontalPodAutoscaler", VARIANTS["hpa"])["spec"]
    targets = {each["pods"]["metric"]["name"]: each["pods"]["target"] for each in spec["metrics"]}
    assert targets == {
        "deeplab_core_pending_requests": {"type": "AverageValue", "averageValue": "16"},
        "deeplab_core_queue_seconds": {"type": "AverageValue", "averageValue": "100m"},
    }
    adapter = yaml.safe_load((CHART.parent / "prometheus-adapter-rules.yaml").read_text())
    assert {rule["name"]["as"] for rule in adapter["rules"]["custom"]} == set(targets)
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 600
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 8)


def test_keda_asks_for_this_release_alone() -> None:
    spec = one("ScaledObject", VARIANTS["keda"])["spec"]
    for trigger in spec["triggers"]:
        query = trigger["metadata"]["query"]
        assert trigger["metricType"] == "AverageValue"  # the only one that supports a fallback
        assert trigger["authenticationRef"] == {"name": "prometheus"}
        assert f'namespace="{NAMESPACE}"' in query
        (pattern,) = set(re.findall(r'pod=~"([^"]+)"', query))
        assert re.fullmatch(pattern, f"{NAME}-7d9c5bb6f4-x2x9p")
        assert not re.fullmatch(pattern, f"other-{NAME}-7d9c5bb6f4-x2x9p")
        assert not re.fullmatch(pattern, f"{NAME}-locust-worker-7d9c5bb6f4-x2x9p")
        # An ensemble's own queue is always empty.
        (models,) = set(re.findall(r'model=~"([^"]+)"', query))
        assert re.fullmatch(models, "core_resnet50")
        assert re.fullmatch(models, "deeplabv3_resnet50")
        assert not re.fullmatch(models, "segment_resnet50")
    # KEDA 2.16 multiplies their integer part by the replicas of the fallback.
    assert [trigger["metadata"]["threshold"] for trigger in spec["triggers"]] == ["16", "100"]


def test_keda_shows_prometheus_who_asks() -> None:
    def modes(values: Object) -> set[str | None]:
        return {each["metadata"].get("authModes") for each in one("ScaledObject", values)["spec"]["triggers"]}

    assert modes(VARIANTS["keda"]) == {"bearer"}
    assert modes({"autoscaling": {"type": "keda", "keda": {"serverAddress": "http://a"}}}) == {None}


def test_the_notes_name_what_an_autoscaler_still_needs() -> None:
    def notes(values: Object) -> str:
        return files(values)["NOTES.txt"]

    scraped: Object = {"monitoring": {"podMonitor": {"enabled": True}}}
    for variant in ("hpa", "keda"):
        assert f"autoscaling.type {variant} needs the pods' metrics" in notes(VARIANTS[variant])
        assert "needs the pods' metrics" not in notes(VARIANTS[variant] | scraped)
    assert "needs the pods' metrics" not in notes({})


def test_a_budget_is_there_only_where_it_lets_a_node_drain() -> None:
    def budgets(values: Object) -> list[Object]:
        return [each for each in objects(values) if each["kind"] == "PodDisruptionBudget"]

    assert budgets({}) == []
    assert budgets({"autoscaling": {"type": "hpa"}}) == []  # may go down to one
    assert [each["spec"]["maxUnavailable"] for each in budgets({"replicaCount": 2})] == [1]
    assert len(budgets(VARIANTS["hpa"])) == 1
    assert budgets({"replicaCount": 2, "podDisruptionBudget": {"enabled": False}}) == []


def test_only_named_peers_get_in_and_nothing_gets_out() -> None:
    spec = one("NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    requests, metrics = spec["ingress"]
    assert {port["port"] for port in requests["ports"]} == {"http", "grpc"}
    assert {port["port"] for port in metrics["ports"]} == {"metrics"}
    assert metrics["from"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}]
    test = one("Pod", name=f"{NAME}-test")["metadata"]["labels"]
    assert any(matches(peer.get("podSelector", {}).get("matchLabels", {"": ""}), test) for peer in requests["from"])

    def out(policy: Object) -> list[set[tuple[str, int]]]:
        return [{(port["protocol"], port["port"]) for port in rule["ports"]} for rule in policy["egress"]]

    dns, https = {("UDP", 53), ("TCP", 53)}, {("TCP", 443)}
    assert out(spec) == [dns]
    builder = one("NetworkPolicy", name=f"{NAME}-builder")["spec"]
    assert "ingress" not in builder
    assert out(builder) == [dns, https]
    assert out(one("NetworkPolicy", VARIANTS["object store"])["spec"]) == [dns, https]


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector.observability.svc:4318/v1/traces", 4318),
        ("http://10.1.2.3/v1/traces", 80),
        ("https://otlp.example.org/v1/traces", 443),
        ("https://[fd00::4318]/v1/traces", 443),
        ("https://[fd00::1]:8443/otlp/v1/traces", 8443),
    ],
)
def test_spans_get_out_to_their_receiver_alone(endpoint: str, port: int) -> None:
    peers = [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}}}]
    tracing: Object = {"enabled": True, "endpoint": endpoint, "to": peers}
    values: Object = {"server": {"tracing": tracing}}
    dns, receiver = one("NetworkPolicy", values)["spec"]["egress"]
    assert {each["port"] for each in dns["ports"]} == {53}
    assert receiver == {"to": peers, "ports": [{"port": port, "protocol": "TCP"}]}
    # The builder sends no spans, and neither does a server without tracing.
    builder = one("NetworkPolicy", values, name=f"{NAME}-builder")
    assert builder == one("NetworkPolicy", name=f"{NAME}-builder")
    assert one("NetworkPolicy", {"server": {"tracing": tracing | {"enabled": False}}}) == one("NetworkPolicy")


def lets_through(values: Object, source: str, target: str, port: int) -> bool:
    """Return whether a component can reach another's port under the policies of a release, if all else is blocked."""
    found = objects(values)
    components = {
        pod["metadata"]["labels"]["app.kubernetes.io/component"]: (
            pod["metadata"]["labels"],
            {each["containerPort"]: each["name"] for c in pod["spec"]["containers"] for each in c.get("ports", [])},
        )
        for _, pod in pods(found)
    }
    labels, (target_labels, named) = components[source][0], components[target]

    def opens(direction: str, peers: str, own: Object, other: Object) -> bool:
        return any(
            matches(peer["podSelector"].get("matchLabels", {}), other)
            for policy in found
            if policy["kind"] == "NetworkPolicy" and matches(policy["spec"]["podSelector"]["matchLabels"], own)
            for rule in policy["spec"].get(direction, [])
            if any(each["port"] in {port, named[port]} for each in rule["ports"])
            for peer in rule[peers]
            if "podSelector" in peer
        )

    return opens("egress", "to", labels, target_labels) and opens("ingress", "from", target_labels, labels)


def test_test_and_load_test_reach_the_server_where_a_namespace_closes_all_pods() -> None:
    values: Object = {"loadTest": {"enabled": True}, "networkPolicy": {"allowedFrom": []}}
    for source in ("test", "locust-master", "locust-worker"):
        assert lets_through(values, source, "server", 8000)
        assert lets_through(values, source, "server", 8001)
        assert not lets_through(values, source, "server", 8002)
    assert lets_through(values, "locust-worker", "locust-master", 5557)
    assert not lets_through(values, "test", "locust-master", 5557)
    assert not lets_through(values, "builder", "server", 8001)
    # They resolve the addresses by name.
    for component in ("test", "locust-master", "locust-worker"):
        dns, *_ = one("NetworkPolicy", values, name=f"{NAME}-{component}")["spec"]["egress"]
        assert {port["port"] for port in dns["ports"]} == {53}
    assert [each for each in objects({}) if each["kind"] == "NetworkPolicy"], "locust's are left out without it"
    assert not [each for each in objects({}) if "locust" in each["metadata"]["name"]]


@pytest.mark.parametrize("release", ["1st", "a.b"])
def test_a_release_whose_name_no_service_can_have_is_refused(release: str) -> None:
    with pytest.raises(helm_python.HelmError, match="set fullnameOverride"):
        objects(release=release)
    assert objects({"fullnameOverride": "segmentation"}, release=release)


@pytest.mark.parametrize("fails", ["", "http", "grpc"])
@pytest.mark.parametrize("model", ["segment_resnet50", "segment_resnet101"])
def test_helm_test_asks_over_every_way_in(tmp_path: Path, fails: str, model: str) -> None:
    pod = one("Pod", {"test": {"model": model}} if model != "segment_resnet50" else {}, name=f"{NAME}-test")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]  # with several, `helm test --logs` could not choose
    command = tmp_path / "deeplab"
    command.write_text(
        '#!/bin/sh\necho "$@" with "$DEEPLAB_MODEL" at "$DEEPLAB_URL"\n'
        f'[ -z "{fails}" ] || ! expr "$DEEPLAB_URL" : "{fails}:"\n'
    )
    command.chmod(0o755)
    run = subprocess.run(
        [*container["command"], *container["args"]],
        env={each["name"]: each["value"] for each in container["env"]} | {"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode == 0) == (not fails)
    asked = re.findall(f"^segment /opt/deeplab/tests/assets/cat.png with {model} at (.+)$", run.stdout, re.MULTILINE)
    if not fails:
        assert asked == [f"grpc://{NAME}:8001", f"grpc://{NAME}-headless:8001", f"http://{NAME}:8000"]
        services = {each["metadata"]["name"] for each in objects() if each["kind"] == "Service"}
        assert {re.split("[/:]+", url)[1] for url in asked} == services


def test_the_load_test_has_one_master_that_its_workers_find() -> None:
    values = VARIANTS["everything"]
    service = one("Service", values, name=f"{NAME}-locust-master")
    assert {port["port"] for port in service["spec"]["ports"]} == {8089, 5557}
    (worker,) = one("Deployment", values, name=f"{NAME}-locust-worker")["spec"]["template"]["spec"]["containers"]
    assert worker["args"] == ["--worker", "--master-host", service["metadata"]["name"]]
    (master,) = one("Deployment", values, name=f"{NAME}-locust-master")["spec"]["template"]["spec"]["containers"]
    assert master["args"] == ["--master", "--variants", "resnet50"]
    assert master["command"] == worker["command"]
    assert master["command"][-2:] == ["--host", f"grpc://{NAME}-headless:8001"]
    assert master["env"] == worker["env"] == [{"name": "LOCUST_USERS", "value": "64"}]


def test_routes_lead_to_the_services_ports() -> None:
    values = VARIANTS["everything"]
    ports = {port["port"]: port["name"] for port in one("Service", values)["spec"]["ports"]}
    for kind, port, host in (("GRPCRoute", "grpc", "grpc.example.org"), ("HTTPRoute", "http", "http.example.org")):
        route = one(kind, values)
        assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
        assert set(route["spec"]) == {"parentRefs", "hostnames", "rules"}
        assert route["spec"]["parentRefs"] == [{"name": "public", "namespace": "gateways"}]
        assert route["spec"]["hostnames"] == [host]
        (rule,) = route["spec"]["rules"]
        (backend,) = rule["backendRefs"]
        assert backend["name"] == NAME
        assert ports[backend["port"]] == port
    (rule,) = one("GRPCRoute", values)["spec"]["rules"]
    assert rule["matches"] == [{"method": {"service": "inference.GRPCInferenceService"}}]


def test_shared_memory_has_the_metric_name_of_the_alert() -> None:
    values = VARIANTS["everything"]
    exporter = one("Deployment", values)["spec"]["template"]["spec"]["containers"][1]
    assert exporter["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm", "readOnly": True}]  # noqa: S108
    (excluded,) = [each.split("=", 1)[1] for each in exporter["args"] if "mount-points-exclude" in each]
    assert not re.match(excluded, "/dev/shm")  # noqa: S108
    (endpoint,) = [each for each in one("PodMonitor", values)["spec"]["podMetricsEndpoints"] if "shm" in each["port"]]
    rules = (CHART / "monitoring" / "rules.yml").read_text()
    (job,) = set(re.findall(r'node_filesystem_size_bytes\{job="([^"]+)"', rules))
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": job}]
    kept = endpoint["metricRelabelings"][0]["regex"]
    assert all(re.fullmatch(kept, name) for name in re.findall(r"node_filesystem_\w+", rules))


def test_the_chart_has_files_and_no_links() -> None:
    """Flux does not apply symbolic links."""
    assert not [path for path in CHART.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("name", ["rules.yml", "dashboard.json"])
@pytest.mark.parametrize("content", ["", None], ids=["empty", "missing"])
def test_a_file_without_content_fails_the_render(tmp_path: Path, name: str, content: str | None) -> None:
    copy = shutil.copytree(CHART, tmp_path / CHART.name)
    (copy / "monitoring" / name).unlink()
    if content is not None:
        (copy / "monitoring" / name).write_text(content)
    with pytest.raises(helm_python.HelmError, match=f"monitoring/{name} is missing from the chart, or empty"):
        helm_python.Chart.load(copy).render(VARIANTS["everything"], name="vision", namespace=NAMESPACE)


def test_monitoring_is_what_compose_mounts() -> None:
    values = VARIANTS["everything"]
    shared = CHART / "monitoring"
    rule = one("PrometheusRule", values)
    assert rule["spec"] == yaml.safe_load((shared / "rules.yml").read_text())
    prefix = "https://git.example.org/deeplab/"
    prefixed: Object = {"monitoring": {"prometheusRule": {"enabled": True, "runbookPrefix": prefix}}}
    alerts = [each for group in one("PrometheusRule", prefixed)["spec"]["groups"] for each in group["rules"]]
    runbooks = [each["annotations"]["runbook_url"] for each in alerts if "alert" in each]
    assert all(each.startswith(f"{prefix}deploy/monitoring/README.md#deeplab") for each in runbooks)
    # Without a prefix there is no link, because it would be broken.
    assert "runbook_url" not in json.dumps(rule)
    (dashboard,) = one("ConfigMap", values, name=f"{NAME}-dashboard")["data"].values()
    assert dashboard.strip() == (shared / "dashboard.json").read_text().strip()
    monitor = one("PodMonitor", values)
    # The rules select job="deeplab-triton".
    labels = one("Deployment", values)["spec"]["template"]["metadata"]["labels"]
    assert labels[monitor["spec"]["jobLabel"]] == "deeplab-triton"
