"""The manifest and the image of the Ray job. Only its pods are validated, because KubeRay's schema is not here."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml
from chart import CHART, RELEASE, objects

pytestmark = pytest.mark.deploy

BATCH = CHART.parents[1] / "batch"
JOB: dict[str, Any] = yaml.safe_load((BATCH / "rayjob.yaml").read_text())
CLUSTER = JOB["spec"]["rayClusterSpec"]
GROUPS = [CLUSTER["headGroupSpec"], *CLUSTER["workerGroupSpecs"]]
TEMPLATES = [JOB["spec"]["submitterPodTemplate"], *(group["template"] for group in GROUPS)]


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_its_pods_are_valid_and_confined(version: str) -> None:
    for template in TEMPLATES:
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": template["spec"]}
        kubernetes_validate.validate(pod, version, strict=True)
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_workers_have_the_cores_that_the_job_asks_for() -> None:
    (workers,) = re.findall(r"--workers (\d+)", JOB["spec"]["entrypoint"])
    cores = sum(group["replicas"] * int(group["rayStartParams"]["num-cpus"]) for group in CLUSTER["workerGroupSpecs"])
    assert cores == int(workers)
    for group in CLUSTER["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["requests"]["cpu"] == group["rayStartParams"]["num-cpus"]


def test_it_asks_the_pods_of_the_chart() -> None:
    services = {each["metadata"]["name"]: each for each in objects() if each["kind"] == "Service"}
    for group in GROUPS:
        (container,) = group["template"]["spec"]["containers"]
        (url,) = [variable["value"] for variable in container["env"] if variable["name"] == "DEEPLAB_URL"]
        name, port = url.removeprefix("grpc://").split(":")
        service = services[name.replace("vision", RELEASE, 1)]["spec"]
        assert service["clusterIP"] == "None", "an address for each replica"
        assert int(port) in {each["port"] for each in service["ports"]}


def test_image_manifest_and_tests_have_one_ray() -> None:
    (pinned,) = re.findall(r"^ray==(\S+)", (BATCH / "constraints.txt").read_text(), re.MULTILINE)
    dockerfile = (BATCH / "Dockerfile").read_text()
    assert CLUSTER["rayVersion"] == pinned
    assert f"RAY_IMAGE=rayproject/ray:{pinned}-" in dockerfile


def test_the_entry_point_runs_the_script_with_its_options() -> None:
    _, script, _, _, *options = JOB["spec"]["entrypoint"].split()
    file = BATCH / script.removeprefix("/opt/deeplab/deploy/batch/")
    dockerfile = (BATCH / "Dockerfile").read_text()
    assert "WORKDIR /opt/deeplab\n" in dockerfile
    assert "COPY --chmod=755 deploy/batch/*.py deploy/batch/\n" in dockerfile
    known = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', file.read_text()))
    assert {option for option in options if option.startswith("--")} <= known
