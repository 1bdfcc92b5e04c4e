"""The values files that users start from: each fits its cluster. test_chart.py validates their objects."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

import pytest
from chart import CHART, READY, containers, job, objects, one, pods, server

if TYPE_CHECKING:
    from chart import Object

pytestmark = pytest.mark.deploy


def cores(quantity: str | float) -> float:
    """Return a number of cores."""
    text = str(quantity)
    return float(text[:-1]) / 1000 if text.endswith("m") else float(text)


def gibibytes(quantity: str) -> float:
    return int(quantity[:-2]) / {"Mi": 1024, "Gi": 1}[quantity[-2:]]


def builder_of(values: Object) -> Object:
    (container,) = job(values)["spec"]["template"]["spec"]["containers"]
    return container


def test_each_values_file_is_in_the_readme_and_starts_with_its_purpose() -> None:
    text = (CHART / "README.md").read_text()
    assert sorted(re.findall(r"^\| \[`ci/([\w-]+)-values.yaml`\]", text, re.MULTILINE)) == sorted(READY)
    for path in (CHART / "ci").iterdir():
        assert path.read_text().startswith("# "), path.name


def test_l4_holds_server_and_builder_on_one_node_of_4_cores_and_16_gib() -> None:
    values = READY["l4"]
    requests = [each["resources"]["requests"] for each in (server(values), builder_of(values))]
    # GKE keeps 25 % of the first 4 GiB, 20 % of the next 4, 10 % of the next 8 and 100 MiB ("Plan GKE Standard node
    # sizes"), and EKS less. Half a GiB and 0.2 cores are for the cluster's own pods.
    assert sum(cores(each["cpu"]) for each in requests) <= 3.9 - 0.2
    assert sum(gibibytes(each["memory"]) for each in requests) <= 16 - 2.6 - 0.1 - 0.5
    assert server(values)["resources"]["limits"]["nvidia.com/gpu"] == 1


@pytest.mark.parametrize(
    ("name", "resource"), [("mig", "nvidia.com/mig-2g.20gb"), ("time-slicing", "nvidia.com/gpu.shared")]
)
def test_slices_are_asked_for_by_their_resource(name: str, resource: str) -> None:
    limits = server(READY[name])["resources"]["limits"]
    assert limits.keys() - {"memory"} == {resource}


def test_two_servers_by_time_slicing_build_for_half_a_card() -> None:
    assert one("Deployment", READY["time-slicing"])["spec"]["replicas"] == 2
    arguments = builder_of(READY["time-slicing"])["args"]
    assert {"--variant", "--max-batch-size", "--instances", "--postprocess-device"} <= set(arguments)


def test_read_write_once_has_one_pod_at_a_time() -> None:
    spec = one("Deployment", READY["read-write-once"])["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    (claim,) = [each for each in objects(READY["read-write-once"]) if each["kind"] == "PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]


def test_s3_is_read_with_the_role_of_the_service_account_and_without_a_secret() -> None:
    values = READY["s3"]
    account = one("ServiceAccount", values)
    assert list(account["metadata"]["annotations"]) == ["eks.amazonaws.com/role-arn"]
    pod = one("Deployment", values)["spec"]["template"]["spec"]
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    (rclone,) = pod["initContainers"]
    assert "envFrom" not in rclone
    assert {"name": "RCLONE_CONFIG_MODELS_ENV_AUTH", "value": "true"} in rclone["env"]
    egress = one("NetworkPolicy", values)["spec"]["egress"]
    assert 443 in {port["port"] for rule in egress for port in rule["ports"]}


def test_openshift_gets_no_users_and_its_own_dns() -> None:
    found = objects(READY["openshift"])
    for _, pod in pods(found):
        assert not {"runAsUser", "runAsGroup", "fsGroup"} & pod["spec"]["securityContext"].keys()
    for policy in (each for each in found if each["kind"] == "NetworkPolicy"):
        assert 5353 in {port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]}


def test_an_air_gapped_cluster_pulls_only_from_its_registry() -> None:
    values: Object = copy.deepcopy(READY["air-gapped"]) | {"loadTest": {"enabled": True}}
    values["monitoring"]["sharedMemoryExporter"]["enabled"] = True
    found = objects(values)
    for _, pod in pods(found):
        assert pod["spec"]["imagePullSecrets"] == [{"name": "registry"}]
        assert all(each["image"].startswith("registry.example.org/") for each in containers(pod))
    for policy in (each for each in found if each["kind"] == "NetworkPolicy"):
        blocks = [peer for rule in policy["spec"]["egress"] for peer in rule["to"] if "ipBlock" in peer]
        assert {peer["ipBlock"]["cidr"] for peer in blocks} == {"169.254.20.10/32"}, "NodeLocal DNSCache"
    assert {"name": "TORCH_HOME", "value": "/weights"} in builder_of(values)["env"]


def test_a_server_on_the_cpu_asks_for_no_gpu_and_little_memory() -> None:
    assert server(READY["cpu"])["resources"]["limits"] == {"memory": "8Gi"}


def test_gitops_pins_images_and_leaves_the_replicas_to_keda() -> None:
    values = READY["gitops"]
    found = objects(values)
    for _, pod in pods(found):
        assert all("@sha256:" in each["image"] for each in containers(pod))
    assert "replicas" not in one("Deployment", values)["spec"]
    # Its spans may leave the namespace.
    (url,) = [each["value"] for each in server(values)["env"] if each["name"] == "DEEPLAB_TRACE_URL"]
    assert one("NetworkPolicy", values)["spec"]["egress"][-1] == {
        "to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": url.split(".")[1]}}}],
        "ports": [{"port": 4318, "protocol": "TCP"}],
    }
    assert "PersistentVolumeClaim" not in {each["kind"] for each in found}
    # Rendering twice gives the same, because otherwise each synchronization would change it.
    assert objects(values | {"global": {}}) == found
