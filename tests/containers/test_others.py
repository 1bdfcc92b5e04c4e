"""The other services of Compose, and the images under a user without a passwd entry."""

from __future__ import annotations

import json
import re
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING

import pytest
from compose_project import NAME
from triton_process import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from compose_project import ComposeProject

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]

UNKNOWN = "12345"
CONFINED = (
    *("--user", f"{UNKNOWN}:{UNKNOWN}", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
    *("--tmpfs", "/tmp:size=1g,mode=1777"),  # noqa: S108 - the container's
)
CAT = "/opt/deeplab/tests/assets/cat.png"


def test_two_workers_of_locust_load_the_server(served: ComposeProject) -> None:
    served("up", "--detach", profile="load")
    master = served.container("locust-master", "load")
    assert served.engine.docker("wait", master).strip() == "0", served.engine.docker("logs", master)
    requests, failed = re.findall(r"Aggregated +(\d+) +(\d+)\(", served.engine.docker("logs", master))[-1]
    assert int(requests) > 0
    assert failed == "0"
    assert len(served("ps", "--all", "--quiet", "locust-worker", profile="load").split()) == 2


def test_prometheus_scrapes_the_server(served: ComposeProject) -> None:
    served("up", "--detach", "--wait", "prometheus", profile="monitoring")
    url = f"http://127.0.0.1:{served.ports['PROMETHEUS_PORT']}/api/v1/query?" + urllib.parse.urlencode(
        {"query": 'up{job="deeplab-triton"}'}
    )

    def up() -> bool:
        with urllib.request.urlopen(url) as answer:
            return [each["value"][1] for each in json.load(answer)["data"]["result"]] == ["1"]

    wait_until(up, what="Prometheus has scraped the server", seconds=60)


@pytest.fixture(scope="module")
def unknown(project: ComposeProject) -> Iterator[str]:
    """A container that builds models and serves them, with a user without a passwd entry and a quota of 1.5 cores."""
    script = (
        "python3 build_models.py --weights none --variant resnet50 --no-direct --set preprocess.resize_size=65 "
        "--model-repository /tmp/models && exec /opt/nvidia/nvidia_entrypoint.sh deploy/entrypoint.sh"
    )
    name = f"{NAME}-unknown"
    options = ("--detach", "--name", name, "--cpus", "1.5", "--shm-size", "1g", *CONFINED)
    variables = ("--env", "DEEPLAB_MODEL_REPOSITORY=/tmp/models")
    project.engine.docker("run", *options, *variables, "--entrypoint", "/bin/sh", "deeplab-triton:0.1.0", "-ec", script)
    try:
        yield name
    finally:
        project.engine.docker("rm", "--force", name)


def ask(project: ComposeProject, server: str, *command: str) -> str:
    """Return the output of a command of the client's image, beside a server and under the same user."""
    return project.engine.docker(
        *("run", "--rm", "--network", f"container:{server}", "--volume", f"{project.objectives}:/objectives.toml:ro"),
        *(*CONFINED, "deeplab-client:0.1.0", *command),
    )


def test_any_user_builds_and_serves_and_asks_and_loads(project: ComposeProject, unknown: str) -> None:
    engine = project.engine

    def alive() -> bool:
        state = json.loads(engine.docker("inspect", unknown))[0]["State"]
        assert state["Running"], engine.docker("logs", unknown)[-3000:]
        return "curl" not in engine.docker("exec", unknown, "deploy/alive.sh", check=False)

    wait_until(alive, what="the server of an unknown user is ready", seconds=550)
    ids = engine.docker("exec", unknown, "bash", "-pc", "id -u; id -un 2>&1; true")
    assert ids.startswith(f"{UNKNOWN}\n")
    assert "cannot find name" in ids
    environment = engine.docker("exec", unknown, "cat", "/proc/1/environ").split("\0")
    assert "OMP_NUM_THREADS=2" in environment
    url = "grpc://127.0.0.1:8001"
    assert "cat.png" in ask(project, unknown, "deeplab", "segment", "--url", url, CAT)
    locust = "locust --locustfile load_tests/locustfile.py --headless --users 2 --run-time 5s --variants resnet50"
    ask(project, unknown, *locust.split(), *("--kinds", "thumbnail", "--objectives", "/objectives.toml", "--host", url))
