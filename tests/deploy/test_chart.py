"""The chart's objects: valid on every supported Kubernetes, and consistent with each other.

Rendered only, no cluster was asked. kubernetes_validate knows the fields of built-in objects and cloudcoil those of the
operators'. What neither knows is asserted here: names that must be found elsewhere, quantities, arithmetic.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import helm_python
import kubernetes_validate
import pytest
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
    server,
)
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as operator

if TYPE_CHECKING:
    from chart import Object

pytestmark = pytest.mark.deploy

# A field of both versions is in all between. Image volumes are beta since 1.33, resource claims stable since 1.34.
OLDEST, NEWEST = "1.30", "1.37"
SINCE = {"image volume": "1.33", "claimed gpu": "1.34"}
OPERATORS: dict[str, Any] = {
    "PodMonitor": operator.PodMonitor,
    "PrometheusRule": operator.PrometheusRule,
    "ScaledObject": keda.ScaledObject,
}
ROUTES = ("GRPCRoute", "HTTPRoute")
QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|Ki|M|Mi|G|Gi)?")

variants = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS)


def ports_of(deployment: Object) -> list[Object]:
    found = deployment["spec"]["template"]["spec"]["containers"]
    return [port for container in found for port in container.get("ports", [])]


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
            # Fields that the operator's type does not have are lost in the round trip.
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


@pytest.mark.parametrize("variant", ["everything", "hpa", "keda", "object store"])
def test_common_labels_and_annotations_are_on_every_object_and_the_scheduler_on_every_pod(variant: str) -> None:
    mine: Object = VARIANTS[variant] | {
        "commonLabels": {"team": "perception"},
        "commonAnnotations": {"owner": "a"},
        "schedulerName": "packing",
        "podLabels": {},  # which come before the common ones
    }
    found = objects(mine)
    for each in found:
        assert each["metadata"]["labels"]["team"] == "perception"
        assert each["metadata"]["annotations"]["owner"] == "a"
    for _, pod in pods(found):
        assert pod["metadata"]["labels"]["team"] == "perception"
        assert pod["spec"]["schedulerName"] == "packing"
    assert not [pod for _, pod in pods(objects({})) if "schedulerName" in pod["spec"]]


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
                # A selector can never change, so it must have no version and no value of the user.
                assert set(selector) == {f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")}
            case "Service":
                selector = spec["selector"]
            case "PodMonitor" | "PodDisruptionBudget":
                selector = spec["selector"]["matchLabels"]
            case "NetworkPolicy":
                selector = spec["podSelector"]["matchLabels"]
                assert spec["policyTypes"] == ["Ingress", "Egress"]
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
        if "podSecurityContext" not in values:
            assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (1000, 1000)
        for container in containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] is True
            assert context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in context


@variants
def test_every_container_has_requests_and_a_memory_limit(values: Object) -> None:
    for _, pod in pods(objects(values)):
        for container in containers(pod):
            resources = {bound: container["resources"][bound] for bound in ("requests", "limits")}
            assert {"cpu", "memory"} <= resources["requests"].keys()
            assert "memory" in resources["limits"]
            for group in resources.values():
                for resource, quantity in group.items():
                    assert QUANTITY.fullmatch(str(quantity)), (resource, quantity)
            # Extended resources cannot be overcommitted: request and limit must be equal.
            for resource in resources["limits"].keys() - {"cpu", "memory"}:
                assert resources["requests"][resource] == resources["limits"][resource]


@variants
def test_containers_write_only_where_they_can(values: Object) -> None:
    """The root file system is read-only, and HOME is /tmp in both images."""
    for _, pod in pods(objects(values)):
        for container in containers(pod):
            named = {each.get("value", "") for each in container["env"]} if "env" in container else set()
            named |= {part.partition("=")[2] for part in container.get("args", [])}
            writable = [mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")]
            if container["name"] in {"triton", "builder", "copy-models", "segment", "locust"}:
                assert "/tmp" in writable  # noqa: S108 - the pod's
            for path in named:
                if path.startswith("/"):
                    # Volumes of the user may be read-only.
                    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
                    is_writable = any(path.startswith(f"{folder}/") for folder in writable)
                    assert is_writable or path in mounted, (container["name"], path)


@variants
def test_what_has_no_gpu_asks_for_none_either(values: Object) -> None:
    """The image sets NVIDIA_VISIBLE_DEVICES=all, which NVIDIA's runtime follows if it is the default of a node."""
    image = server(values)["image"]
    for _, pod in pods(objects(values)):
        for container in containers(pod):
            has_gpu = "claims" in container["resources"] or any(
                "nvidia.com/" in name for name in container["resources"]["limits"]
            )
            if container["image"] == image and not has_gpu:
                assert {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container["env"], container["name"]
