"""The monitoring files, read once for their tests: rules, dashboard, queries, names of series."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "monitoring"
# The files that the chart contains and Compose mounts.
SHIPPED = ROOT / "deploy" / "helm" / "deeplab-triton" / "monitoring"
RULES, DASHBOARD = SHIPPED / "rules.yml", SHIPPED / "dashboard.json"
PROMETHEUS = ROOT / "out" / "tools" / "prometheus"

# The series of tritonserver 2.51 on a machine without a GPU, with the latency summaries that Compose and the chart
# enable. test_monitoring_live.py compares them with a running server.
TRITON_SERIES = {
    "nv_cpu_memory_total_bytes",
    "nv_cpu_memory_used_bytes",
    "nv_cpu_utilization",
    "nv_inference_compute_infer_duration_us",
    "nv_inference_compute_infer_summary_us",
    "nv_inference_compute_input_duration_us",
    "nv_inference_compute_input_summary_us",
    "nv_inference_compute_output_duration_us",
    "nv_inference_compute_output_summary_us",
    "nv_inference_count",
    "nv_inference_exec_count",
    "nv_inference_pending_request_count",
    "nv_inference_queue_duration_us",
    "nv_inference_queue_summary_us",
    "nv_inference_request_duration_us",
    "nv_inference_request_failure",
    "nv_inference_request_success",
    "nv_inference_request_summary_us",
    "nv_pinned_memory_pool_total_bytes",
    "nv_pinned_memory_pool_used_bytes",
}
# Series that do not exist with only the embedded server, and their source.
ELSEWHERE = {
    "nv_gpu_memory_total_bytes": "tritonserver with DCGM and a GPU",
    "nv_gpu_memory_used_bytes": "tritonserver with DCGM and a GPU",
    "nv_gpu_power_limit": "tritonserver with DCGM and a GPU",
    "nv_gpu_power_usage": "tritonserver with DCGM and a GPU",
    "nv_gpu_utilization": "tritonserver with DCGM and a GPU",
    "nv_inference_first_response_histogram_ms_bucket": "tritonserver 26.01 with histogram_latencies=true",
    "nv_inference_first_response_histogram_ms_count": "tritonserver 26.01 with histogram_latencies=true",
    "kube_deployment_spec_replicas": "kube-state-metrics 2",
    "kube_horizontalpodautoscaler_spec_max_replicas": "kube-state-metrics 2",
    "kube_pod_container_resource_limits": "kube-state-metrics 2",
    "kube_pod_container_status_last_terminated_reason": "kube-state-metrics 2",
    "kube_pod_container_status_restarts_total": "kube-state-metrics 2",
    "kube_pod_status_ready": "kube-state-metrics 2",
    "container_memory_working_set_bytes": "cAdvisor in the kubelet",
    "DCGM_FI_DEV_CLOCKS_EVENT_REASONS": "DCGM exporter with that counter",
    "DCGM_FI_DEV_XID_ERRORS": "DCGM exporter",
    "node_filesystem_avail_bytes": "node_exporter 1 in the pod, job deeplab-shm",
    "node_filesystem_size_bytes": "node_exporter 1 in the pod, job deeplab-shm",
}
PROMETHEUS_SERIES = {"up", "ALERTS"}
SERIES = re.compile(r"\b(?:nv_\w+|node_\w+|kube_\w+|container_\w+|DCGM_\w+|deeplab:[\w:]+|up|ALERTS)\b(?!\s*=)")


@dataclass(frozen=True, slots=True)
class Query:
    """One query of the dashboard.

    Attributes:
        panel: the title of its panel.
        legend: the name of its curves, with labels in double braces; empty where the panel has one number.
        expression: PromQL with Grafana's variables.
    """

    panel: str
    legend: str
    expression: str

    def filled(self, *, window: str = "1m") -> str:
        """Return the query as Grafana sends it with the defaults of all variables."""
        text = self.expression.replace("$__rate_interval", window)
        for variable in dashboard()["templating"]["list"]:
            text = text.replace(f"${variable['name']}", variable.get("allValue", ""))
        assert "$" not in text, f"unknown variable in {self.panel!r}: {text}"
        return text

    def series(self) -> set[str]:
        """Return the names of the series that the query reads."""
        return series(self.expression)


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    return json.loads(DASHBOARD.read_text())


def panels() -> list[dict[str, Any]]:
    """Return the panels with data: all except the titles of rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def queries() -> list[Query]:
    """Return every query of the dashboard."""
    return [
        Query(panel["title"], target["legendFormat"], target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]


def rules() -> list[dict[str, Any]]:
    """Return all recording rules and alerts."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def series(expression: str) -> set[str]:
    """Return the names of the series that an expression reads."""
    without_strings = re.sub(r'"[^"]*"', '""', expression)
    return set(SERIES.findall(without_strings))


RECORDED = {rule["record"] for rule in rules() if "record" in rule}
