"""docker-compose.yml, started by the test run's own engine on its own ports, and the state of its containers."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_process import wait_until

from deeplabv3.embedded.checks import free_ports

if TYPE_CHECKING:
    from collections.abc import Mapping

    from container_engine import Engine

ROOT = Path(__file__).resolve().parents[2]
SERVER = "triton-cpu"
PORTS = ("HTTP_PORT", "GRPC_PORT", "METRICS_PORT", "PROMETHEUS_PORT", "LOCUST_PORT")
NAME = "deeplab-check"
# Engines before 25 reject start_interval. Grafana has no stand-in.
OVERRIDE = """
services:
  triton-cpu: {{healthcheck: {{interval: 2s, start_interval: !reset null}}}}
  prometheus: {{image: "{prometheus}", pull_policy: never, healthcheck: {{interval: 2s}}}}
  locust-master: {{volumes: ["{objectives}:/objectives.toml:ro"]}}
"""
# Without latency objectives, because they cannot be met on shared cores.
OBJECTIVES = "error_share = 0\nwrong_replies = 0\n"


class ComposeProject:
    """docker-compose.yml with an untrained ResNet-50 for small pictures.

    Args:
        engine: where it runs.
        folder: for what the project needs beside docker-compose.yml.
        images: the images to start from: `triton`, `python` and `prometheus`.
    """

    def __init__(self, engine: Engine, folder: Path, images: Mapping[str, str]) -> None:
        self.engine = engine
        self.ports: dict[str, int] = dict(
            zip(PORTS, itertools.islice(free_ports("127.0.0.1", set()), len(PORTS)), strict=True)
        )
        self.objectives = folder / "objectives.toml"
        self.objectives.write_text(OBJECTIVES)
        override = folder / "override.yml"
        override.write_text(OVERRIDE.format(prometheus=images["prometheus"], objectives=self.objectives))
        program = str(files("compose") / "docker-compose")
        self._command = [program, "--file", str(ROOT / "docker-compose.yml"), "--file", str(override)]
        self._variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "DOCKER_HOST": engine.host,
            "COMPOSE_PROJECT_NAME": NAME,
            "COMPOSE_BAKE": "false",  # which needs a plugin of Docker's client
            "TRITON_IMAGE": images["triton"],
            "PYTHON_IMAGE": images["python"],
            # pip in an environment has its own authorities, but a proxy may need those of this machine.
            "DEEPLAB_PIP_CONF": "[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n",
            "DEEPLAB_WEIGHTS": "none",
            "DEEPLAB_BUILD_OPTIONS": "--variant resnet50 --no-direct --set preprocess.resize_size=65",
            "DEEPLAB_LOCUST_OPTIONS": "--headless --expect-workers 2 --users 4 --spawn-rate 4 --run-time 8s "
            "--variants resnet50 --kinds thumbnail --objectives /objectives.toml",
            **{name: str(port) for name, port in self.ports.items()},
        }

    def __call__(self, *arguments: str, profile: str = "cpu", timeout: float = 550) -> str:
        """Run Compose with a profile and return its output."""
        done = subprocess.run(
            [*self._command, "--profile", profile, *arguments],
            cwd=ROOT,
            env=self._variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        assert done.returncode == 0, f"docker compose {' '.join(arguments)}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def container(self, service: str = SERVER, profile: str = "cpu") -> str:
        """Return the id of the one container of a service."""
        (found,) = self("ps", "--all", "--quiet", service, profile=profile).split()
        return found

    def inspected(self, service: str = SERVER, profile: str = "cpu") -> dict[str, Any]:
        """Return the engine's description of the container of a service."""
        (found,) = json.loads(self.engine.docker("inspect", self.container(service, profile)))
        return found

    def inside(self, *command: str) -> str:
        """Return the output of a command in the server's container."""
        return self.engine.docker("exec", self.container(), *command)

    def healthy(self) -> bool:
        """Return whether the server's container runs and its health check reports it as healthy."""
        state = self.inspected()["State"]
        return state["Running"] and state["Health"]["Status"] == "healthy"

    def wait_healthy(self) -> None:
        """Wait until the server is ready."""
        wait_until(self.healthy, what=f"the server is healthy\n{self('logs', '--tail', '30', SERVER)}", seconds=240)
