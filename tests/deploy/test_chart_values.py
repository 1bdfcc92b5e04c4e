"""Values that the chart rejects."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
import yaml
from chart import CHART, DEFAULTS, LEAVES, NAMESPACE, OPEN, VARIANTS, chart, job, objects, paths, refusal, server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from chart import Object

pytestmark = pytest.mark.deploy

BALANCED: Object = {"service": {"type": "LoadBalancer"}}
ROUTED: Object = {
    "gateway": {"parentRefs": [{"name": "public", "namespace": "gateways"}], "grpc": {"enabled": True}},
}
GATEWAYS: Object = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "gateways"}}}
OUTSIDE: Object = {"ipBlock": {"cidr": "10.0.0.0/8"}}

TRACING: Object = {"enabled": True, "endpoint": "http://collector.observability.svc:4318/v1/traces"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"autoscaling": {"minReplicas": 5}}, "autoscaling.minReplicas 5 is above autoscaling.maxReplicas 4"),
        ({"autoscaling": {"type": "keda"}}, "autoscaling.keda.serverAddress is empty"),
        ({"updateStrategy": {"maxSurge": 0}}, "no pod could be replaced"),
        ({"server": {"grpcMaxConnectionAgeSeconds": 28}}, "28 is too high for server.preStopSeconds 30"),
        ({"server": {"preStopSeconds": 20}}, "it must be below 18"),
        ({"models": {"source": "imageVolume"}}, "models.imageVolume.reference is empty"),
        ({"models": {"source": "objectStore"}}, "models.objectStore.path is empty"),
        ({"models": {"builder": {"enabled": False}}}, "a new claim would stay empty"),
        ({"models": {"pvc": {"accessModes": ["ReadOnlyMany"]}}}, "the builder cannot write to such a claim"),
        ({"gateway": {"grpc": {"enabled": True}}}, "gateway.parentRefs is empty"),
        (
            {"gateway": {"parentRefs": [{"name": "a"}], "grpc": {"enabled": True}, "http": {"enabled": True}}},
            "they must name different hosts",
        ),
        (
            {
                "gateway": {
                    "parentRefs": [{"name": "a"}],
                    "grpc": {"enabled": True, "hostnames": ["a.org", "b.org"]},
                    "http": {"enabled": True, "hostnames": ["b.org"]},
                }
            },
            "host name b.org is in gateway.grpc.hostnames and in gateway.http.hostnames",
        ),
        (
            {"service": {"type": "LoadBalancer"}},
            "service.type LoadBalancer: networkPolicy.allowedFrom blocks its callers",
        ),
        ({"service": {"type": "NodePort"}}, "service.type NodePort: networkPolicy.allowedFrom blocks its callers"),
        # A namespace has no callers from outside the cluster.
        (BALANCED | {"networkPolicy": {"allowedFrom": [GATEWAYS]}}, "add an ipBlock"),
        (ROUTED, "gateway.parentRefs public: networkPolicy.allowedFrom blocks the gateway"),
        ({"models": {"pvc": {"accessModes": ["ReadWriteOncePod"]}}}, "the builder cannot mount the claim"),
        ({"loadTest": {"extraArgs": ["--headless"]}}, "would repeat the run"),
        ({"loadTest": {"extraArgs": ["--autoquit=3"]}}, "would repeat the run"),
        ({"loadTest": {"env": {"LOCUST_HEADLESS": "true"}}}, "would repeat the run"),
        ({"models": {"builder": {"extraEnv": [{"name": "BUILD", "value": "a"}]}}}, "change models.builder.revision"),
        ({"autoscaling": {"keda": {"authModes": "bearer"}}}, "authenticationRef to the name of a TriggerAuth"),
        ({"resources": {"requests": {"memory": "25Gi"}}}, "resources.requests.memory 25Gi is above"),
        (
            {"models": {"builder": {"resources": {"limits": {"memory": "2Gi"}}}}},
            "models.builder.resources.requests.mem",
        ),
        ({"loadTest": {"resources": {"requests": {"memory": "1025Mi"}}}}, "above loadTest.resources.limits.memory 1Gi"),
        ({"models": {"builder": {"precision": "int8"}}}, "int8 needs a claim with calibration pictures"),
        ({"models": {"builder": {"calibration": {"existingClaim": "a"}}}}, "the other precisions do not use one"),
        (
            {"models": {"builder": {"precision": "int8", "calibration": {"existingClaim": "a"}}}},
            "int8 runs only on a CPU; set gpu.enabled to false",
        ),
        ({"gpu": {"enabled": False}, "models": {"builder": {"precision": "fp16"}}}, "use fp32, bf16 or int8"),
        ({"gpu": {"enabled": False}, "models": {"builder": {"postprocessDevice": "cpu"}}}, "leave the first empty"),
        ({"initResources": {"requests": {"memory": "1Gi"}}}, "above initResources.limits.memory 512Mi"),
        *(
            ({labels: {label: "mine"}}, f"{labels} {label}: ")
            for labels in ("podLabels", "commonLabels")
            for label in ("app.kubernetes.io/name", "app.kubernetes.io/component", "helm.sh/chart")
        ),
        ({"server": {"tracing": {"enabled": True}}}, "server.tracing.endpoint is empty"),
        ({"server": {"tracing": TRACING}}, "add the receiver's peers to server.tracing.to"),
        (
            {"server": {"tracing": TRACING | {"endpoint": "http://localhost.example.org:4318/v1/traces"}}},
            "add the receiver's peers to server.tracing.to",
        ),
        (
            {"server": {"tracing": TRACING | {"to": [GATEWAYS]}, "extraArgs": ["--trace-config=rate=5"]}},
            "server.extraArgs --trace-config: set server.tracing",
        ),
        ({"server": {"extraArgs": ["--model-store=/else"]}}, "server.extraArgs --model-store: set models.source"),
        # tritonserver accepts abbreviated options.
        (
            {"server": {"extraArgs": ["--exit-timeout=90"]}},
            "server.extraArgs --exit-timeout: set server.exitTimeoutSec",
        ),
    ],
)
def test_values_that_cannot_work_together_are_refused(values: Object, message: str) -> None:
    assert message in refusal(values)


@pytest.mark.parametrize(
    "values",
    [
        BALANCED | {"networkPolicy": {"allowedFrom": [OUTSIDE]}},
        BALANCED | {"networkPolicy": {"enabled": False}},
        ROUTED | {"networkPolicy": {"allowedFrom": [GATEWAYS]}},
        ROUTED | {"networkPolicy": {"allowedFrom": [OUTSIDE]}},
        # Its pods may be those of the namespace.
        {"gateway": ROUTED["gateway"] | {"parentRefs": [{"name": "public"}, {"name": "own", "namespace": NAMESPACE}]}},
        {"server": {"tracing": TRACING}, "networkPolicy": {"enabled": False}},
        {"server": {"tracing": TRACING}, "networkPolicy": {"extraEgress": [{"to": [GATEWAYS]}]}},
        # In the same pod.
        *(
            {"server": {"tracing": TRACING | {"endpoint": f"http://{host}/v1/traces"}}}
            for host in ("localhost:4318", "127.0.0.1", "[::1]:4318")
        ),
        # Spans in Triton's own format.
        {"server": {"extraArgs": ["--trace-config=mode=triton"]}},
    ],
)
def test_a_way_that_the_policy_lets_through_is_rendered(values: Object) -> None:
    assert objects(values)


def test_an_option_that_another_value_sets_is_refused() -> None:
    """tritonserver uses the last of two, but the grace period, probes and Services would use the first."""
    everything = server(VARIANTS["everything"])["args"]
    passed = {argument.partition("=")[0] for argument in everything} - {"--log-verbose"}
    entrypoint = (CHART.parents[1] / "entrypoint.sh").read_text()
    assert "--model-repository=" in entrypoint
    for option in passed | {"--model-repository", "--http-port", "--grpc-port", "--metrics-port"}:
        message = refusal({"server": {"extraArgs": ["--log-verbose=1", f"{option}=7"]}})
        assert f"server.extraArgs {option}: " in message


def builder_of(values: Object) -> Object:
    (builder,) = job(values)["spec"]["template"]["spec"]["containers"]
    return builder


def test_a_variable_of_ones_own_takes_the_place_of_the_charts() -> None:
    """Server-side apply rejects duplicate names."""
    all_variables: Object = {"gpu": {"enabled": False}, "server": {"tracing": TRACING | {"to": [GATEWAYS]}}}
    names = {
        where: [each["name"] for each in container["env"] if each["name"] != "BUILD"]
        for where, container in (("server", server(all_variables)), ("builder", builder_of(all_variables)))
    }
    mine = {where: [{"name": name, "value": "mine"} for name in found] for where, found in names.items()}
    assert (len(mine["server"]), len(mine["builder"])) == (6, 2)
    values: Object = all_variables | {"extraEnv": mine["server"], "models": {"builder": {"extraEnv": mine["builder"]}}}
    assert server(values)["env"] == mine["server"]
    assert [each for each in builder_of(values)["env"] if each["name"] != "BUILD"] == mine["builder"]


def nested(path: tuple[str, ...], value: object) -> Object:
    for key in reversed(path):
        value = {key: value}
    assert isinstance(value, dict)
    return value


GROUPS = [(), *(path for path, value in paths(DEFAULTS) if isinstance(value, dict) and path not in OPEN)]


@pytest.mark.parametrize("group", GROUPS, ids=".".join)
def test_an_unknown_key_is_refused(group: tuple[str, ...]) -> None:
    message = refusal(nested((*group, "replicasCount"), 3))
    assert "replicasCount" in message


@pytest.mark.parametrize("leaf", LEAVES, ids=".".join)
def test_a_value_of_another_type_is_refused(leaf: tuple[str, ...]) -> None:
    assert leaf[-1] in refusal(nested(leaf, {"of": "another type"}))


# Null, so that OpenShift assigns them.
NULLABLE = {("podSecurityContext", key) for key in ("runAsUser", "runAsGroup", "fsGroup")}


def test_a_value_of_null_is_refused() -> None:
    """Helm drops null before it validates, and a template would treat a missing value as 0, false or empty."""
    every = {path for path, _ in paths(DEFAULTS) if not any(path[: len(group)] == group for group in OPEN)} | OPEN
    for path in every - NULLABLE:
        assert f"missing property '{path[-1]}'" in refusal(nested(path, None)), path
    assert objects(VARIANTS["bare"]), "with null for what may be null"


@pytest.mark.parametrize(
    "values",
    [
        {"probes": {"startup": {"failureThreshold": 0}}},
        {"podDisruptionBudget": {"maxUnavailable": 0}},  # no node could be drained
        {"podDisruptionBudget": {"maxUnavailable": "0%"}},
        {"resources": {"requests": {"cpu": None}}},  # OpenMP would get none
        {"resources": {"limits": {"memory": None}}},
        {"autoscaling": {"minReplicas": 0}},
        {"autoscaling": {"keda": {"fallbackReplicas": 0}}},
        {"gpu": {"count": 0}},
        {"image": {"digest": "sha256:abc"}},
        {"fullnameOverride": "1st"},
        {"sharedMemory": {"size": "4G"}},
        {"server": {"tracing": {"endpoint": "http://collector:4318"}}},  # Triton adds no path
        {"server": {"tracing": {"endpoint": "collector:4318/v1/traces"}}},
        {"server": {"tracing": {"rate": 0}}},
    ],
    ids=json.dumps,
)
def test_an_impossible_value_is_refused(values: Object) -> None:
    refusal(values)


def schemas(schema: Object, path: str = "values") -> Iterator[tuple[str, Object]]:
    """Yield every schema within a schema, with its path."""
    yield path, schema
    for group in ("properties", "definitions"):
        for key, inner in schema.get(group, {}).items():
            yield from schemas(inner, f"{path}.{key}")
    if "items" in schema:
        yield from schemas(schema["items"], f"{path}[]")


# Types of Kubernetes, which kubernetes_validate and the API server validate.
KUBERNETES = re.compile(
    r"values\.(extraContainers\[\]|volumes\[\]|env\[\]\.valueFrom|peers\[\]\.(pod|namespace)Selector|affinity\.\w+|global)"
)


def test_the_schema_leaves_open_only_what_kubernetes_defines() -> None:
    whole = json.loads((CHART / "values.schema.json").read_text())
    for path, schema in schemas(whole):
        if schema.get("type") == "object":
            is_open = schema.get("additionalProperties") not in (False, {"type": "string"})
            assert is_open == bool(KUBERNETES.fullmatch(path)), path
        assert schema.get("type") != "array" or "items" in schema, path


DATE = "20261123"  # which YAML would take for a number


@pytest.mark.parametrize(
    ("values", "places"),
    [
        ({"models": {"builder": {"enabled": False}, "pvc": {"existingClaim": DATE, "path": DATE}}}, 2),
        ({"models": {"source": "imageVolume", "imageVolume": {"reference": DATE, "path": DATE}}}, 2),
        ({"models": {"source": "objectStore", "objectStore": {"path": "b", "existingSecret": DATE}}}, 1),
        ({"models": {"source": "objectStore", "objectStore": {"path": "b", "options": {"region": DATE}}}}, 1),
        ({"serviceAccount": {"name": DATE}}, 2),
        ({"priorityClassName": DATE, "gpu": {"runtimeClassName": DATE}}, 2),
        ({"autoscaling": {"type": "keda", "keda": {"serverAddress": "http://p", "authenticationRef": DATE}}}, 1),
    ],
)
def test_a_text_of_digits_stays_a_text(values: Object, places: int) -> None:
    rendered = json.dumps(objects(values))
    assert rendered.count(f'"{DATE}"') >= places
    assert not re.search(rf"[ \[]{DATE}", rendered)


def test_a_release_and_a_namespace_may_have_any_name() -> None:
    rendered = chart().render(VARIANTS["everything"], name="on", namespace=DATE)
    texts = [text for path, text in rendered.items() if path.endswith(".yaml")]
    for each in (document for text in texts for document in yaml.safe_load_all(text) if document):
        assert each["metadata"]["namespace"] == DATE
        assert each["metadata"]["labels"]["app.kubernetes.io/instance"] == "on"


def test_an_option_that_rclone_would_not_read_is_refused() -> None:
    store = {"path": "b", "options": {"env-auth": "true"}}
    assert "env-auth" in refusal({"models": {"source": "objectStore", "objectStore": store}})
