"""deploy/alive.sh against servers that say of each model what the test wants."""

from __future__ import annotations

import contextlib
import http.server
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from wheel import on_path

if TYPE_CHECKING:
    from collections.abc import Generator

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
ALIVE = ROOT / "deploy" / "alive.sh"
REPOSITORY = ROOT / "model_repository"
ENSEMBLES = {"segment_resnet50", "segment_resnet101"}
STEPS = {path.parent.name for path in REPOSITORY.glob("*/config.pbtxt")} - ENSEMBLES
DEAD = '{"error":"Stub process \'postprocess_0_0\' is not healthy."}'


class Server(http.server.ThreadingHTTPServer):
    """Answers 200, unless told otherwise of a path."""

    def __init__(self, answers: dict[str, tuple[int, str]]) -> None:
        self.answers = answers
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]  socketserver's pattern

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, body = self.server.answers.get(self.path, (200, ""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  http.server's
        pass


@contextlib.contextmanager
def serving(answers: dict[str, tuple[int, str]]) -> Generator[Server]:
    with Server(answers) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def alive(port: int, *arguments: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    environment = on_path(tmp_path) | {"DEEPLAB_MODEL_REPOSITORY": str(REPOSITORY), "DEEPLAB_HTTP_PORT": str(port)}
    # A proxy is for the world outside.
    environment |= {"http_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9"}
    return subprocess.run([ALIVE, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=30)


def ready(model: str) -> str:
    return f"/v2/models/{model}/ready"


def test_the_server_and_every_model_but_the_ensembles_are_asked(tmp_path: Path) -> None:
    with serving({ready(name): (400, "Model version not ready") for name in ENSEMBLES}) as server:
        ended = alive(server.server_port, tmp_path=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert server.asked[0] == "/v2/health/live"
    assert set(server.asked[1:]) == {ready(name) for name in STEPS}
    assert len(STEPS) == 5


@pytest.mark.parametrize(("status", "body"), [(400, '{"error":"Model version not ready"}'), (500, DEAD), (503, "")])
@pytest.mark.parametrize("model", sorted(STEPS))
def test_a_dead_model_is_named(tmp_path: Path, model: str, status: int, body: str) -> None:
    with serving({ready(model): (status, body)}) as server:
        ended = alive(server.server_port, tmp_path=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == f"alive.sh: model {model} is not alive: {body} HTTP {status}\n"


def test_a_server_that_is_not_live_is_not_alive(tmp_path: Path) -> None:
    for status in (400, 404):
        with serving({"/v2/health/live": (status, "")}) as server:
            ended = alive(server.server_port, tmp_path=tmp_path)
        assert (ended.returncode, ended.stderr) == (1, f"alive.sh: server is not alive:  HTTP {status}\n")


def test_a_model_that_was_built_after_the_start_is_none_of_the_server(tmp_path: Path) -> None:
    unknown = '{"error":"Request for unknown model: \'deeplabv3_resnet101\' is not found"}'
    for status in (400, 404):
        not_ready = (400, '{"error":"Model version not ready"}')
        later = {ready("deeplabv3_resnet101"): not_ready, "/v2/models/deeplabv3_resnet101": (status, unknown)}
        with serving(later) as server:
            assert alive(server.server_port, tmp_path=tmp_path).returncode == 0


def test_no_answer_is_no_death(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        try:
            with socket.create_server(("127.0.0.1", 0)) as silent:
                port = silent.getsockname()[1]
                ended = alive(port, "--end", str(process.pid), tmp_path=tmp_path)
            refused = alive(port, "--end", str(process.pid), tmp_path=tmp_path)
            assert process.poll() is None
        finally:
            process.kill()
    for answer in (ended, refused):
        assert answer.returncode == 2
        assert answer.stderr.startswith("alive.sh: server: no answer: curl: ")


def test_a_dead_model_ends_the_server_where_that_is_asked_for(tmp_path: Path) -> None:
    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    with serving({ready("preprocess"): (500, DEAD)}) as server, subprocess.Popen(waiting) as process:
        try:
            assert alive(server.server_port, tmp_path=tmp_path).returncode == 1
            assert process.poll() is None
            assert alive(server.server_port, "--end", str(process.pid), tmp_path=tmp_path).returncode == 1
            assert process.wait(10) == -15
        finally:
            process.kill()
