"""The chart, rendered by Helm's own library."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import helm_python
import pytest
import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

CHART = Path(__file__).resolve().parents[2] / "deploy" / "helm" / "deeplab-triton"
RELEASE, NAMESPACE = "vision", "prod"
NAME = f"{RELEASE}-deeplab-triton"

Object = dict[str, Any]


@functools.cache
def chart() -> helm_python.Chart:
    """Return the chart as Helm loads it."""
    return helm_python.Chart.load(CHART)


def files(values: Object | None = None, *, release: str = RELEASE, namespace: str = NAMESPACE) -> dict[str, str]:
    """Return the rendered templates by their path below templates/.

    Raises:
        helm_python.HelmError: The values are refused, or a template fails.
    """
    rendered = chart().render(values or {}, name=release, namespace=namespace)
    return {path.partition("templates/")[2]: text for path, text in rendered.items()}


def objects(values: Object | None = None, *, release: str = RELEASE, namespace: str = NAMESPACE) -> list[Object]:
    """Return the Kubernetes objects of all templates. They are cached, so do not change them."""
    return _objects(json.dumps(values), release, namespace)


@functools.cache
def _objects(values: str, release: str, namespace: str) -> list[Object]:
    return [
        cast("Object", found)
        for path, text in files(json.loads(values), release=release, namespace=namespace).items()
        if path.endswith(".yaml")
        for found in yaml.load_all(text, Loader=yaml.CSafeLoader)
        if found is not None
    ]


def one(kind: str, values: Object | None = None, *, name: str = NAME) -> Object:
    """Return the only object of a kind and name."""
    (found,) = [each for each in objects(values) if each["kind"] == kind and each["metadata"]["name"] == name]
    return found


def server(values: Object | None = None) -> Object:
    """Return the container that runs Triton."""
    (pod,) = [
        each["spec"]["template"]
        for each in objects(values)
        if each["kind"] == "Deployment" and each["metadata"]["labels"]["app.kubernetes.io/component"] == "server"
    ]
    return pod["spec"]["containers"][0]


def pods(found: list[Object]) -> Iterator[tuple[Object, Object]]:
    """Yield each object that creates pods, with the pods' metadata and specification."""
    for each in found:
        if each["kind"] in {"Deployment", "Job"}:
            yield each, each["spec"]["template"]
        elif each["kind"] == "Pod":
            yield each, each


def containers(pod: Object) -> list[Object]:
    """Return the containers of a pod, init containers first."""
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def matches(selector: dict[str, str], labels: dict[str, str]) -> bool:
    """Return whether an object has all labels of a selector."""
    return selector.items() <= labels.items()


def refusal(values: Object) -> str:
    """Return Helm's message about values that it must reject."""
    with pytest.raises(helm_python.HelmError) as raised:
        objects(values)
    return str(raised.value)


def job(values: Object) -> Object:
    """Return the Job that builds the models."""
    (found,) = [each for each in objects(values) if each["kind"] == "Job"]
    return found


SIDECAR: Object = {
    "name": "log-shipper",
    "image": "registry.example.org/log-shipper:1.0.0",
    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "64Mi"}},
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    },
    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108 - the pod's
}
# The values files to start from, by name.
READY: dict[str, Object] = {
    path.name.removesuffix("-values.yaml"): yaml.safe_load(path.read_text())
    for path in sorted((CHART / "ci").glob("*.yaml"))
}
# Each covers templates, or parts of them, that the others do not.
VARIANTS: dict[str, Object] = {
    "defaults": {},
    "everything": {
        "replicaCount": 3,
        "imagePullSecrets": [{"name": "registry"}],
        "commonLabels": {"cost-center": "4711"},
        "commonAnnotations": {"owner": "perception@example.org"},
        "schedulerName": "bin-packing",
        "image": {"digest": "sha256:" + "ab" * 32},
        "server": {"extraArgs": ["--log-verbose=1"]},
        "gpu": {"resourceName": "nvidia.com/mig-3g.40gb", "runtimeClassName": "nvidia"},
        "resources": {"limits": {"cpu": "4"}},
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100"},
        "tolerations": [{"key": "spot", "operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}]}]
                }
            }
        },
        "priorityClassName": "serving",
        "podAnnotations": {"prometheus.io/path": "/annotated"},
        "podLabels": {"team": "perception"},
        "extraEnv": [{"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "compute,utility"}],
        "extraVolumes": [{"name": "more", "emptyDir": {}}],
        "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
        "extraContainers": [SIDECAR],
        "service": {
            "type": "LoadBalancer",
            "annotations": {"balancer": "internal"},
            "loadBalancerSourceRanges": ["10.0.0.0/8"],
        },
        "networkPolicy": {"allowedFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]},
        "serviceAccount": {"annotations": {"identity": "models"}},
        "monitoring": {
            "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "sharedMemoryExporter": {"enabled": True},
            "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
            "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Serving"}},
        },
        "gateway": {
            "parentRefs": [{"name": "public", "namespace": "gateways"}],
            "grpc": {"enabled": True, "hostnames": ["grpc.example.org"]},
            "http": {"enabled": True, "hostnames": ["http.example.org"]},
        },
        "models": {
            "builder": {
                "nodeSelector": {"disk": "fast"},
                "podAnnotations": {"sidecar.istio.io/inject": "false"},
                "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
                "extraVolumes": [{"name": "weights", "persistentVolumeClaim": {"claimName": "weights"}}],
                "extraVolumeMounts": [{"name": "weights", "mountPath": "/weights", "readOnly": True}],
            }
        },
        "loadTest": {"enabled": True, "env": {"LOCUST_USERS": "64"}, "extraArgs": ["--variants", "resnet50"]},
    },
    "int8": {
        "gpu": {"enabled": False},
        "models": {
            "builder": {
                "direct": False,
                "precision": "int8",
                "calibration": {"existingClaim": "pictures", "path": "street"},
            }
        },
    },
    "claimed gpu": {"gpu": {"resourceClaims": [{"name": "gpu", "resourceClaimTemplateName": "one-gpu"}]}},
    "hpa": {"autoscaling": {"type": "hpa", "minReplicas": 2, "maxReplicas": 8}},
    "keda": {
        "autoscaling": {
            "type": "keda",
            "keda": {
                "serverAddress": "https://prometheus.monitoring.svc:9090",
                "authenticationRef": "prometheus",
                "authModes": "bearer",
            },
        }
    },
    "image": {"models": {"source": "image"}},
    "image volume": {"models": {"source": "imageVolume", "imageVolume": {"reference": "models:1", "path": "models"}}},
    "object store": {
        "models": {
            "source": "objectStore",
            "objectStore": {"path": "bucket/models", "options": {"provider": "AWS"}, "existingSecret": "store"},
        }
    },
    "claim of one node": {
        "updateStrategy": {"type": "Recreate"},
        "models": {"pvc": {"accessModes": ["ReadWriteOnce"], "storageClassName": "-"}},
    },
    "claim that is full": {
        "models": {
            "pvc": {"existingClaim": "models", "accessModes": ["ReadOnlyMany"], "path": "v1"},
            "builder": {"enabled": False},
        }
    },
    "bare": {
        "networkPolicy": {"enabled": False},
        "serviceAccount": {"create": False},
        "podSecurityContext": {"runAsUser": None, "runAsGroup": None, "fsGroup": None},
        "server": {
            "preStopSeconds": 0,
            "grpcMaxConnectionAgeSeconds": 0,
            "grpcInferThreadCount": 0,
            "httpMaxInputBytes": 0,
            "metricsConfig": [],
        },
        "topologySpread": [],
        "fullnameOverride": "segmentation",
    },
    **READY,
}


def paths(values: Object, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every path of a tree of values, with its value."""
    for key, value in values.items():
        yield (*above, key), value
        if isinstance(value, dict):
            yield from paths(value, (*above, key))


DEFAULTS = yaml.safe_load((CHART / "values.yaml").read_text())
# Values whose keys are names of Kubernetes or of the user.
OPEN = {
    ("affinity",),
    ("commonAnnotations",),
    ("commonLabels",),
    ("gateway", "parentRefs"),
    ("loadTest", "env"),
    ("models", "builder", "nodeSelector"),
    ("models", "builder", "podAnnotations"),
    ("models", "objectStore", "options"),
    ("monitoring", "dashboard", "annotations"),
    ("monitoring", "dashboard", "labels"),
    ("monitoring", "podMonitor", "labels"),
    ("monitoring", "prometheusRule", "labels"),
    ("nodeSelector",),
    ("podAnnotations",),
    ("podLabels",),
    ("service", "annotations"),
    ("serviceAccount", "annotations"),
}
LEAVES = [path for path, value in paths(DEFAULTS) if not isinstance(value, dict)]
