"""The files of deploy/monitoring: they satisfy promtool and Grafana, and are consistent with each other."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from monitoring_files import (
    ELSEWHERE,
    FOLDER,
    PROMETHEUS,
    PROMETHEUS_SERIES,
    RECORDED,
    ROOT,
    RULES,
    TRITON_SERIES,
    dashboard,
    panels,
    queries,
    rules,
    series,
)

from load_tests import objectives

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.deploy]

ALERTS = [rule for rule in rules() if "alert" in rule]
EXPRESSIONS = [*(query.expression for query in queries()), *(rule["expr"] for rule in rules())]
GRID_COLUMNS = 24


def promtool(*arguments: str | Path) -> None:
    command = [str(PROMETHEUS / "promtool"), *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.stack
def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    """Compose mounts both files into one folder."""
    for path in (FOLDER / "prometheus.yml", RULES):
        shutil.copy(path, tmp_path)
    promtool("check", "config", tmp_path / "prometheus.yml")


@pytest.mark.stack
def test_alerts_fire_when_they_must_and_only_then() -> None:
    promtool("test", "rules", FOLDER / "rules_test.yml")


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_each_alert_says_what_happened_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["for"]
    assert alert["annotations"].keys() == {"summary", "description", "runbook"}
    assert alert["annotations"]["runbook"] == f"deploy/monitoring/README.md#{alert['alert'].lower()}"
    readme = (FOLDER / "README.md").read_text()
    runbook = re.search(rf"^### {alert['alert']}\n+(.+?)(?=^#|\Z)", readme, re.MULTILINE | re.DOTALL)
    assert runbook, f"README.md has no runbook for {alert['alert']}"
    assert len(runbook[1].split()) > 20, f"the runbook for {alert['alert']} says nothing"


def test_what_a_load_test_lets_pass_fires_no_alert() -> None:
    above = {
        alert["alert"]: float(bound[1])
        for alert in ALERTS
        for bound in [re.search(r"> ([\d.]+)$", alert["expr"])]
        if bound
    }
    wanted = objectives.read(ROOT / "load_tests" / "objectives.toml")
    assert wanted.bounds["error_share"] <= above["DeepLabErrors"]
    assert max(wanted.latency[0.99].values()) <= above["DeepLabP99AboveObjective"]


def seconds(duration: str) -> int:
    """Return the seconds of a duration such as 5m10s."""
    return sum(
        int(number) * {"h": 3600, "m": 60, "s": 1}[unit] for number, unit in re.findall(r"(\d+)([hms])", duration)
    )


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_alert_is_asked_for_right_before_its_time_and_at_it(alert: dict[str, Any]) -> None:
    """promtool then detects an alert that waits too short or too long."""
    content = yaml.safe_load((FOLDER / "rules_test.yml").read_text())
    firing = [
        {
            seconds(case["eval_time"]): len(case["exp_alerts"])
            for case in test.get("alert_rule_test", [])
            if case["alertname"] == alert["alert"]
        }
        for test in content["tests"]
    ]
    step = seconds(content["evaluation_interval"])

    assert any(cases.get(at - step) == 0 and number for cases in firing for at, number in cases.items())


def test_readme_explains_no_alert_that_does_not_exist() -> None:
    headings = re.findall(r"^### (DeepLab\w+)$", (FOLDER / "README.md").read_text(), re.MULTILINE)

    assert headings == [alert["alert"] for alert in ALERTS]


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_expression_reads_series_that_exist_and_counts_no_picture_twice(expression: str) -> None:
    assert series(expression), "reads nothing"
    assert series(expression) <= TRITON_SERIES | ELSEWHERE.keys() | PROMETHEUS_SERIES | RECORDED
    # A sum over the ensembles and their steps would count each picture several times.
    for name in re.findall(r"nv_inference_\w+\{([^}]*)\}", expression):
        assert "model" in name or "unless on (job, instance)" in expression


def test_dashboard_can_be_provisioned() -> None:
    board = dashboard()

    assert board["uid"] == "deeplab-triton"
    assert "__inputs" not in board
    assert board.get("id") is None
    assert [variable["name"] for variable in board["templating"]["list"]] == [
        "datasource",
        "job",
        "namespace",
        "release",
        "model",
    ]
    sources = {str(panel["datasource"]["uid"]) for panel in panels()}
    sources |= {str(target["datasource"]["uid"]) for panel in panels() for target in panel["targets"]}
    assert sources == {"${datasource}"}


def test_compose_has_no_namespace_and_no_release_and_the_dashboard_works_there() -> None:
    variables = {variable["name"]: variable for variable in dashboard()["templating"]["list"]}

    for name in ("namespace", "release"):
        assert variables[name]["includeAll"]
        assert re.fullmatch(variables[name]["allValue"], "")


def test_panels_have_distinct_titles_and_do_not_overlap() -> None:
    everything = dashboard()["panels"]
    taken = [
        (panel["gridPos"]["x"] + column, panel["gridPos"]["y"] + line)
        for panel in everything
        for column, line in itertools.product(range(panel["gridPos"]["w"]), range(panel["gridPos"]["h"]))
    ]

    assert len({panel["id"] for panel in everything}) == len(everything)
    assert len({panel["title"] for panel in everything}) == len(everything)
    assert all(panel["description"] for panel in panels())
    assert all(column < GRID_COLUMNS for column, _ in taken)
    assert len(set(taken)) == len(taken)


def test_thresholds_of_panels_are_those_of_the_alerts() -> None:
    thresholds = {
        alert["alert"]: float(re.search(r"[<>] ([\d.]+)\s*$", alert["expr"])[1])  # type: ignore[index]  an objective is a number at the end
        for alert in ALERTS
        if alert["alert"].endswith(("Errors", "Objective", "Full"))
    }
    shown = {
        panel["title"]: step["value"]
        for panel in panels()
        for step in panel["fieldConfig"]["defaults"].get("thresholds", {}).get("steps", [])
        if step["value"] is not None
    }

    assert shown["Server errors"] == thresholds["DeepLabErrors"]
    assert shown["p99"] == shown["Whole pipeline, slowest replica"] == thresholds["DeepLabP99AboveObjective"]
    queue = thresholds["DeepLabQueueAboveObjective"]
    assert shown["Queue time of the core model"] == shown["Mean wait by step"] == queue
    assert shown["Memory in use"] == thresholds["DeepLabGpuMemoryNearlyFull"]
    assert shown["/dev/shm in use"] == pytest.approx(1 - thresholds["DeepLabSharedMemoryNearlyFull"])  # noqa: S108 - a title


def test_grafana_finds_the_prometheus_of_compose() -> None:
    sources = yaml.safe_load((FOLDER / "grafana" / "datasources.yml").read_text())["datasources"]
    scrape = yaml.safe_load((FOLDER / "prometheus.yml").read_text())["global"]["scrape_interval"]

    assert [source["jsonData"]["timeInterval"] for source in sources] == [scrape]
