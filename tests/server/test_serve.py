"""serve.py with toy models: ready line, refusals, draining, dead stubs, and cleanup."""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import http.client
import http.server
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
import urllib.request
import venv
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from triton_process import SERVE, TritonProcess, alive, files_of, wait_until
from tritonclient.utils import InferenceServerException

import serve
from deeplabv3.embedded import builds, checks, layout, limits
from deeplabv3.embedded.errors import StartError
from deeplabv3.embedded.server import STOP_SIGNALS
from deeplabv3.repository.config import read_config

if TYPE_CHECKING:
    from collections.abc import Iterator

    from triton_process import Serving

pytestmark = pytest.mark.server

PENDING = "nv_inference_pending_request_count"
FREE_PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0")

ECHO_CONFIG = """
backend: "python"
max_batch_size: 8
input [{ name: "SECONDS" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "SLEPT" data_type: TYPE_FP32 dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
"""
ECHO_CODE = """
import pathlib, time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        self.started = pathlib.Path(args["model_repository"], "1", "started")

    def execute(self, requests):
        self.started.touch()
        responses = []
        for request in requests:
            seconds = pb_utils.get_input_tensor_by_name(request, "SECONDS").as_numpy()
            time.sleep(float(seconds[0, 0]))
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("SLEPT", seconds)]))
        return responses
"""
SLOW_START_CODE = ECHO_CODE.replace(
    "def initialize(self, args):", "def initialize(self, args):\n        time.sleep(60)"
)
SLOW_END_CODE = (
    ECHO_CODE
    + """
    def finalize(self):
        end = time.monotonic() + 120
        while time.monotonic() < end:
            pass
"""
)
WAITS_TO_START_CODE = ECHO_CODE.replace(
    "def initialize(self, args):",
    """def initialize(self, args):
        while not pathlib.Path(args["model_repository"], "1", "go").exists():
            time.sleep(0.05)""",
)
DIES_LATER_CODE = """
import os, signal, time

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGABRT)
"""
LARGE_CONFIG = ECHO_CONFIG.replace("dims: [1] }]\ninstance", "dims: [-1] }]\ninstance")
LARGE_CODE = ECHO_CODE.replace("import pathlib, time", "import pathlib, time, numpy").replace(
    '"SLEPT", seconds', '"SLEPT", numpy.zeros((1, 4_000_000), numpy.float32)'
)
TWICE_CONFIG = """
platform: "ensemble"
max_batch_size: 8
input [{ name: "SECONDS" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "SLEPT" data_type: TYPE_FP32 dims: [1] }]
ensemble_scheduling { step [
  { model_name: "first" model_version: -1
    input_map { key: "SECONDS" value: "SECONDS" } output_map { key: "SLEPT" value: "once" } },
  { model_name: "second" model_version: -1
    input_map { key: "SECONDS" value: "once" } output_map { key: "SLEPT" value: "SLEPT" } }
] }
"""


def add_model(repository: Path, name: str, *, config: str = ECHO_CONFIG, code: str | None = ECHO_CODE) -> Path:
    version = repository / name / "1"
    version.mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(f'name: "{name}"\n{config}', encoding="utf-8")
    if code is not None:
        (version / "model.py").write_text(code, encoding="utf-8")
    return repository


def add_models(repository: Path) -> Path:
    """Write two sleeping models and `twice`, the ensemble of both."""
    add_model(repository, "first")
    add_model(repository, "second")
    return add_model(repository, "twice", config=TWICE_CONFIG, code=None)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return add_models(tmp_path / "models")


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """The server that all tests share that leave it running."""
    folder = tmp_path_factory.mktemp("lasting")
    with TritonProcess(add_models(folder / "models"), log=folder / "log") as server:
        yield server


def infer(server: TritonProcess, protocol: str, model: str, *, seconds: float = 0.0) -> float:
    """Return how long the model says it slept."""
    api: Any = {"grpc": tritonclient.grpc, "http": tritonclient.http}[protocol]
    url = {"grpc": server.grpc_url, "http": server.http_url}[protocol]
    tensor = api.InferInput("SECONDS", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[seconds]], np.float32))
    with api.InferenceServerClient(url) as client:
        return float(client.infer(model, [tensor]).as_numpy("SLEPT")[0, 0])


def metric(server: TritonProcess, name: str, model: str) -> int:
    with urllib.request.urlopen(server.metrics_url, timeout=10) as response:  # noqa: S310 - http, see serve.py
        lines = response.read().decode().splitlines()
    return int(next(line for line in lines if line.startswith(f'{name}{{model="{model}"')).split()[-1])


def connect(url: str, path: str) -> http.client.HTTPConnection:
    """Return a connection that has been used and stays open."""
    connection = http.client.HTTPConnection(url, timeout=10)
    connection.request("GET", path)
    response = connection.getresponse()
    response.read()
    assert response.status == http.HTTPStatus.OK
    assert connection.sock is not None
    return connection


def answers(url: str, path: str = "/v2/health/live") -> bool:
    """Return whether a new connection gets the status 200."""
    connection = http.client.HTTPConnection(url, timeout=10)
    with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        return connection.getresponse().status == http.HTTPStatus.OK
    return False


def started(repository: Path, model: str) -> Path:
    """Return the file that a model writes when it starts on a request."""
    return repository / model / "1" / "started"


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_both_protocols_answer_on_the_ports_of_the_ready_line(lasting: TritonProcess, protocol: str) -> None:
    counted = "nv_inference_request_success"  # a moment after the reply
    before = metric(lasting, counted, "twice")
    assert infer(lasting, protocol, "twice") == 0.0
    wait_until(lambda: metric(lasting, counted, "twice") == before + 1, what="the request is counted")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_are_answered_at_a_stop(serving: Serving, repository: Path, number: signal.Signals) -> None:
    server = serving(repository)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        calls = itertools.product(["grpc", "http"], ["twice", "first"])
        answers = [pool.submit(infer, server, protocol, model, seconds=0.8) for protocol, model in calls]
        # One at a time executes, so three that wait mean that the server has all four.
        wait_until(lambda: metric(server, PENDING, "first") == 3, what="four requests in the server")
        # Ctrl-C in a terminal reaches the whole process group.
        (os.killpg if number == signal.SIGINT else os.kill)(server.pid, number)
        assert [answer.result() for answer in answers] == pytest.approx([0.8] * 4)
    assert server.wait() == 0


def test_idle_connections_do_not_hold_up_a_stop(serving: Serving, repository: Path) -> None:
    server = serving(repository)
    host, port = server.http_url.split(":")
    metrics_url = server.metrics_url.removeprefix("http://").partition("/")[0]
    with (
        contextlib.closing(connect(server.http_url, "/v2/health/live")),
        contextlib.closing(connect(metrics_url, "/metrics")),
        socket.create_connection((host, int(port))),
        tritonclient.grpc.InferenceServerClient(server.grpc_url) as channel,
    ):
        assert channel.is_server_live()
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 10


def test_new_connections_are_refused_while_the_request_of_a_kept_one_finishes(
    serving: Serving, repository: Path
) -> None:
    server = serving(repository)
    connection = connect(server.http_url, "/v2/health/live")

    def ask() -> object:
        tensor = {"name": "SECONDS", "shape": [1, 1], "datatype": "FP32", "data": [2.0]}
        connection.request("POST", "/v2/models/twice/infer", json.dumps({"inputs": [tensor]}))
        return json.load(connection.getresponse())["outputs"][0]["data"]

    with contextlib.closing(connection), concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask)
        wait_until(started(repository, "first").exists, what="the request in the first step")
        server.signal(signal.SIGTERM)
        wait_until(lambda: not answers(server.http_url), what="new HTTP connections refused", seconds=2)
        assert not answer.done()
        assert answer.result() == [2.0]
        assert server.wait() == 0


def test_a_stop_after_shared_memory_ran_out_is_not_held_up(serving: Serving, tmp_path: Path) -> None:
    """Triton waits for the stub until the exit timeout, and ends with 1."""
    large = add_model(tmp_path / "models", "large", config=LARGE_CONFIG, code=LARGE_CODE)
    server = serving(large)
    # Its shared memory cannot grow any more, as in a full /dev/shm.
    server.stub("large").rlimit(psutil.RLIMIT_FSIZE, (4 << 20, 4 << 20))
    with pytest.raises(InferenceServerException, match="Failed to increase the shared memory pool size"):
        infer(server, "grpc", "large")
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 20
    assert server.left_behind() == []


def test_a_stop_does_not_wait_for_a_model_that_unloads_slowly(serving: Serving, tmp_path: Path) -> None:
    """As on an overloaded machine; the requests are answered, so the stop is a success."""
    server = serving(add_model(tmp_path / "models", "slow", code=SLOW_END_CODE))
    infer(server, "grpc", "slow")
    assert server.stop() == 0
    assert "all requests are answered" in server.log_tail()
    assert server.left_behind() == []


def test_a_second_signal_stops_at_once(serving: Serving, repository: Path) -> None:
    server = serving(repository)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(infer, server, "grpc", "first", seconds=60)
        wait_until(started(repository, "first").exists, what="the request in the model")
        server.signal(signal.SIGTERM)
        wait_until(lambda: "Signal (15) received" in server.log_tail(), what="the server drains")
        began = time.monotonic()

        def ended() -> bool:
            server.signal(signal.SIGINT)
            return server.process.poll() is not None

        wait_until(ended, what="the end", seconds=10)
        assert time.monotonic() - began < 5
        assert answer.exception() is not None
    assert server.wait() == 128 + signal.SIGINT


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_killed_stub_ends_the_server_and_is_named(serving: Serving, repository: Path, *, busy: bool) -> None:
    server = serving(repository)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        requests = [pool.submit(infer, server, "grpc", "twice", seconds=1) for _ in range(2 * busy)]
        wait_until(lambda: metric(server, PENDING, "first") == busy, what="one request at work, one waiting")
        server.stub("second").kill()
        assert server.wait(15) == 1
        assert all(request.exception() for request in requests)
    assert server.left_behind() == []
    assert "serve.py: error: the Python stub second_0_0 died" in server.log_tail(1)


@pytest.mark.parametrize("who", ["tritonserver", "second", "everything"])
def test_a_paused_server_is_ended_and_never_goes_on(serving: Serving, repository: Path, who: str) -> None:
    server = serving(repository)
    targets = {"tritonserver": [server.triton], "second": [server.stub("second")]}
    for process in targets.get(who, [server.triton, *server.stubs]):
        process.suspend()
    assert server.wait(10) == 1
    assert server.left_behind() == []
    what = {"tritonserver": "tritonserver", "second": "the stub second_0_0"}.get(who, "tritonserver and 2 more")
    assert f"serve.py: error: {what}" in server.log_tail(1)
    assert "stopped" in server.log_tail(1)


def test_a_server_whose_watcher_was_paused_is_ended(serving: Serving, repository: Path) -> None:
    """As far as serve.py can tell the whole machine was."""
    server = serving(repository)
    server.signal(signal.SIGSTOP)
    time.sleep(1.0)  # what the backend waits
    server.signal(signal.SIGCONT)
    assert server.wait(10) == 1
    assert server.left_behind() == []
    assert "error: serve.py did not run for" in server.log_tail(1)


def test_ctrl_z_does_not_pause_a_server(lasting: TritonProcess) -> None:
    lasting.signal(signal.SIGTSTP)
    wait_until(lambda: "Ctrl-Z is ignored" in lasting.log_tail(1), what="a line that says so", seconds=5)
    assert infer(lasting, "grpc", "twice") == 0.0


@pytest.mark.parametrize("variables", [(), ("PATH=/nonexistent",)], ids=["none", "useless PATH"])
def test_no_variable_of_the_environment_is_needed(repository: Path, tmp_path: Path, variables: tuple[str, ...]) -> None:
    with TritonProcess(repository, log=tmp_path / "log", before=["env", "-i", *variables]) as server:
        assert infer(server, "grpc", "twice") == 0.0


def test_a_start_without_bash_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], repository: Path
) -> None:
    monkeypatch.setenv("PATH", str(repository))
    monkeypatch.setattr(os, "defpath", str(repository))
    assert "bash, which starts the Python models, is not on PATH" in refusal(capsys, repository)


def test_an_environment_under_any_path_serves(repository: Path, tmp_path: Path) -> None:
    """The Python in a stub dies of a `*.pth` file that is not ASCII, such as that of an editable package."""
    home = tmp_path / "my dir ü" / "env"
    venv.create(home, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if entry.suffix != ".pth":
            (packages / entry.name).symlink_to(entry)
    (packages / "editable.pth").write_text(f"{packages / 'ü'}\n", encoding="utf-8")
    odd = repository.rename(tmp_path / "my dir ü" / "models")
    with TritonProcess(odd, log=tmp_path / "log", python=str(home / "bin" / "python")) as server:
        assert infer(server, "grpc", "twice") == 0.0


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("import os; os._exit(3)", "ended with exit code 3"),
        (DIES_LATER_CODE, "the Python stub dying ended with signal SIGABRT"),
    ],
    ids=["at once", "later"],
)
def test_a_stub_that_dies_before_its_model_is_loaded_ends_the_start(repository: Path, code: str, end: str) -> None:
    """Triton itself waits for it without end."""
    add_model(repository, "dying", code=code)
    done = subprocess.run(command(repository), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    last = done.stderr.splitlines()[-1]
    assert last.startswith("serve.py: error: ")
    assert end in last


FORM = "application/x-www-form-urlencoded"


@pytest.mark.parametrize("service", ["http", "metrics"])
@pytest.mark.parametrize("path", ["v2/models/first/infer", "v2/health/ready", "metrics", "nowhere"])
@pytest.mark.parametrize("megabytes", [5, 60])
def test_a_form_does_not_end_the_server(lasting: TritonProcess, service: str, path: str, megabytes: int) -> None:
    url = lasting.http_url if service == "http" else lasting.metrics_url.split("/")[2]
    assert post(url, path, bytes(megabytes * 1_000_000), FORM) >= http.HTTPStatus.BAD_REQUEST
    assert infer(lasting, "http", "first") == 0.0


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (bytes(limits.LARGEST_REQUEST_BYTES), FORM),
        (b"%41=%41&" * 2_000_000, FORM),
        (bytes(16_000_000), "application/octet-stream"),
        (bytes(16_000_000), "application/json"),
        (bytes(16_000_000), "multipart/form-data; boundary=x"),
        (b"[" * 16_000_000, "application/json"),
        (b'{"a":' * 3_200_000, "application/json"),
    ],
    ids=["largest", "many fields", "bytes", "not JSON", "multipart", "nested lists", "nested objects"],
)
def test_no_body_ends_the_server(lasting: TritonProcess, body: bytes, kind: str) -> None:
    assert post(lasting.http_url, "v2/models/first/infer", body, kind) >= http.HTTPStatus.BAD_REQUEST
    assert infer(lasting, "http", "first") == 0.0


def test_a_body_of_many_small_chunks_does_not_end_the_server(lasting: TritonProcess) -> None:
    """They are counted on the stack: 1,000,000 take 16 MB of it."""
    connection = http.client.HTTPConnection(lasting.http_url, timeout=60)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/v2/models/first/infer")
        connection.putheader("Transfer-Encoding", "chunked")
        connection.endheaders()
        for _ in range(100):
            connection.send(b"1\r\n \r\n" * 10_000)
        connection.send(b"0\r\n\r\n")
        assert connection.getresponse().status >= http.HTTPStatus.BAD_REQUEST
    assert infer(lasting, "http", "first") == 0.0


def post(url: str, path: str, body: bytes, kind: str) -> int:
    """Return the status that a body of some content type gets."""
    connection = http.client.HTTPConnection(url, timeout=60)
    with contextlib.closing(connection):
        connection.request("POST", f"/{path}", body, {"Content-Type": kind})
        return connection.getresponse().status


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, "log above$"),
        (signal.SIGSEGV, "log above and the known crashes in docs/serving.md, Errors$"),
    ],
)
def test_the_end_of_tritonserver_is_reported(
    serving: Serving, repository: Path, number: signal.Signals, told: str
) -> None:
    server = serving(repository)
    server.triton.send_signal(number)
    assert server.wait(30) == 128 + number
    assert re.search(rf"tritonserver ended with signal {number.name}; see its {told}", server.log_tail(1))


def test_a_killed_serve_takes_its_server_along_and_the_next_start_sweeps(serving: Serving, repository: Path) -> None:
    bystander = serving(repository)
    killed = serving(repository)
    assert [entry for entry in killed.left_behind() if entry.startswith("/dev/shm")]  # noqa: S108 - compared only
    killed.signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    wait_until(lambda: not alive(killed.triton), what="tritonserver gone", seconds=5)
    wait_until(lambda: not any(map(alive, killed.stubs)), what="stubs gone", seconds=20)
    serving(repository)
    assert killed.left_behind() == []
    assert infer(bystander, "http", "twice") == 0.0


def test_a_stop_while_models_load_leaves_nothing(tmp_path: Path) -> None:
    repository = add_model(tmp_path / "models", "slow", code=SLOW_START_CODE)
    log = tmp_path / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen(command(repository), stderr=stderr)
    try:
        wait_until(lambda: "TRITONBACKEND_ModelInstanceInitialize: slow" in log.read_text(), what="the model loads")
        assert files_of(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM
    finally:
        process.kill()
        process.wait()
    assert files_of(process.pid) == []


class AlwaysReady(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(http.HTTPStatus.OK)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_server_that_took_the_ports_meanwhile_is_not_reported_as_ready(tmp_path: Path) -> None:
    repository = add_model(tmp_path / "models", "waits", code=WAITS_TO_START_CODE)
    ports = dict(
        zip(("--http-port", "--grpc-port", "--metrics-port"), checks.free_ports("127.0.0.1", set()), strict=False)
    )
    options = [word for option, port in ports.items() for word in (option, str(port))]
    log = tmp_path / "log"
    with contextlib.ExitStack() as others, log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, SERVE, "--model-repository", repository, *options], stdout=subprocess.PIPE, stderr=stderr
        )
        others.callback(process.kill)
        wait_until(lambda: "TRITONBACKEND_ModelInstanceInitialize: waits" in log.read_text(), what="the model loads")
        for option in ("--http-port", "--metrics-port"):
            other = others.enter_context(http.server.ThreadingHTTPServer(("127.0.0.1", ports[option]), AlwaysReady))
            threading.Thread(target=other.serve_forever).start()
            others.callback(other.shutdown)
        (repository / "waits" / "1" / "go").touch()
        out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, b"")
    assert "already in use" in log.read_text()


def test_models_that_do_not_load_are_named_at_the_end(repository: Path) -> None:
    add_model(repository, "broken", code="raise RuntimeError('no weights today')")
    add_model(repository, "typeless", config=ECHO_CONFIG.replace("TYPE_FP32", "TYPE_INVALID"))
    done = subprocess.run(command(repository), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    ours = [line for line in done.stderr.splitlines()[-3:] if line.startswith("serve.py: ")]
    assert any("'broken'" in line and "no weights today" in line for line in ours)
    assert any("'typeless'" in line for line in ours)


def test_options_behind_two_dashes_reach_tritonserver(repository: Path) -> None:
    done = subprocess.run(
        [*command(repository), "--", "--no-such-option"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode != 0
    assert "--no-such-option" in done.stderr


@pytest.mark.parametrize(
    "path", ["v2/repository/index", "v2/systemsharedmemory/status", "v2/trace/setting", "v2/logging"]
)
def test_administration_is_closed(lasting: TritonProcess, path: str) -> None:
    connection = http.client.HTTPConnection(lasting.http_url, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST" if "index" in path else "GET", f"/{path}")
        assert connection.getresponse().status == http.HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    "call", ["get_model_repository_index", "get_system_shared_memory_status", "get_trace_settings", "get_log_settings"]
)
def test_administration_is_closed_over_grpc(lasting: TritonProcess, call: str) -> None:
    with (
        tritonclient.grpc.InferenceServerClient(lasting.grpc_url) as client,
        pytest.raises(tritonclient.grpc.InferenceServerException, match="restricted"),
    ):
        getattr(client, call)()


def test_a_path_with_characters_of_the_shell_is_only_a_path(
    serving: Serving, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton starts the stubs by `bash -c` and quotes nothing."""
    monkeypatch.chdir(tmp_path)
    odd = tmp_path / "sp ace $(touch pwned) é'x"
    odd.mkdir()
    server = serving(repository.rename(odd / "models"))
    infer(server, "grpc", "first")
    assert not (tmp_path / "pwned").exists()


def test_a_server_serves_if_its_ready_line_is_not_read(repository: Path, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    free = checks.choose_address("127.0.0.1", http=0, grpc=0, metrics=0)
    ports = ["--http-port", str(free.http), "--grpc-port", str(free.grpc), "--metrics-port", str(free.metrics)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([*command(repository), *ports], stdout=writer, stderr=log)
    os.close(writer)
    try:
        url = f"127.0.0.1:{free.http}"
        wait_until(lambda: answers(url, "/v2/health/ready") or process.poll() is not None, what="the server is ready")
        family = psutil.Process(process.pid).children(recursive=True)
        next(child for child in family if "first_0_0" in child.cmdline()).kill()
        assert process.wait(60) == 1
        # Where the stub died before serve.py had seen that all is ready, it says so in other words.
        assert re.search(r"serve\.py: error: .* Python stub .*(died|SIGKILL)", (tmp_path / "log").read_text())
    finally:
        process.kill()
        process.wait()


def test_an_unread_log_does_not_block_signals(repository: Path) -> None:
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(command(repository), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        )
        stack.callback(process.kill)
        assert process.stdout is not None
        assert process.stderr is not None
        fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)  # full long before the models are ready
        assert process.stdout.readline().startswith(b"READY")
        process.terminate()
        assert process.wait(60) == 0


def test_a_damaged_model_is_refused(capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    write_core(repository, "core", label="a", built="a")
    file = repository / "core" / "1" / "model.pt"
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("model/data/0", bytes(range(200)))
    file.write_bytes(file.read_bytes().replace(bytes(range(100, 110)), bytes(10)))
    assert "model.pt is damaged in model/data/0; run build_models.py" in refusal(capsys, repository)


def command(repository: Path) -> list[str]:
    return [sys.executable, str(SERVE), "--model-repository", str(repository), *FREE_PORTS]


def write_core(repository: Path, name: str, *, label: str | None, built: str | None) -> None:
    """Add a TorchScript model: what its config says and what build_models.py wrote into its file."""
    parameter = f'parameters {{ key: "weights" value {{ string_value: "{label}" }} }}' if label else ""
    add_model(repository, name, config=f'platform: "pytorch_libtorch"\n{parameter}', code=None)
    with zipfile.ZipFile(repository / name / "1" / "model.pt", "w") as archive:
        archive.writestr("model/data.pkl", b"")
        if built:
            archive.writestr("model/extra/build.json", json.dumps({"weights": built, "class_names": ["a"]}))


def write_ensemble(repository: Path, name: str, *, label: str, core: str) -> None:
    parameter = f'parameters {{ key: "weights" value {{ string_value: "{label}" }} }}'
    config = TWICE_CONFIG.replace('"second"', f'"{core}"') + parameter
    add_model(repository, name, config=config, code=None)


def configs_of(repository: Path) -> dict[str, Any]:
    return {folder.name: read_config(folder / "config.pbtxt") for folder in repository.iterdir()}


@pytest.mark.parametrize(
    ("label", "built", "ensemble"),
    [("a", "a", "a"), (None, "a", "a"), ("a", None, "a"), (None, None, "a")],
    ids=["all equal", "core without a label", "file of others", "nothing known of the core"],
)
def test_models_with_their_own_weights_pass(
    repository: Path, label: str | None, built: str | None, ensemble: str
) -> None:
    write_core(repository, "core", label=label, built=built)
    write_ensemble(repository, "segment", label=ensemble, core="core")
    builds.check_builds(repository, configs_of(repository))


@pytest.mark.parametrize(
    ("label", "built", "ensemble", "named"),
    [("a", "b", "a", "core"), ("a", "a", "b", "segment"), ("a", None, "b", "segment"), (None, "a", "b", "segment")],
    ids=["file differs", "ensemble differs", "ensemble differs, file of others", "ensemble differs, no core label"],
)
def test_models_labeled_with_other_weights_are_refused(
    repository: Path, label: str | None, built: str | None, ensemble: str, named: str
) -> None:
    write_core(repository, "core", label=label, built=built)
    write_ensemble(repository, "segment", label=ensemble, core="core")
    with pytest.raises(StartError, match=rf"^{named}: .*'[ab]'.*'[ab]'.*run build_models.py"):
        builds.check_builds(repository, configs_of(repository))


@pytest.mark.parametrize(
    ("built", "labels", "accepted"),
    [
        (["sky", "sea"], "sky\nsea\n", True),
        (["sky", "sea"], "sea\nsky\n", False),
        (["sky", "sea"], "sky\n", False),
        (["sky", "sea"], None, False),
        (None, "sky\n", True),
    ],
    ids=["equal", "another order", "too few", "no file", "file of others"],
)
def test_an_ensemble_that_names_other_classes_than_its_model_was_built_with_is_refused(
    repository: Path, built: list[str] | None, labels: str | None, *, accepted: bool
) -> None:
    write_core(repository, "core", label=None, built=None)
    if built is not None:
        with zipfile.ZipFile(repository / "core" / "1" / "model.pt", "a") as archive:
            archive.writestr("model/extra/build.json", json.dumps({"class_names": built}))
    add_model(
        repository, "labeller", config='output { name: "COUNT" label_filename: "labels.txt" }', code="class X: pass"
    )
    if labels is not None:
        (repository / "labeller" / "labels.txt").write_text(labels)
    steps = "".join(f'step {{ model_name: "{name}" }} ' for name in ("core", "labeller"))
    add_model(repository, "segment", config=f'platform: "ensemble" ensemble_scheduling {{ {steps} }}', code=None)
    with contextlib.nullcontext() if accepted else pytest.raises(StartError, match=r"labels\.txt .*build_models\.py"):
        builds.check_builds(repository, configs_of(repository))


@pytest.mark.parametrize(
    ("names", "accepted"),
    [('["sky", "sea"]', True), ('["sea", "sky"]', False), ("sky, sea", False), ("2", False)],
    ids=["equal", "another order", "no JSON", "no list"],
)
def test_a_step_with_other_classes_than_the_model_is_refused(repository: Path, names: str, *, accepted: bool) -> None:
    write_core(repository, "core", label=None, built=None)
    with zipfile.ZipFile(repository / "core" / "1" / "model.pt", "a") as archive:
        archive.writestr("model/extra/build.json", json.dumps({"class_names": ["sky", "sea"]}))
    config = f'parameters {{ key: "class_names" value {{ string_value: {json.dumps(names)} }} }}'
    add_model(repository, "namer", config=config, code="class X: pass")
    steps = "".join(f'step {{ model_name: "{name}" }} ' for name in ("core", "namer"))
    add_model(repository, "segment", config=f'platform: "ensemble" ensemble_scheduling {{ {steps} }}', code=None)
    with contextlib.nullcontext() if accepted else pytest.raises(StartError, match=r"class_names .*build_models\.py"):
        builds.check_builds(repository, configs_of(repository))


def test_a_model_of_an_older_build_is_refused(repository: Path) -> None:
    write_core(repository, "core", label=None, built=None)
    with zipfile.ZipFile(repository / "core" / "1" / "model.pt", "a") as archive:
        archive.writestr("model/extra/build.json", json.dumps({"weights": "none"}))
    with pytest.raises(StartError, match=r"another version of build_models\.py; run it again"):
        builds.check_builds(repository, configs_of(repository))


def refusal(capsys: pytest.CaptureFixture[str], repository: Path, *options: str) -> str:
    """Return what serve.py says when it refuses to start."""
    before = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGTSTP)}
    try:
        code = serve.main(["--model-repository", str(repository), *(options or FREE_PORTS)])
    finally:  # it leaves them ignored, since its process ends
        signal.set_wakeup_fd(-1)
        for number, handler in before.items():
            signal.signal(number, handler)
    assert code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("serve.py: error: ")
    assert error.count("\n") <= 2
    return error


def test_a_refusal_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = subprocess.run(command(tmp_path / "none"), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"serve.py: error: the model repository {tmp_path / 'none'} does not exist; give one with --model-repository\n"
    )


def test_unusable_repositories_are_refused(capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    a_file = repository / "README.md"
    a_file.write_text("not a model", encoding="utf-8")
    assert "README.md is not a directory" in refusal(capsys, a_file)
    empty = repository.with_name("empty")
    empty.mkdir()
    assert "has no models" in refusal(capsys, empty)
    add_model(repository, "hollow", code=None)
    assert "hollow/1/model.py is missing" in refusal(capsys, repository)
    (repository / "hollow" / "1" / "model.py").touch()
    hidden = repository / ".cache"
    hidden.mkdir()
    assert ".cache has no config.pbtxt" in refusal(capsys, repository)
    (hidden / "config.pbtxt").write_text("max_batch_size: many", encoding="utf-8")
    assert "config.pbtxt is not a model configuration: 1:17" in refusal(capsys, repository)


def test_a_queue_with_a_bound_is_refused(capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    bound = "dynamic_batching { default_queue_policy { max_queue_size: 9 } }"
    add_model(repository, "bounded", config=ECHO_CONFIG + bound)
    assert "bounded: config.pbtxt limits the queue" in refusal(capsys, repository)


@pytest.mark.parametrize("kind", ['platform: "pytorch_libtorch"', 'backend: "pytorch"'])
def test_a_core_model_that_is_not_built_is_refused(
    capsys: pytest.CaptureFixture[str], repository: Path, kind: str
) -> None:
    add_model(repository, "core", config=kind, code=None)
    assert "core/1/model.pt is missing; run .venv/bin/python build_models.py" in refusal(capsys, repository)
    (repository / "core" / "1" / "model.pt").write_text("half a download", encoding="utf-8")
    assert "model.pt is not a TorchScript file" in refusal(capsys, repository)


def test_mislabeled_weights_are_refused(capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    write_core(repository, "core", label="COCO", built="random")
    message = refusal(capsys, repository)
    assert "'COCO'" in message
    assert "'random'" in message


def test_unusable_ports_are_refused(capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        message = refusal(capsys, repository, *FREE_PORTS, "--grpc-port", taken)
    assert f"127.0.0.1:{taken} (Address already in use)" in message
    assert "--grpc-port" in message
    with pytest.raises(SystemExit, match="2"):
        serve.main(["--http-port", "65536"])
    assert "--http-port: must be an integer from 0 to 65535, got '65536'" in capsys.readouterr().err
    assert "--http-port and --metrics-port are both 8002" in refusal(capsys, repository, "--http-port", "8002")
    assert "cannot listen on 192.0.2.1" in refusal(capsys, repository, "--host", "192.0.2.1", *FREE_PORTS)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("platform.machine", "aarch64", "Linux x86_64 only, not on Linux aarch64"),
        ("platform.system", "Darwin", "Linux x86_64 only, not on Darwin x86_64"),
        ("importlib.util.find_spec", None, "nvidia-pytriton is not installed"),
        ("importlib.metadata.version", "2.1.0", "numpy 2.1.0 corrupts tensors"),
        ("sysconfig.get_python_version", "3.14", "does not support Python 3.14; use one of: 3.10, 3.11"),
    ],
)
def test_unusable_environments_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: object, message: str
) -> None:
    def answer(*_: object) -> object:
        return value

    monkeypatch.setattr(name, answer)
    assert message in refusal(capsys, Path("models"))


def test_models_get_as_many_threads_as_the_server_has_cores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    server = checks.check_environment()
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        assert layout.environment(server, first)["OMP_NUM_THREADS"] == "1"
    finally:
        os.sched_setaffinity(0, cores)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert layout.environment(server, second)["OMP_NUM_THREADS"] == "7"
