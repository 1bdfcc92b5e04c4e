"""The queries of the autoscalers, evaluated by promtool on synthetic series.

The adapter's templates are filled as prometheus-adapter fills them for the pods of a HorizontalPodAutoscaler.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from chart import CHART, NAME, NAMESPACE, VARIANTS, one
from monitoring_files import PROMETHEUS

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.deploy, pytest.mark.stack]

PODS = (f"{NAME}-7d9c5bb6f4-aaaaa", f"{NAME}-7d9c5bb6f4-bbbbb")
# The same pods, scraped by another job because of an annotation.
AGAIN = "kubernetes-pods"
STRANGERS = (f"other-{NAME}-7d9c5bb6f4-ccccc", f"{NAME}-locust-worker-7d9c5bb6f4-ddddd")
INTERVAL, AT = "15s", "10m"

# Of each pod and model: pending requests, microseconds in the queue and requests every 15 s. The ensemble's and the
# step's are what no scaling must see.
SERVED = {
    (PODS[0], "core_resnet50"): (6, 3_000_000, 60),
    (PODS[0], "core_resnet101"): (2, 6_000_000, 30),
    (PODS[1], "core_resnet50"): (20, 60_000_000, 150),
}
NOISE = {(pod, model): (1000, 10**9, 1) for pod in PODS for model in ("segment_resnet50", "preprocess")}
OTHERS = {(pod, "core_resnet50"): (1000, 10**9, 1) for pod in STRANGERS}
# (3 + 6) s over 90 requests, and 60 s over 150.
PENDING = {PODS[0]: 8, PODS[1]: 20}
QUEUE_SECONDS = {PODS[0]: 0.1, PODS[1]: 0.4}


def series(served: dict[tuple[str, str], tuple[int, int, int]], *, job: str = "deeplab-triton") -> list[dict[str, str]]:
    """Return promtool's input series of pods and models."""
    found: list[dict[str, str]] = []
    for (pod, model), (pending, queued, answered) in served.items():
        labels = f'{{job="{job}",namespace="{NAMESPACE}",pod="{pod}",model="{model}"}}'
        found += [
            {"series": f"nv_inference_pending_request_count{labels}", "values": f"{pending}x80"},
            {"series": f"nv_inference_queue_duration_us{labels}", "values": f"0+{queued}x80"},
            {"series": f"nv_inference_request_success{labels}", "values": f"0+{answered}x80"},
        ]
    return found


def check(tmp_path: Path, inputs: list[dict[str, str]], expected: dict[str, list[dict[str, Any]]]) -> None:
    """Let promtool compare the samples of each query with the expected ones, in millionths for exact equality."""
    tests = {
        "evaluation_interval": INTERVAL,
        "tests": [
            {
                "interval": INTERVAL,
                "input_series": inputs,
                "promql_expr_test": [
                    {
                        "expr": f"round(1e6 * ({query}))",
                        "eval_time": AT,
                        "exp_samples": [each | {"value": round(1e6 * each["value"])} for each in samples],
                    }
                    for query, samples in expected.items()
                ],
            }
        ],
    }
    (tmp_path / "queries.yml").write_text(yaml.safe_dump(tests))
    command = [str(PROMETHEUS / "promtool"), "test", "rules", str(tmp_path / "queries.yml")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def keda_queries() -> dict[str, str]:
    triggers = one("ScaledObject", VARIANTS["keda"])["spec"]["triggers"]
    return {trigger["name"]: trigger["metadata"]["query"] for trigger in triggers}


@pytest.mark.parametrize(
    ("served", "pending", "milliseconds"),
    [
        (SERVED, 28, 500),
        (dict.fromkeys(SERVED, (0, 0, 0)), 0, 0),
        # No server was scraped yet: 0 pods more, and no failure that would bring the fallback.
        ({}, 0, 0),
    ],
    ids=["busy", "idle", "new"],
)
def test_keda_sums_over_the_pods_of_the_release(
    tmp_path: Path, served: dict[tuple[str, str], tuple[int, int, int]], pending: int, milliseconds: int
) -> None:
    queries = keda_queries()
    check(
        tmp_path,
        series({**served, **NOISE, **OTHERS} if served else OTHERS) + series(served, job=AGAIN),
        {
            queries["pending-requests"]: [{"labels": "{}", "value": pending}],
            queries["queue-milliseconds"]: [{"labels": "{}", "value": milliseconds}],
        },
    )


def test_the_adapter_gives_each_pod_its_own_value(tmp_path: Path) -> None:
    expected = {"deeplab_core_pending_requests": PENDING, "deeplab_core_queue_seconds": QUEUE_SECONDS}
    rules = yaml.safe_load((CHART.parent / "prometheus-adapter-rules.yaml").read_text())["rules"]["custom"]
    assert {rule["name"]["as"] for rule in rules} == expected.keys()
    queries: dict[str, list[dict[str, Any]]] = {}
    for rule in rules:
        assert {label: to["resource"] for label, to in rule["resources"]["overrides"].items()} == {
            "namespace": "namespace",
            "pod": "pod",
        }
        filled = {
            "<<.Series>>": rule["seriesQuery"].partition("{")[0],
            "<<.LabelMatchers>>": f'namespace="{NAMESPACE}",pod=~"{"|".join(PODS)}"',
            "<<.GroupBy>>": "pod",
        }
        query = rule["metricsQuery"]
        for template, value in filled.items():
            query = query.replace(template, value)
        queries[query] = [
            {"labels": f'{{pod="{pod}"}}', "value": value} for pod, value in expected[rule["name"]["as"]].items()
        ]
        # The adapter offers a metric only if this finds series: those of the chart's job, not of another one.
        queries[f"count by (job) ({rule['seriesQuery']})"] = [
            {"labels": '{job="deeplab-triton"}', "value": len({**SERVED, **NOISE, **OTHERS})}
        ]
    check(tmp_path, series({**SERVED, **NOISE, **OTHERS}) + series({("a", "deeplabv3_b"): (1, 1, 1)}, job="b"), queries)
