"""The server's pods in the chart: resources, readiness and termination."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from chart import (
    CHART,
    NAME,
    NAMESPACE,
    VARIANTS,
    chart,
    containers,
    objects,
    one,
    pods,
    refusal,
    server,
)

if TYPE_CHECKING:
    from chart import Object

pytestmark = pytest.mark.deploy

UNITS = {"Mi": 2**20, "Gi": 2**30}
DOCKERFILE = (CHART.parents[1] / "Dockerfile").read_text()


def amount(quantity: str) -> int:
    return int(quantity[:-2]) * UNITS[quantity[-2:]]


def test_one_gpu_a_pod_and_none_without() -> None:
    assert server()["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert server(VARIANTS["everything"])["resources"]["limits"]["nvidia.com/mig-3g.40gb"] == 1
    without = server(VARIANTS["cpu"])
    assert set(without["resources"]["limits"]) == {"memory"}
    assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in without["env"]
    assert "tolerations" not in one("Deployment", VARIANTS["cpu"])["spec"]["template"]["spec"]
    for name in ("defaults", "everything"):
        # Containers that only wait or build must not hold a GPU.
        gpus = [
            container["name"]
            for _, pod in pods(objects(VARIANTS[name]))
            for container in containers(pod)
            if any(resource.startswith("nvidia.com/") for resource in container["resources"]["limits"])
        ]
        assert gpus == ["triton"]


def test_a_claim_takes_the_place_of_the_device_plugins_gpu() -> None:
    spec = one("Deployment", VARIANTS["claimed gpu"])["spec"]["template"]["spec"]
    assert spec["resourceClaims"] == [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]
    resources = spec["containers"][0]["resources"]
    assert resources["claims"] == [{"name": "gpu"}]
    assert set(resources["requests"]) == {"cpu", "memory"}
    assert set(resources["limits"]) == {"memory"}
    # A server on the CPU claims none.
    on_cpu = one("Deployment", {"gpu": {"enabled": False, "resourceClaims": [{"name": "gpu"}]}})["spec"]["template"]
    assert "resourceClaims" not in on_cpu["spec"]
    assert "claims" not in on_cpu["spec"]["containers"][0]["resources"]


def test_every_container_can_have_a_limit_of_cores() -> None:
    """A quota on limits rejects pods without one."""

    def cores(number: int) -> Object:
        return {"limits": {"cpu": str(number)}}

    limited: Object = {
        "resources": cores(8),
        "initResources": cores(1),
        "models": {"builder": {"resources": cores(2)}},
        "monitoring": {"sharedMemoryExporter": {"enabled": True, "resources": cores(3)}},
        "test": {"resources": cores(4)},
        "loadTest": {"enabled": True, "resources": cores(5)},
    }
    store: Object = {"models": VARIANTS["object store"]["models"]}
    limits = {
        container["name"]: container["resources"]["limits"].get("cpu")
        for values in (limited, limited | store)
        for _, pod in pods(objects(values))
        for container in containers(pod)
    }
    assert limits == {
        "triton": "8",
        "wait-for-models": "1",
        "copy-models": "1",
        "builder": "2",
        "shm-exporter": "3",
        "segment": "4",
        "locust": "5",
    }


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
    assert {"name": "shm", "mountPath": "/dev/shm"} in server()["volumeMounts"]  # noqa: S108 - the pod's
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
    # The time limit of curl in alive.sh must end first, because otherwise the probe would not name what hangs.
    (limit,) = re.findall(r"--max-time (\d+)", script.read_text())
    assert liveness["timeoutSeconds"] > int(limit)


def test_arguments_can_be_left_to_triton() -> None:
    assert server(VARIANTS["bare"])["args"] == ["--exit-timeout-secs=30"]
    assert server(VARIANTS["everything"])["args"][-1] == "--log-verbose=1"


def test_connections_age_in_milliseconds() -> None:
    arguments = server({"server": {"grpcMaxConnectionAgeSeconds": 7, "grpcMaxConnectionAgeGraceSeconds": 3}})["args"]
    assert {"--grpc-max-connection-age=7000", "--grpc-max-connection-age-grace=3000"} <= set(arguments)


def test_a_server_traces_under_the_name_of_its_release() -> None:
    def variables(values: Object) -> dict[str, str]:
        return {each["name"]: each["value"] for each in server(values)["env"] if "value" in each}

    endpoint = "http://localhost:4318/v1/traces"
    tracing: Object = {"enabled": True, "endpoint": endpoint, "rate": 2_000_000}
    found = {
        "DEEPLAB_TRACE_URL": endpoint,
        "DEEPLAB_TRACE_RATE": "2000000",
        "OTEL_SERVICE_NAME": NAME,
        "OTEL_RESOURCE_ATTRIBUTES": f"k8s.namespace.name={NAMESPACE}",
    }
    assert variables({"server": {"tracing": tracing}}) == found
    assert variables({"server": {"tracing": tracing | {"enabled": False}}}) == {}
    entrypoint = (CHART.parents[1] / "entrypoint.sh").read_text()
    for name in found.keys() - {"OTEL_RESOURCE_ATTRIBUTES"}:  # which Triton's library reads
        assert f"${{{name}:-" in entrypoint


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


@pytest.mark.parametrize(("target", "names"), [("client", {"locust"}), ("triton", {"builder"})])
def test_commands_run_where_their_image_has_the_files(target: str, names: set[str]) -> None:
    stage = re.findall(rf"^FROM \S+ AS {target}$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL)[0]
    (folder,) = re.findall(r"^WORKDIR (\S+)$", stage, re.MULTILINE)
    found = [each for _, pod in pods(objects(EVERYTHING)) for each in containers(pod) if each["name"] in names]
    assert {each["workingDir"] for each in found} == {folder}


def test_the_chart_names_every_image_that_its_pods_may_pull() -> None:
    """A cluster without internet copies these images into its registry."""
    named = yaml.safe_load(chart().metadata["annotations"]["artifacthub.io/images"])
    # The defaults, without a digest or another registry.
    exporter: Object = {"monitoring": {"sharedMemoryExporter": {"enabled": True}}}
    found = [objects(values) for values in ({}, VARIANTS["object store"], exporter)]
    images = {container["image"] for each in found for _, pod in pods(each) for container in containers(pod)}
    assert {each["image"] for each in named} == images


def test_the_image_is_of_the_charts_version() -> None:
    assert server()["image"] == f"deeplab-triton:{chart().metadata['appVersion']}"
