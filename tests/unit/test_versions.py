"""The version of the project is written in many files; it is the same in all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]

STATED = {
    "pyproject.toml": r'^version = "(.+)"$',
    "client/pyproject.toml": r'^version = "(.+)"$',
    "deploy/Dockerfile": r"^ARG VERSION=(.+)$",
    "deploy/helm/deeplab-triton/Chart.yaml": r'^(?:version|appVersion): "?([^"\n]+)"?$',
    # The newest of these only.
    "CHANGELOG.md": r"\A[\s\S]*?^## (\d\S*) - \d{4}-\d\d-\d\d$",
    "client/CHANGELOG.md": r"\A[\s\S]*?^## (\d\S*) - \d{4}-\d\d-\d\d$",
}
TAG = r"\bdeeplab-(?:batch|client|models|served|triton):(\d[\w.]*\w)"


def versions(path: str, pattern: str) -> set[str]:
    return set(re.findall(pattern, (ROOT / path).read_text(), re.MULTILINE))


def test_every_file_has_the_version_of_the_project() -> None:
    (version,) = versions("pyproject.toml", STATED["pyproject.toml"])
    found = {path: versions(path, pattern) for path, pattern in STATED.items()}
    assert {path: numbers for path, numbers in found.items() if numbers != {version}} == {}


def test_every_tag_of_our_images_is_the_version_of_the_project() -> None:
    (version,) = versions("pyproject.toml", STATED["pyproject.toml"])
    folders = ("client", "deploy", "docs", "load_tests", "tests")
    files = [
        path for folder in folders for path in (ROOT / folder).rglob("*") if path.suffix in {".md", ".py", ".yaml"}
    ]
    names = [str(path.relative_to(ROOT)) for path in (ROOT / "docker-compose.yml", ROOT / "README.md", *files)]
    found = {name: versions(name, TAG) for name in names}
    assert sum(map(bool, found.values())) > 5
    assert {name: numbers for name, numbers in found.items() if numbers - {version}} == {}
