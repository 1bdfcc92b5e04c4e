"""The dashboard's queries on synthetic series: each curve has the value that was calculated by hand."""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest
import yaml
from monitoring_files import PROMETHEUS, RULES, dashboard, panels, queries

if TYPE_CHECKING:
    from pathlib import Path

    from monitoring_files import Query

pytestmark = [pytest.mark.deploy]

# What every scrape of 15 s adds. Replica a has both variants, b only one. Of a's pictures 1 a second is refused (15),
# 0.2 fail in the core model (3), 0.2 get an error as reply of postprocess (78 - 60 - 15 = 3), 0.6 are given up (9):
# together 30, which the ensemble counts twice.
ADDED = """
nv_inference_request_success{pod="a", model="segment_resnet50"} 60
nv_inference_request_success{pod="b", model="segment_resnet50"} 30
nv_inference_request_success{pod="a", model="segment_resnet101"} 15
nv_inference_request_success{pod="a", model="preprocess"} 90
nv_inference_request_success{pod="b", model="preprocess"} 30
nv_inference_request_success{pod="a", model="core_resnet50"} 60
nv_inference_request_success{pod="b", model="core_resnet50"} 30
nv_inference_request_success{pod="a", model="core_resnet101"} 10
nv_inference_request_success{pod="a", model="postprocess"} 78
nv_inference_request_success{pod="b", model="postprocess"} 30
nv_inference_request_failure{pod="a", model="segment_resnet50", reason="OTHER"} 60
nv_inference_request_failure{pod="a", model="core_resnet50", reason="BACKEND"} 3
nv_inference_request_failure{pod="a", model="postprocess", reason="CANCELED"} 9
nv_inference_request_failure{pod="a", model="encode_mask", reason="BACKEND"} 0
nv_inference_request_failure{pod="b", model="encode_mask", reason="BACKEND"} 0
nv_inference_request_duration_us{pod="a", model="segment_resnet50"} 30000000
nv_inference_request_duration_us{pod="b", model="segment_resnet50"} 45000000
nv_inference_request_duration_us{pod="a", model="segment_resnet101"} 15000000
nv_inference_request_duration_us{pod="a", model="preprocess"} 9000000
nv_inference_request_duration_us{pod="b", model="preprocess"} 6000000
nv_inference_request_duration_us{pod="a", model="core_resnet50"} 24000000
nv_inference_request_duration_us{pod="b", model="core_resnet50"} 21000000
nv_inference_queue_duration_us{pod="a", model="preprocess"} 2400000
nv_inference_queue_duration_us{pod="a", model="core_resnet50"} 6000000
nv_inference_queue_duration_us{pod="b", model="core_resnet50"} 12000000
nv_inference_queue_duration_us{pod="a", model="core_resnet101"} 1000000
nv_inference_compute_input_duration_us{pod="a", model="core_resnet50"} 2000000
nv_inference_compute_infer_duration_us{pod="a", model="core_resnet50"} 15000000
nv_inference_compute_infer_duration_us{pod="b", model="core_resnet50"} 12000000
nv_inference_compute_output_duration_us{pod="b", model="core_resnet50"} 1000000
nv_inference_count{pod="a", model="preprocess"} 90
nv_inference_count{pod="b", model="preprocess"} 30
nv_inference_count{pod="a", model="core_resnet50"} 60
nv_inference_count{pod="b", model="core_resnet50"} 30
nv_inference_exec_count{pod="a", model="preprocess"} 40
nv_inference_exec_count{pod="b", model="preprocess"} 20
nv_inference_exec_count{pod="a", model="core_resnet50"} 15
nv_inference_exec_count{pod="b", model="core_resnet50"} 15
nv_inference_first_response_histogram_ms_bucket{pod="a", model="segment_resnet50", le="500"} 20
nv_inference_first_response_histogram_ms_bucket{pod="a", model="segment_resnet50", le="2000"} 57
nv_inference_first_response_histogram_ms_bucket{pod="b", model="segment_resnet50", le="2000.0"} 24
nv_inference_first_response_histogram_ms_count{pod="a", model="segment_resnet50"} 60
nv_inference_first_response_histogram_ms_count{pod="b", model="segment_resnet50"} 30
kube_pod_container_status_restarts_total{job="k", namespace="seg", pod="s-deeplab-triton-a", container="triton"} 1
kube_pod_container_status_restarts_total{job="k", namespace="seg", pod="another-service-a", container="triton"} 9
"""
# Gauges at every scrape. Replica c is down.
FOUND = """
up{pod="a"} 1
up{pod="b"} 1
up{pod="c"} 0
nv_inference_pending_request_count{pod="a", model="preprocess"} 2
nv_inference_pending_request_count{pod="a", model="core_resnet50"} 3
nv_inference_pending_request_count{pod="b", model="core_resnet50"} 5
nv_inference_pending_request_count{pod="a", model="core_resnet101"} 1
nv_inference_pending_request_count{pod="a", model="segment_resnet50"} 100
nv_inference_request_summary_us{pod="a", model="segment_resnet50", quantile="0.5"} 400000
nv_inference_request_summary_us{pod="b", model="segment_resnet50", quantile="0.5"} 700000
nv_inference_request_summary_us{pod="a", model="segment_resnet50", quantile="0.99"} 1200000
nv_inference_request_summary_us{pod="b", model="segment_resnet50", quantile="0.99"} 1800000
nv_inference_request_summary_us{pod="a", model="segment_resnet101", quantile="0.5"} 300000
nv_inference_request_summary_us{pod="a", model="segment_resnet101", quantile="0.99"} 900000
nv_inference_request_summary_us{pod="a", model="core_resnet50", quantile="0.5"} 100000
nv_inference_request_summary_us{pod="a", model="core_resnet50", quantile="0.99"} 800000
nv_inference_request_summary_us{pod="b", model="core_resnet50", quantile="0.99"} 600000
nv_gpu_utilization{pod="a", gpu_uuid="GPU-1"} 0.7
nv_gpu_memory_used_bytes{pod="a", gpu_uuid="GPU-1"} 32
nv_gpu_memory_total_bytes{pod="a", gpu_uuid="GPU-1"} 80
nv_gpu_power_usage{pod="a", gpu_uuid="GPU-1"} 300
nv_gpu_power_limit{pod="a", gpu_uuid="GPU-1"} 400
nv_cpu_utilization{pod="a"} 0.25
nv_cpu_memory_used_bytes{pod="a"} 30
nv_cpu_memory_total_bytes{pod="a"} 50
nv_pinned_memory_pool_used_bytes{pod="a"} 64
nv_pinned_memory_pool_total_bytes{pod="a"} 256
nv_gpu_utilization{pod="b", gpu_uuid="GPU-2"} 0.1
node_filesystem_avail_bytes{job="deeplab-shm", pod="a", mountpoint="/dev/shm"} 1
node_filesystem_size_bytes{job="deeplab-shm", pod="a", mountpoint="/dev/shm"} 5
"""
# Series of the cluster's exporters, which have their own jobs.
CLUSTER = """
kube_deployment_spec_replicas{deployment="s-deeplab-triton"} 3
kube_deployment_spec_replicas{deployment="s-deeplab-triton-locust-worker"} 20
kube_deployment_spec_replicas{deployment="another-service"} 40
kube_horizontalpodautoscaler_spec_max_replicas{horizontalpodautoscaler="keda-hpa-s-deeplab-triton"} 4
kube_horizontalpodautoscaler_spec_max_replicas{horizontalpodautoscaler="another-service"} 50
kube_pod_container_status_last_terminated_reason{pod="s-deeplab-triton-a", container="triton", reason="OOMKilled"} 1
kube_pod_container_status_last_terminated_reason{pod="s-deeplab-triton-b", container="triton", reason="Error"} 1
container_memory_working_set_bytes{pod="s-deeplab-triton-a", container="triton"} 12
container_memory_working_set_bytes{pod="s-deeplab-triton-a", container="shm-exporter"} 1
kube_pod_container_resource_limits{pod="s-deeplab-triton-a", container="triton", resource="memory"} 24
kube_pod_container_resource_limits{pod="s-deeplab-triton-a", container="triton", resource="cpu"} 4
DCGM_FI_DEV_XID_ERRORS{UUID="GPU-1"} 79
DCGM_FI_DEV_XID_ERRORS{UUID="GPU-2"} 0
DCGM_FI_DEV_XID_ERRORS{UUID="GPU-of-others"} 31
DCGM_FI_DEV_CLOCKS_EVENT_REASONS{UUID="GPU-1"} 68
DCGM_FI_DEV_CLOCKS_EVENT_REASONS{UUID="GPU-2"} 33
"""
# Panel, then curve as its legend names it, then value in the panel's unit.
SHOWN = {
    "Replicas ready": {"": 2},
    "Pictures per second": {"": 7},
    "Server errors": {"": 0.054054},  # 0.4 of 7.4
    "p99": {"": 1.8},
    "Queue time of the core model": {"": 0.2},  # 18 s for 90 requests; 0.1 s for ResNet-101
    "Alerts firing": {"": 3},  # DeepLabErrors, DeepLabCallersGiveUp, DeepLabReplicaDown
    "Pictures answered": {"segment_resnet50": 6, "segment_resnet101": 1},
    "What becomes of pictures": {"answered": 7, "refused": 1, "failed": 0.4, "given up": 0.6},
    "Failures by step": {"core_resnet50 BACKEND": 0.2, "postprocess CANCELED": 0.6, "encode_mask BACKEND": 0},
    "Whole pipeline, slowest replica": {
        "segment_resnet50 p50": 0.7,
        "segment_resnet50 p99": 1.8,
        "segment_resnet101 p50": 0.3,
        "segment_resnet101 p99": 0.9,
    },
    "Mean by step": {"preprocess": 0.125, "core_resnet50": 0.5},  # 15 s for 120 requests, 45 s for 90
    "p99 by step, slowest replica": {"core_resnet50": 0.8},
    # 19, 2, 27 and 1 s for the 100 requests of both core models.
    "Where a request's time at the core model goes": {"queue": 0.19, "input": 0.02, "network": 0.27, "output": 0.01},
    "Mean pipeline by replica": {"a a:8002": 0.6, "b b:8002": 1.5},  # 45 s for 75 pictures, and for 30
    "Requests that wait, by step": {"preprocess": 2, "core_resnet50": 8, "core_resnet101": 1},
    "Mean wait by step": {"preprocess": 0.02, "core_resnet50": 0.2, "core_resnet101": 0.1},
    "Mean batch by step": {"preprocess": 2, "core_resnet50": 3},
    "Pictures within 2 s": {"segment_resnet50": 0.9},  # 81 of 90
    "Utilization": {"a a:8002 GPU-1": 0.7, "b b:8002 GPU-2": 0.1},
    "Memory in use": {"a a:8002 GPU-1": 0.4},
    "Power": {"a a:8002 GPU-1": 300, "limit a a:8002 GPU-1": 400},
    "Up": {"a a:8002": 1, "b b:8002": 1, "c c:8002": 0},
    "Pictures answered by replica": {"a a:8002": 5, "b b:8002": 2},
    "Requests that wait for the core models, by replica": {"a a:8002": 4, "b b:8002": 5},
    "CPU of the machine": {"a a:8002": 0.25},
    "Memory of the machine and pinned pool": {"memory a a:8002": 0.6, "pinned pool a a:8002": 0.25},
    "/dev/shm in use": {"a a:8002": 0.8},  # noqa: S108 - a title
    "Replicas: desired, ready and maximum": {"desired": 3, "ready": 2, "maximum": 4},
    "Restarts in an hour, and out-of-memory kills": {
        "restarts s-deeplab-triton-a": 84,
        "out of memory s-deeplab-triton-a": 1,
    },
    "Memory of the container, as a share of its limit": {"s-deeplab-triton-a": 0.5},
    "Last XID error of a GPU": {"GPU-1": 79, "GPU-2": 0},
    # 68 is 4, the power's cap, and 64, the hardware's heat; 33 is 1, idle, and 32, the driver's heat.
    "GPU clock throttled": {"power GPU-1": 1, "heat GPU-1": 1, "power GPU-2": 0, "heat GPU-2": 1},
}


def series_of(lines: str, *, values: str) -> list[dict[str, str]]:
    """Return promtool's input series for lines of Prometheus' text format, with instance, namespace and job."""
    found: list[dict[str, str]] = []
    for line in lines.strip().splitlines():
        name, number = line.rsplit(" ", 1)
        name = re.sub(r'pod="(\w+)"', r'namespace="seg", pod="\1", instance="\1:8002"', name)
        if "job=" not in name:
            name = name.replace("{", '{job="deeplab-triton", ', 1)
        found.append({"series": name, "values": values.format(number)})
    return found


def curves(query: Query) -> dict[str, dict[str, str]]:
    """Return the names of the curves of SHOWN that belong to this query, each with the labels in its legend."""
    legend = re.sub(r"\\{\\{(\w+)\\}\\}", r"(?P<\1>\\S+)", re.escape(query.legend))
    matches = {name: re.fullmatch(legend, name) for name in SHOWN[query.panel]}
    return {name: match.groupdict() for name, match in matches.items() if match}


def case(query: Query) -> dict[str, object]:
    """Return promtool's test of one query with the values of SHOWN, summed over labels that the legend leaves out."""
    labels = re.findall(r"\{\{(\w+)\}\}", query.legend)
    expected = [
        {
            "labels": "{" + ", ".join(f'{label}="{value}"' for label, value in found.items()) + "}",
            "value": SHOWN[query.panel][name],
        }
        for name, found in curves(query).items()
    ]
    expression = f"sum by ({', '.join(labels)}) (round({query.filled()}, 1e-6))"
    return {"expr": expression, "eval_time": "21m", "exp_samples": expected}


def test_every_curve_has_an_expected_value() -> None:
    assert SHOWN.keys() == {panel["title"] for panel in panels()}
    named = [(query.panel, curve) for query in queries() for curve in curves(query)]
    assert sorted(named) == sorted((panel, curve) for panel, values in SHOWN.items() for curve in values)


def assert_follows_the_choice(expression: str) -> None:
    selectors = re.findall(r"(\w+)\{([^}]*)\}", expression)
    assert selectors
    for name, selector in selectors:
        assert 'namespace=~"$namespace"' in selector
        if name.startswith(("kube_", "container_")):
            # Their job is the exporter's, and the release is in the name of what they are about.
            assert re.search(r'\w+=~"(\(keda-hpa-\)\?)?\(\$release\)\.\*"', selector)
        else:
            assert 'app_kubernetes_io_instance=~"$release"' in selector
            assert any(job in selector for job in ('job=~"$job"', 'job=~"$job|deeplab-shm"', 'job="deeplab-shm"'))


@pytest.mark.parametrize("query", queries(), ids=lambda query: query.panel)
def test_query_follows_the_chosen_job_namespace_and_release(query: Query) -> None:
    assert_follows_the_choice(query.expression)


def test_alerts_that_are_drawn_are_those_of_the_choice() -> None:
    (annotation,) = dashboard()["annotations"]["list"]

    assert_follows_the_choice(annotation["expr"])


@pytest.mark.stack
def test_every_curve_shows_its_value(tmp_path: Path) -> None:
    test = {
        "interval": "15s",
        "input_series": [
            *series_of(ADDED, values="0+{}x90"),
            *series_of(FOUND, values="{}x90"),
            *series_of(CLUSTER.replace("{", '{job="exporter", namespace="seg", '), values="{}x90"),
        ],
        "promql_expr_test": [case(query) for query in queries()],
    }
    content = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "15s",
        "group_eval_order": ["deeplab.recording", "deeplab.alerts"],
        "tests": [test],
    }
    (tmp_path / "dashboard_test.yml").write_text(yaml.safe_dump(content))
    command = [str(PROMETHEUS / "promtool"), "test", "rules", str(tmp_path / "dashboard_test.yml")]

    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=180)

    assert done.returncode == 0, done.stdout + done.stderr
