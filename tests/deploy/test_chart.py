"""The chart's objects: valid on every Kubernetes that it admits, and in agreement with each other.

Rendered only, no cluster was asked. kubernetes_validate knows the fields of built-in objects and cloudcoil those of the
operators'. What neither knows is asserted here: names that must be found elsewhere, quantities, arithmetic.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING, Any

import helm_python
import kubernetes_validate
import pytest
import yaml
from chart import (
    CHART,
    NAME,
    NAMESPACE,
    RELEASE,
    VARIANTS,
    chart,
    containers,
    files,
    matches,
    objects,
    one,
    pods,
    refusal,
    server,
)
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as operator

if TYPE_CHECKING:
    from pathlib import Path

    from chart import Object

pytestmark = pytest.mark.deploy

# A field that both know is in all versions between. Image volumes are beta from 1.33.
OLDEST, NEWEST = "1.30", "1.37"
SINCE = {"image volume": "1.33"}
OPERATORS: dict[str, Any] = {
    "PodMonitor": operator.PodMonitor,
    "PrometheusRule": operator.PrometheusRule,
    "ScaledObject": keda.ScaledObject,
}
ROUTES = ("GRPCRoute", "HTTPRoute")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi)?")
UNITS = {"Mi": 2**20, "Gi": 2**30}

DOCKERFILE = (CHART.parents[1] / "Dockerfile").read_text()

variants = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)


def ports_of(deployment: Object) -> list[Object]:
    found = deployment["spec"]["template"]["spec"]["containers"]
    return [port for container in found for port in container.get("ports", [])]


def amount(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


@variants
def test_helm_lints_it(values: Object) -> None:
    report = helm_python.lint(CHART, values, strict=True, namespace=NAMESPACE)
    assert report["errors"] == []
    # "icon is recommended" is information.
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_object_is_valid(variant: str) -> None:
    for each in objects(VARIANTS[variant]):
        if each["kind"] in OPERATORS:
            model = OPERATORS[each["kind"]].model_validate(each)
            # What the operator's type does not know gets lost on the way there and back.
            assert model.model_dump(mode="json", by_alias=True, exclude_unset=True) == each
        elif each["kind"] not in ROUTES:
            for version in (SINCE.get(variant, OLDEST), NEWEST):
                kubernetes_validate.validate(each, version, strict=True)


def test_the_chart_admits_the_oldest_version_and_what_providers_append() -> None:
    assert chart().metadata["kubeVersion"] == f">={OLDEST}.0-0"


def test_every_template_is_rendered_by_some_variant() -> None:
    shown = {path for values in VARIANTS.values() for path, text in files(values).items() if text.strip()}
    templates = {str(path.relative_to(CHART / "templates")) for path in (CHART / "templates").rglob("[!_]*.*")}
    assert shown == templates


@variants
def test_objects_are_of_the_release(values: Object) -> None:
    found = objects(values)
    keys = [(each["kind"], each["metadata"]["name"]) for each in found]
    assert len(set(keys)) == len(keys)
    for each in found:
        metadata = each["metadata"]
        assert metadata["namespace"] == NAMESPACE
        assert metadata["labels"]["app.kubernetes.io/instance"] == RELEASE
        assert metadata["labels"]["app.kubernetes.io/name"] == "deeplab-triton"
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", metadata["name"]), metadata["name"]


def test_names_of_a_long_release_stay_within_63_characters_and_apart() -> None:
    values = VARIANTS["everything"]
    first, second = (objects(values, release="r" * 52 + end) for end in "ab")
    names = [{each["metadata"]["name"] for each in found} for found in (first, second)]
    assert all(len(name) <= 63 for name in names[0])
    assert not names[0] & names[1]


@variants
def test_selectors_find_exactly_their_own_pods(values: Object) -> None:
    found = objects(values)
    labels = [pod["metadata"]["labels"] for _, pod in pods(found)]
    for each in found:
        spec = each.get("spec", {})
        match each["kind"]:
            case "Deployment":
                selector = spec["selector"]["matchLabels"]
                assert matches(selector, spec["template"]["metadata"]["labels"])
                # It can never change: no version, no value of the user's.
                assert set(selector) == {f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")}
            case "Service":
                selector = spec["selector"]
            case "PodMonitor" | "PodDisruptionBudget":
                selector = spec["selector"]["matchLabels"]
            case "NetworkPolicy":
                selector = spec["podSelector"]["matchLabels"]
            case _:
                continue
        assert sum(matches(selector, each_labels) for each_labels in labels) == 1, each["metadata"]["name"]


@variants
def test_ports_by_name_exist(values: Object) -> None:
    found = objects(values)
    templates = list(pods(found))
    for each in found:
        if each["kind"] == "Service":
            (pod,) = [pod for _, pod in templates if matches(each["spec"]["selector"], pod["metadata"]["labels"])]
            named = {port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", [])}
            assert {port["targetPort"] for port in each["spec"]["ports"]} <= named
        if each["kind"] == "PodMonitor":
            scraped = [endpoint["port"] for endpoint in each["spec"]["podMetricsEndpoints"]]
            assert scraped[0] == "metrics"
            assert set(scraped) <= {port["name"] for port in ports_of(one("Deployment", values))}
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == NAME:
            opened = {port["port"] for rule in each["spec"]["ingress"] for port in rule["ports"]}
            assert opened == {port["name"] for port in ports_of(one("Deployment", values))}
    for _, pod in templates:
        for container in containers(pod):
            named = {port["name"] for port in container.get("ports", [])}
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                asked = container.get(probe, {})
                for kind in ("httpGet", "tcpSocket"):
                    if kind in asked:
                        assert asked[kind]["port"] in named


@variants
def test_volumes_are_there_and_mounted_once(values: Object) -> None:
    found = objects(values)
    claims = {each["metadata"]["name"] for each in found if each["kind"] == "PersistentVolumeClaim"}
    for _, pod in pods(found):
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        used: set[str] = set()
        for container in containers(pod):
            mounts = container.get("volumeMounts", [])
            paths = [mount["mountPath"] for mount in mounts]
            assert len(set(paths)) == len(paths)
            used |= {mount["name"] for mount in mounts}
        assert used == set(volumes)
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume and volume["name"] == "models":
                existing = values.get("models", {}).get("pvc", {}).get("existingClaim")
                assert volume["persistentVolumeClaim"]["claimName"] in claims | {existing}


@variants
def test_every_container_is_confined(values: Object) -> None:
    for _, pod in pods(objects(values)):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        if values is not VARIANTS["bare"]:
            assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (1000, 1000)
        for container in containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in context


@variants
def test_every_container_says_what_it_needs(values: Object) -> None:
    for _, pod in pods(objects(values)):
        for container in containers(pod):
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys()
            assert "memory" in resources["limits"]
            for group in resources.values():
                for resource, quantity in group.items():
                    assert QUANTITY.fullmatch(str(quantity)), (resource, quantity)
            # Extended resources cannot be overcommitted: request and limit must be equal.
            for resource in resources["limits"].keys() - {"cpu", "memory"}:
                assert resources["requests"][resource] == resources["limits"][resource]


def test_one_gpu_a_pod_and_none_without() -> None:
    assert server()["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert server(VARIANTS["everything"])["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == 1
    without = server(VARIANTS["cpu"])
    assert set(without["resources"]["limits"]) == {"memory"}
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in without["env"]
    assert "tolerations" not in one("Deployment", VARIANTS["cpu"])["spec"]["template"]["spec"]
    for name in ("defaults", "everything"):
        # What only waits or builds must not hold a GPU.
        gpus = [
            container["name"]
            for _, pod in pods(objects(VARIANTS[name]))
            for container in containers(pod)
            if any(resource.startswith("nvidia.com/") for resource in container["resources"]["limits"])
        ]
        assert gpus == ["triton"]


def test_openmp_gets_the_cores_that_the_pod_has() -> None:
    def source(values: Object | None = None) -> Object:
        (found,) = [each for each in server(values)["env"] if each["name"] == "OMP_NUM_THREADS"]
        return found["valueFrom"]["resourceFieldRef"]

    assert source() == {"resource": "requests.cpu", "divisor": "1"}
    assert source(VARIANTS["everything"]) == {"resource": "limits.cpu", "divisor": "1"}


def test_shared_memory_is_part_of_the_memory() -> None:
    spec = one("Deployment")["spec"]["template"]["spec"]
    (shared,) = [volume["emptyDir"] for volume in spec["volumes"] if volume["name"] == "shm"]
    assert shared["medium"] == "Memory"
    assert amount(shared["sizeLimit"]) + amount("6Gi") <= amount(server()["resources"]["limits"]["memory"])
    assert {"name": "shm", "mountPath": "/dev/shm"} in server()["volumeMounts"]  # noqa: S108 the pod's
    message = refusal({"resources": {"limits": {"memory": "9Gi"}}})
    assert "resources.limits.memory 9Gi" in message
    assert "10240Mi" in message


def test_the_grace_period_is_the_sum_of_what_happens_in_it() -> None:
    for sleep, timeout in ((30, 30), (0, 5), (25, 90)):
        values = {"server": {"preStopSeconds": sleep, "exitTimeoutSeconds": timeout}}
        spec = one("Deployment", values)["spec"]["template"]["spec"]
        assert spec["terminationGracePeriodSeconds"] == sleep + timeout + 15
        container = server(values)
        assert f"--exit-timeout-secs={timeout}" in container["args"]
        assert container.get("lifecycle") == ({"preStop": {"sleep": {"seconds": sleep}}} if sleep else None)


def test_a_loading_pod_is_left_alone_and_a_dead_stub_restarts_it() -> None:
    container = server()
    startup = container["startupProbe"]
    assert startup["httpGet"] == {"path": "/v2/health/ready", "port": "http"}
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    assert container["readinessProbe"]["httpGet"] == {"path": "/v2/health/ready", "port": "http"}
    liveness = container["livenessProbe"]
    script = CHART.parents[2] / liveness["exec"]["command"][0].removeprefix("/opt/deeplab/")
    assert script.is_file()
    # curl's own limit within alive.sh must run out first, or the probe would not say what hangs.
    (limit,) = re.findall(r"--max-time (\d+)", script.read_text())
    assert liveness["timeoutSeconds"] > int(limit)


def test_arguments_can_be_left_to_triton() -> None:
    assert server(VARIANTS["bare"])["args"] == ["--exit-timeout-secs=30"]
    assert server(VARIANTS["everything"])["args"][-1] == "--log-verbose=1"


def test_connections_age_in_milliseconds() -> None:
    arguments = server({"server": {"grpcMaxConnectionAgeSeconds": 7, "grpcMaxConnectionAgeGraceSeconds": 3}})["args"]
    assert {"--grpc-max-connection-age=7000", "--grpc-max-connection-age-grace=3000"} <= set(arguments)


def test_both_services_reach_the_server() -> None:
    balanced, headless = one("Service"), one("Service", name=f"{NAME}-headless")
    assert "clusterIP" not in balanced["spec"]
    assert headless["spec"]["clusterIP"] == "None"
    assert balanced["spec"]["ports"] == headless["spec"]["ports"]
    assert {port["name"]: port["port"] for port in balanced["spec"]["ports"]} == {"http": 8000, "grpc": 8001}
    # Metrics have no authentication: the PodMonitor goes to the pods.
    everything = one("Service", VARIANTS["everything"])["spec"]
    assert (everything["type"], everything["loadBalancerSourceRanges"]) == ("LoadBalancer", ["10.0.0.0/8"])
    assert "metrics" not in {port["name"] for port in everything["ports"]}


SURGE: Object = {"updateStrategy": {"maxSurge": 2, "maxUnavailable": "25%"}}
KEDA = VARIANTS["keda"]
EVERYTHING = VARIANTS["everything"]


@pytest.mark.parametrize(
    ("values", "kind", "name", "path", "fact"),
    [
        (SURGE, "Deployment", NAME, "strategy.rollingUpdate", SURGE["updateStrategy"]),
        ({}, "Deployment", NAME, "strategy.rollingUpdate", {"maxSurge": 1, "maxUnavailable": 0}),
        # A pod that warms up, or that is to stop, has no address.
        ({}, "Service", f"{NAME}-headless", "publishNotReadyAddresses", None),
        (EVERYTHING, "PodDisruptionBudget", NAME, "unhealthyPodEvictionPolicy", "AlwaysAllow"),
        (EVERYTHING, "HTTPRoute", NAME, "rules.0.matches", [{"path": {"type": "PathPrefix", "value": "/v2"}}]),
        (KEDA, "ScaledObject", NAME, "triggers.0.metadata.ignoreNullValues", "false"),
        (KEDA, "ScaledObject", NAME, "triggers.1.metadata.ignoreNullValues", "false"),
        (KEDA, "ScaledObject", NAME, "fallback", {"failureThreshold": 4, "replicas": 4}),
    ],
)
def test_a_rendered_fact(values: Object, kind: str, name: str, path: str, fact: object) -> None:
    found: Any = one(kind, values, name=name)["spec"]
    *above, last = path.split(".")
    for key in above:
        found = found[int(key) if key.isdigit() else key]
    assert found.get(last) == fact


@variants
def test_containers_write_only_where_they_can(values: Object) -> None:
    """The root file system is read-only, and HOME is /tmp in both images."""
    for _, pod in pods(objects(values)):
        for container in containers(pod):
            named = {each.get("value", "") for each in container["env"]} if "env" in container else set()
            named |= {part.partition("=")[2] for part in container.get("args", [])}
            writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
            if container["name"] in {"triton", "builder", "copy-models", "segment", "locust"}:
                assert "/tmp" in writable  # noqa: S108 the pod's
            for path in named:
                if path.startswith("/"):
                    assert any(path.startswith(f"{folder}/") for folder in writable), (container["name"], path)


@variants
def test_what_has_no_gpu_asks_for_none_either(values: Object) -> None:
    """The server's image says NVIDIA_VISIBLE_DEVICES=all, which NVIDIA's runtime obeys where it is a node's default."""
    image = server(values)["image"]
    for _, pod in pods(objects(values)):
        for container in containers(pod):
            if container["image"] == image and not any(
                "nvidia.com/" in name for name in container["resources"]["limits"]
            ):
                assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"], container["name"]


@pytest.mark.parametrize(("target", "names"), [("client", {"locust"}), ("triton", {"builder"})])
def test_commands_run_where_their_image_has_the_files(target: str, names: set[str]) -> None:
    stage = re.findall(rf"^FROM \S+ AS {target}$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)[0]
    (folder,) = re.findall(r"^WORKDIR (\S+)$", stage, re.MULTILINE)
    found = [each for _, pod in pods(objects(EVERYTHING)) for each in containers(pod) if each["name"] in names]
    assert {each["workingDir"] for each in found} == {folder}


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
    adapter = yaml.safe_load((CHART.parent / "prometheus-adapter-values.yaml").read_text())
    assert {rule["name"]["as"] for rule in adapter["rules"]["custom"]} == set(targets)
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 600
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 8)


def test_keda_asks_for_this_release_alone() -> None:
    spec = one("ScaledObject", VARIANTS["keda"])["spec"]
    for trigger in spec["triggers"]:
        query = trigger["metadata"]["query"]
        assert trigger["metricType"] == "AverageValue"  # the only one that a fallback holds for
        assert trigger["authenticationRef"] == {"name": "prometheus"}
        assert f'namespace="{NAMESPACE}"' in query
        (pattern,) = set(re.findall(r'pod=~"([^"]+)"', query))
        assert re.fullmatch(pattern, f"{NAME}-7d9c5bb6f4-x2x9p")
        assert not re.fullmatch(pattern, f"other-{NAME}-7d9c5bb6f4-x2x9p")
        assert not re.fullmatch(pattern, f"{NAME}-locust-worker-7d9c5bb6f4-x2x9p")
        # An ensemble's own queue is always empty.
        (models,) = set(re.findall(r'model=~"([^"]+)"', query))
        assert re.fullmatch(models, "deeplabv3_resnet50")
        assert not re.fullmatch(models, "segment_resnet50")
    # KEDA 2.16 multiplies their whole part with the replicas of the fallback.
    assert [trigger["metadata"]["threshold"] for trigger in spec["triggers"]] == ["16", "100"]


def test_keda_shows_prometheus_who_asks() -> None:
    def modes(values: Object) -> set[str | None]:
        return {each["metadata"].get("authModes") for each in one("ScaledObject", values)["spec"]["triggers"]}

    assert modes(VARIANTS["keda"]) == {"bearer"}
    assert modes({"autoscaling": {"type": "keda", "keda": {"serverAddress": "http://a"}}}) == {None}


def test_the_notes_say_what_an_autoscaler_still_needs() -> None:
    def notes(values: Object) -> str:
        return files(values)["NOTES.txt"]

    scraped: Object = {"monitoring": {"podMonitor": {"enabled": True}}}
    for variant in ("hpa", "keda"):
        assert f"autoscaling.type {variant} reads series" in notes(VARIANTS[variant])
        assert "reads series" not in notes(VARIANTS[variant] | scraped)
    assert "reads series" not in notes({})


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
    (container,) = pod["spec"]["containers"]  # of several, `helm test --logs` could not choose
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


def test_shared_memory_is_told_of_under_the_name_that_the_alert_asks_for() -> None:
    values = VARIANTS["everything"]
    exporter = one("Deployment", values)["spec"]["template"]["spec"]["containers"][1]
    assert exporter["volumeMounts"] == [{"name": "shm", "mountPath": "/dev/shm", "readOnly": True}]  # noqa: S108
    (excluded,) = [each.split("=", 1)[1] for each in exporter["args"] if "mount-points-exclude" in each]
    assert not re.match(excluded, "/dev/shm")  # noqa: S108
    (endpoint,) = [each for each in one("PodMonitor", values)["spec"]["podMetricsEndpoints"] if "shm" in each["port"]]
    (rules,) = [path.read_text() for path in (CHART / "monitoring").glob("rules.yml")]
    (job,) = set(re.findall(r'node_filesystem_size_bytes\{job="([^"]+)"', rules))
    assert endpoint["relabelings"] == [{"targetLabel": "job", "replacement": job}]
    kept = endpoint["metricRelabelings"][0]["regex"]
    assert all(re.fullmatch(kept, name) for name in re.findall(r"node_filesystem_\w+", rules))


def test_monitoring_is_what_compose_mounts() -> None:
    values = VARIANTS["everything"]
    shared = CHART.parents[1] / "monitoring"
    rule = one("PrometheusRule", values)
    assert rule["spec"] == yaml.safe_load((shared / "rules.yml").read_text())
    prefix = "https://git.example.org/deeplab/"
    prefixed: Object = {"monitoring": {"prometheusRule": {"enabled": True, "runbookPrefix": prefix}}}
    alerts = [each for group in one("PrometheusRule", prefixed)["spec"]["groups"] for each in group["rules"]]
    runbooks = [each["annotations"]["runbook_url"] for each in alerts if "alert" in each]
    assert all(each.startswith(f"{prefix}deploy/monitoring/README.md#deeplab") for each in runbooks)
    (dashboard,) = one("ConfigMap", values, name=f"{NAME}-dashboard")["data"].values()
    assert dashboard.strip() == (shared / "dashboard.json").read_text().strip()
    monitor = one("PodMonitor", values)
    # The rules ask for job="deeplab-triton".
    labels = one("Deployment", values)["spec"]["template"]["metadata"]["labels"]
    assert labels[monitor["spec"]["jobLabel"]] == "deeplab-triton"


def test_versions_are_the_projects() -> None:
    project = (CHART.parents[2] / "pyproject.toml").read_text()
    assert f'version = "{chart().metadata["appVersion"]}"' in project
    assert server()["image"] == f"deeplab-triton:{chart().metadata['appVersion']}"
