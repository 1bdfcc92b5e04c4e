"""Linters find nothing in the files of the deployment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
DEPLOY = ROOT / "deploy"
YAML = [
    ROOT / ".yamllint",
    ROOT / "docker-compose.yml",
    # The chart's templates are not YAML until Helm has rendered them; test_chart.py checks the result.
    *sorted(path for path in DEPLOY.rglob("*.y*ml") if "templates" not in path.parts),
]
SCRIPTS = sorted(DEPLOY.rglob("*.sh"))


def lint(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=False)


def test_there_is_something_to_lint() -> None:
    names = {path.name for path in YAML}
    assert {"docker-compose.yml", "values.yaml", "rules.yml", "envoy.yaml", "serving-runtime.yaml"} <= names
    assert {path.name for path in SCRIPTS} == {"alive.sh", "entrypoint.sh"}


def test_yaml() -> None:
    # .yamllint has paths relative to the root.
    found = lint("yamllint", "--strict", *(path.relative_to(ROOT) for path in YAML))
    assert (found.returncode, found.stdout) == (0, ""), found.stderr


def test_dockerfiles() -> None:
    found = lint("hadolint", DEPLOY / "Dockerfile", DEPLOY / "batch" / "Dockerfile")
    assert (found.returncode, found.stdout) == (0, ""), found.stderr


def test_scripts() -> None:
    found = lint("shellcheck", *SCRIPTS)
    assert (found.returncode, found.stdout) == (0, ""), found.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_can_be_run(script: Path) -> None:
    assert script.stat().st_mode & 0o111 == 0o111
