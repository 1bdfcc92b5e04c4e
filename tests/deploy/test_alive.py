"""deploy/alive.sh against servers with configured answers for each model."""

from __future__ import annotations

import contextlib
import http.server
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
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
    """Answers 200, except for configured paths."""

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

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - http.server's
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


def alive(
    port: int, *arguments: str, tmp_path: Path, repository: Path | str = REPOSITORY, command: str | Path = ALIVE
) -> subprocess.CompletedProcess[str]:
    environment = on_path(tmp_path) | {"DEEPLAB_MODEL_REPOSITORY": str(repository), "DEEPLAB_HTTP_PORT": str(port)}
    # A proxy must not be used for the local server.
    environment |= {"http_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9"}
    shell = ["/bin/sh", "-c", command] if isinstance(command, str) else [command]
    return subprocess.run(
        [*shell, *arguments], env=environment, capture_output=True, text=True, check=False, timeout=30
    )


def ready(model: str) -> str:
    return f"/v2/models/{model}/ready"


def test_the_server_and_every_model_but_the_ensembles_are_asked(tmp_path: Path) -> None:
    with serving({ready(name): (400, "Model version not ready") for name in ENSEMBLES}) as server:
        ended = alive(server.server_port, tmp_path=tmp_path)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    assert server.asked[0] == "/v2/health/live"
    assert set(server.asked[1:]) == {ready(name) for name in STEPS}
    assert len(STEPS) == 8


def test_what_a_base_image_has_each_bash_do_first_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVIDIA's BASH_ENV queries the driver, which takes most of the few seconds of a probe."""
    (tmp_path / "bashrc").write_text("exit 9\n")
    monkeypatch.setenv("BASH_ENV", str(tmp_path / "bashrc"))
    with serving({}) as server:
        assert alive(server.server_port, tmp_path=tmp_path).returncode == 0


@pytest.mark.parametrize(("status", "body"), [(400, '{"error":"Model version not ready"}'), (500, DEAD), (503, "")])
def test_a_dead_model_is_named(tmp_path: Path, status: int, body: str) -> None:
    with serving({ready("encode_mask"): (status, body)}) as server:
        ended = alive(server.server_port, tmp_path=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr == f"alive.sh: model encode_mask is not alive: {body} HTTP {status}\n"


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
    impatient = tmp_path / "alive.sh"
    shutil.copy(ALIVE, impatient)
    impatient.write_text(ALIVE.read_text().replace("--max-time 5 ", "--max-time 0.5 "))
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        try:
            with socket.create_server(("127.0.0.1", 0)) as silent:
                port = silent.getsockname()[1]
                ended = alive(port, "--end", str(process.pid), tmp_path=tmp_path, command=impatient)
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


@pytest.mark.parametrize(
    "arguments", [["--end"], ["--end", ""], ["--end", "one"], ["--end", "1", "2"], ["--stop", "1"]]
)
def test_wrong_arguments_are_distinguished_from_a_crash(tmp_path: Path, arguments: list[str]) -> None:
    with serving({ready(model): (500, DEAD) for model in STEPS}) as server:
        ended = alive(server.server_port, *arguments, tmp_path=tmp_path)
    assert (ended.returncode, ended.stderr) == (2, "usage: alive.sh [--end PID]\n")
    assert server.asked == []


STATISTICS = '{"model_stats":[{"name":"preprocess","version":"1"},{"name":"postprocess","version":"1"}]}'


@pytest.mark.parametrize("repository", ["s3://bucket/models", "empty", "missing"])
def test_without_files_the_servers_own_list_is_asked_for(tmp_path: Path, repository: str) -> None:
    (tmp_path / "empty").mkdir()
    where = repository if "://" in repository else tmp_path / repository
    listed = {"/v2/models/stats": (200, STATISTICS)}
    with serving(listed) as server:
        ended = alive(server.server_port, tmp_path=tmp_path, repository=where)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert server.asked[1:] == ["/v2/models/stats", ready("postprocess"), ready("preprocess")]
    with serving(listed | {ready("preprocess"): (500, DEAD)}) as server:
        ended = alive(server.server_port, tmp_path=tmp_path, repository=where)
    assert (ended.returncode, ended.stderr) == (1, f"alive.sh: model preprocess is not alive: {DEAD} HTTP 500\n")


@pytest.mark.parametrize(("repository", "code"), [("s3://bucket/models", 0), ("missing", 2)])
@pytest.mark.parametrize("answer", [(200, '{"model_stats":[]}'), (403, '{"error":"This API is restricted"}')])
def test_without_any_model_to_ask_for_a_folder_is_a_mistake(
    tmp_path: Path, repository: str, code: int, answer: tuple[int, str]
) -> None:
    where = repository if "://" in repository else tmp_path / repository
    with serving({"/v2/models/stats": answer}) as server:
        ended = alive(server.server_port, tmp_path=tmp_path, repository=where)
    assert ended.returncode == code
    assert ("has no models, and the server lists none" in ended.stderr) == bool(code)


@pytest.mark.parametrize(
    ("answers", "healthy", "ends"),
    [
        ({}, True, False),
        ({"/v2/health/ready": (400, "")}, False, False),
        ({ready("preprocess"): (500, DEAD)}, False, True),
    ],
    ids=["ready", "not ready", "a model is dead"],
)
def test_the_health_check_of_compose(
    tmp_path: Path, answers: dict[str, tuple[int, str]], *, healthy: bool, ends: bool
) -> None:
    check = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["x-server"]["healthcheck"]["test"]
    assert check[:3] == ["CMD", "bash", "-pc"]
    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    with serving(answers) as server, subprocess.Popen(waiting) as process:
        command = check[3]
        for ours, here in (
            ("/opt/deeplab/", f"{ROOT}/"),
            ("--end 1 ", f"--end {process.pid} "),
            ("127.0.0.1:8000/", f"127.0.0.1:{server.server_port}/"),
        ):
            assert ours in command
            command = command.replace(ours, here)
        try:
            assert (alive(server.server_port, tmp_path=tmp_path, command=command).returncode == 0) == healthy
            if ends:
                assert process.wait(10) == -15
            assert (process.poll() is not None) == ends
        finally:
            process.kill()
