"""The example for KServe: the same server as in the chart. KServe's own types are not validated."""

from __future__ import annotations

import re
from typing import Any

import kubernetes_validate
import pytest
import yaml
from chart import CHART, VARIANTS, job, one, server
from cloudcoil.models.prometheus_operator import v1 as operator

pytestmark = pytest.mark.deploy

KSERVE = CHART.parents[1] / "kserve"
RUNTIME: dict[str, Any] = yaml.safe_load((KSERVE / "serving-runtime.yaml").read_text())
CLAIM: dict[str, Any] = yaml.safe_load((KSERVE / "claim.yaml").read_text())
JOB: dict[str, Any] = yaml.safe_load((KSERVE / "builder.yaml").read_text())
SERVICE: dict[str, Any] = yaml.safe_load((KSERVE / "inference-service.yaml").read_text())
PATCH: dict[str, Any] = yaml.safe_load((KSERVE / "keda-patch.yaml").read_text())
MONITOR: dict[str, Any] = yaml.safe_load((KSERVE / "pod-monitor.yaml").read_text())


SELECTED = f'namespace="vision",app_kubernetes_io_instance="{SERVICE["metadata"]["name"]}"'


def test_its_container_is_the_charts() -> None:
    (container,) = RUNTIME["spec"]["containers"]
    charts = server()
    for field in ("image", "args", "resources", "lifecycle", "livenessProbe"):
        assert container[field] == charts[field], field
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe] | {"httpGet": None} == charts[probe] | {"httpGet": None}
        assert container[probe]["httpGet"] == {"path": "/v2/health/ready", "port": 8000}
    assert charts["securityContext"].items() <= container["securityContext"].items()
    chart_mounts = [mount for mount in charts["volumeMounts"] if mount["name"] != "models"]
    assert container["volumeMounts"] == chart_mounts
    pod = one("Deployment")["spec"]["template"]["spec"]
    # Except for the location of the models, the environment is that of the chart.
    (models,) = [variable for variable in container["env"] if variable not in charts["env"]]
    assert models == {"name": "DEEPLAB_MODEL_REPOSITORY", "value": "/mnt/models"}
    assert [variable for variable in container["env"] if variable != models] == charts["env"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {
        {"grpc": "h2c"}.get(port["name"], port["name"]): port["containerPort"] for port in charts["ports"]
    }
    assert RUNTIME["spec"]["volumes"] == [volume for volume in pod["volumes"] if volume["name"] != "models"]
    predictor = SERVICE["spec"]["predictor"]
    assert predictor["terminationGracePeriodSeconds"] == pod["terminationGracePeriodSeconds"]
    assert predictor["tolerations"] == pod["tolerations"]


def test_the_entry_point_reads_where_kserve_puts_models() -> None:
    entrypoint = (CHART.parents[1] / "entrypoint.sh").read_text()
    assert re.search(r"repository=\$\{DEEPLAB_MODEL_REPOSITORY:-", entrypoint)


def test_the_service_names_the_runtime_and_its_format() -> None:
    model = SERVICE["spec"]["predictor"]["model"]
    assert model["runtime"] == RUNTIME["metadata"]["name"]
    assert model["modelFormat"]["name"] in {each["name"] for each in RUNTIME["spec"]["supportedModelFormats"]}
    assert model["protocolVersion"] in RUNTIME["spec"]["protocolVersions"]
    ports = RUNTIME["spec"]["containers"][0]["ports"]
    assert ports[0] == {"name": "h2c", "containerPort": 8001, "protocol": "TCP"}
    annotations = RUNTIME["spec"]["annotations"]
    (metrics,) = [str(port["containerPort"]) for port in ports if port["name"] == "metrics"]
    assert (annotations["prometheus.kserve.io/port"], annotations["prometheus.kserve.io/path"]) == (metrics, "/metrics")
    # Knative supports one port per service.
    assert SERVICE["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "RawDeployment"


def test_it_is_scaled_as_the_chart_is() -> None:
    triggers = one("ScaledObject", VARIANTS["keda"])["spec"]["triggers"]
    metrics = [each["external"] for each in PATCH["spec"]["predictor"]["autoScaling"]["metrics"]]
    assert len(metrics) == len(triggers)
    # The chart selects the pods of its release by name; those of KServe have the service as a label.
    for metric, trigger in zip(metrics, triggers, strict=True):
        charts = re.sub(r'namespace="\w+",pod=~"[^"]+"', SELECTED, trigger["metadata"]["query"])
        assert re.sub(r"\s+", "", metric["metric"]["query"]) == re.sub(r"\s+", "", charts)
        assert metric["target"]["value"] == trigger["metadata"]["threshold"]
    assert PATCH["spec"]["predictor"]["minReplicas"] == SERVICE["spec"]["predictor"]["minReplicas"]
    behavior = one("ScaledObject", VARIANTS["keda"])["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    window = behavior["scaleDown"]["stabilizationWindowSeconds"]
    assert PATCH["spec"]["predictor"]["autoScaling"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == window


def test_it_is_scraped_under_the_labels_of_the_rules() -> None:
    found = operator.PodMonitor.model_validate(MONITOR)
    assert found.model_dump(mode="json", by_alias=True, exclude_unset=True) == MONITOR
    assert MONITOR["spec"]["selector"]["matchLabels"] == {
        "serving.kserve.io/inferenceservice": SERVICE["metadata"]["name"]
    }
    (endpoint,) = MONITOR["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in RUNTIME["spec"]["containers"][0]["ports"]}
    labels = {each["targetLabel"]: each.get("replacement") for each in endpoint["relabelings"]}
    assert labels == {"job": "deeplab-triton", "app_kubernetes_io_instance": None}


@pytest.mark.parametrize("version", ["1.30", "1.37"])
def test_what_kserve_hands_on_is_a_valid_pod(version: str) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "predictor"},
        "spec": {field: RUNTIME["spec"][field] for field in ("containers", "volumes")}
        | {field: SERVICE["spec"]["predictor"][field] for field in ("tolerations", "terminationGracePeriodSeconds")},
    }
    for each in (pod, CLAIM, JOB):
        kubernetes_validate.validate(each, version, strict=True)


def test_the_job_builds_what_the_chart_builds_into_the_folder_that_is_served() -> None:
    charts = job({})["spec"]
    (container,), (chart_container,) = (spec["template"]["spec"]["containers"] for spec in (JOB["spec"], charts))
    *options, folder = container["args"]
    assert options == chart_container["args"][:-1]
    assert SERVICE["spec"]["predictor"]["model"]["storageUri"] == f"pvc://{CLAIM['metadata']['name']}{folder[7:]}"
    assert folder.startswith("/models/")
    for field in ("image", "workingDir", "resources", "securityContext", "volumeMounts"):
        assert container[field] == chart_container[field], field
    assert container["env"] == [variable for variable in chart_container["env"] if variable["name"] != "BUILD"]
    for field in ("backoffLimit", "activeDeadlineSeconds", "podFailurePolicy"):
        assert JOB["spec"][field] == charts[field], field
    pod, chart_pod = JOB["spec"]["template"]["spec"], charts["template"]["spec"]
    assert pod["securityContext"] == chart_pod["securityContext"]
    models, *others = pod["volumes"]
    assert models["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
    assert others == chart_pod["volumes"][1:]
