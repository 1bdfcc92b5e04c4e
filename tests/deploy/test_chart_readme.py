"""The chart's README: its table of values, its examples and its commands."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, cast

import pytest
import readme
import yaml
from chart import CHART, LEAVES, NAME, OPEN, VARIANTS, job, objects, one, paths

import build_models

if TYPE_CHECKING:
    from chart import Object

pytestmark = pytest.mark.deploy


def test_the_readme_lists_every_value_as_it_is() -> None:
    current = (CHART / "README.md").read_text()
    assert readme.readme(current, (CHART / "values.yaml").read_text()) == current, "run python deploy/helm/readme.py"
    rows = set(re.findall(r"^\| `([A-Za-z.]+)` \| `", current, re.MULTILINE))
    leaves = {path for path in LEAVES if not any(path[: len(group)] == group for group in OPEN)}
    assert {".".join(path) for path in leaves | OPEN} == rows


EXAMPLES = [
    yaml.safe_load(block)
    for block in re.findall(r"^```yaml\n(.*?)^```$", (CHART / "README.md").read_text(), re.MULTILINE | re.DOTALL)
]


# Values that decide what is rendered, but do not appear there.
CHOICES = {
    ("autoscaling", "type"),
    ("models", "source"),
    ("models", "pvc", "storageClassName"),
    # Of a container that no values file enables.
    ("monitoring", "sharedMemoryExporter", "image", "repository"),
}


@pytest.mark.parametrize("values", [*VARIANTS.values(), *EXAMPLES])
def test_what_a_user_sets_is_in_what_is_rendered(values: Object) -> None:
    found = objects(values)
    rendered = json.dumps(found, sort_keys=True)
    for path, value in paths(values):
        if path == ("models", "pvc", "accessModes") and "PersistentVolumeClaim" not in {each["kind"] for each in found}:
            continue
        if isinstance(value, list):
            assert all(json.dumps(item, sort_keys=True) in rendered for item in cast("list[object]", value)), path
        elif isinstance(value, str) and path not in CHOICES:
            assert value in rendered, path


@pytest.mark.parametrize("values", [*VARIANTS.values(), *EXAMPLES])
def test_the_build_takes_what_the_job_gives_it(values: Object) -> None:
    for builder in (each for each in objects(values) if each["kind"] == "Job"):
        (container,) = builder["spec"]["template"]["spec"]["containers"]
        build_models.parse_arguments(container["args"])


def test_the_readmes_commands_name_what_there_is() -> None:
    text = (CHART / "README.md").read_text()
    assert len(EXAMPLES) >= 6
    values = VARIANTS["everything"]
    (locust,) = one("Deployment", values, name=f"{NAME}-locust-worker")["spec"]["template"]["spec"]["containers"]
    # The release of the commands has the same name as that of the tests.
    assert f"{' '.join(locust['command'])} " in text
    labels = job({})["metadata"]["labels"]
    selector = ",".join(
        f"app.kubernetes.io/{key}={labels[f'app.kubernetes.io/{key}']}" for key in ("instance", "component")
    )
    assert f"delete job --selector {selector}\n" in text
    # Values for a shared adapter must only add to the existing ones, and set nothing else.
    assert "deploy/helm/prometheus-adapter-rules.yaml" in text
    adapter = yaml.safe_load((CHART.parent / "prometheus-adapter-rules.yaml").read_text())
    assert set(adapter) == {"rules"}
    assert set(adapter["rules"]) == {"custom"}


def test_a_value_without_a_description_does_not_get_by() -> None:
    with pytest.raises(readme.UndescribedError, match=r"gpu\.count"):
        readme.table("gpu:\n  # -- Whether.\n  enabled: true\n  count: 1\n")
