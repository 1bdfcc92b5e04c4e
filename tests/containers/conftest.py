"""One engine, one build of both images and one server of the cpu profile for all tests of real containers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import standin_images
from compose_project import ComposeProject
from container_engine import Engine

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "out" / "containers"


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    with Engine(FOLDER / "data") as engine:
        yield engine


@pytest.fixture(scope="session")
def project(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeProject]:
    """docker-compose.yml with both images built."""

    def work(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    images = {
        "triton": standin_images.triton(engine, FOLDER, work("triton")),
        "python": standin_images.python(engine, FOLDER, work("python")),
        "prometheus": standin_images.prometheus(
            engine, FOLDER, work("prometheus"), ROOT / "out" / "tools" / "prometheus" / "prometheus"
        ),
    }
    project = ComposeProject(engine, work("compose"), images)
    try:
        project("build", timeout=1500)
        project("build", profile="load", timeout=1500)
        yield project
    finally:
        project("down", "--volumes", "--remove-orphans", "--timeout", "10", profile="*")


@pytest.fixture(scope="session")
def _started(project: ComposeProject) -> ComposeProject:
    project("up", "--detach", "--wait")
    return project


@pytest.fixture
def served(_started: ComposeProject) -> ComposeProject:
    """The project with a ready server, independent of the previous test."""
    _started.wait_healthy()
    return _started
