"""The entry point with the wheel's tritonserver: restricted interfaces, alive.sh, traces, and a full queue."""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import re
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from grpc import StatusCode
from script_servers import GrpcServer, HttpServer, Script
from trace_collector import MODELS, Collector, attributes
from triton_process import alive as is_running
from triton_process import wait_until
from tritonclient.utils import InferenceServerException
from wheel import launcher, on_path

from benchmarks.toy import picture
from deeplab_client import SegmentationClient, ServerOverloadedError
from deeplabv3.embedded.checks import free_ports
from deeplabv3.embedded.processes import SHARED_MEMORY

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

pytestmark = [pytest.mark.deploy, pytest.mark.stack]

ROOT = Path(__file__).resolve().parents[2]
SLOW = """
name: "slow"
backend: "python"
max_batch_size: 1
input [{ name: "SECONDS" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "SLEPT" data_type: TYPE_FP32 dims: [1] }]
instance_group [{ kind: KIND_CPU count: 1 }]
dynamic_batching { default_queue_policy { max_queue_size: 1 } }
"""
SLEEP = """
import time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        seconds = [pb_utils.get_input_tensor_by_name(request, "SECONDS") for request in requests]
        time.sleep(float(seconds[0].as_numpy()[0, 0]))
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SLEPT", each.as_numpy())]) for each in seconds]
"""


class Container:
    """The entry point with the wheel's server behind it."""

    def __init__(self, repository: Path, folder: Path, **variables: str) -> None:
        self.http, self.grpc, self.metrics = itertools.islice(free_ports("127.0.0.1", set()), 3)
        self.variables = on_path(launcher(folder)) | {
            "DEEPLAB_MODEL_REPOSITORY": str(repository),
            "DEEPLAB_HTTP_PORT": str(self.http),
            **variables,
        }
        self.log = folder / "log"
        ports = [f"--http-port={self.http}", f"--grpc-port={self.grpc}", f"--metrics-port={self.metrics}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [ROOT / "deploy" / "entrypoint.sh", "--http-port=1", *ports, "--exit-timeout-secs=10"],
                env=self.variables,
                stdout=log,
                stderr=log,
            )

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()[-4000:]
        url = f"http://127.0.0.1:{self.http}/v2/health/ready"
        with contextlib.suppress(OSError), urllib.request.urlopen(url) as answer:
            return answer.status == 200
        return False

    def alive(self, repository: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [ROOT / "deploy" / "alive.sh"]
        variables = self.variables | ({} if repository is None else {"DEEPLAB_MODEL_REPOSITORY": str(repository)})
        return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)

    def files(self) -> set[Path]:
        """Return the files of the server in shared memory, also after its end."""
        name = re.search(r'"shm-region-prefix-name":"(deeplab_\w+)_"', self.log.read_text())
        return set(SHARED_MEMORY.glob(f"{name[1]}[._]*")) if name else set()

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(60)


@contextlib.contextmanager
def started(repository: Path, folder: Path, **variables: str) -> Generator[Container]:
    container = Container(repository, folder, **variables)
    family: list[psutil.Process] = []
    try:
        wait_until(container.ready, what="the server is ready", seconds=300)
        family = psutil.Process(container.process.pid).children(recursive=True)
        yield container
        container.stop()
    finally:
        container.process.kill()
        container.process.wait()
        for process in filter(is_running, family):
            process.kill()
        for file in container.files():
            file.unlink()


@pytest.fixture(scope="module")
def slow_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One model that takes a configured time per request, and a second to load."""
    folder = tmp_path_factory.mktemp("slow")
    version = folder / "slow" / "1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text(SLOW)
    (version / "model.py").write_text(SLEEP)
    return folder


@pytest.fixture(scope="module")
def repository(toy_repository: Path, slow_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for source in (toy_repository, slow_repository):
        shutil.copytree(source, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def container(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    with started(repository, tmp_path_factory.mktemp("container")) as container:
        yield container


def test_it_segments(container: Container) -> None:
    expected = picture(7)
    for url in (f"grpc://127.0.0.1:{container.grpc}", f"http://127.0.0.1:{container.http}"):
        with SegmentationClient(url, timeout=60.0) as client:
            assert expected.is_mask(client.segment(expected.pixels()).mask)


@pytest.mark.parametrize("service", ["http", "metrics"])
def test_a_form_does_not_end_the_server(container: Container, service: str) -> None:
    url = f"http://127.0.0.1:{getattr(container, service)}/v2/health/ready"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, bytes(60_000_000))
    with refused.value:
        assert refused.value.code == 405
    assert container.ready()


def test_the_models_are_fixed(container: Container) -> None:
    assert "| model_control_mode               | MODE_NONE" in container.log.read_text()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/preprocess/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("GET", "/v2/cudasharedmemory/status"),
        ("GET", "/v2/trace/setting"),
        ("GET", "/v2/logging"),
    ],
)
def test_administration_is_closed(container: Container, method: str, path: str) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{container.http}{path}", method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request)  # noqa: S310 - our own server
    with refused.value:
        assert refused.value.code == 403


@pytest.mark.parametrize("call", ["get_model_repository_index", "get_system_shared_memory_status", "get_log_settings"])
def test_administration_is_closed_over_grpc(container: Container, call: str) -> None:
    with (
        tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{container.grpc}") as client,
        pytest.raises(InferenceServerException, match="restricted"),
    ):
        getattr(client, call)()


def test_alive_finds_every_model_alive(container: Container) -> None:
    ended = container.alive()
    assert (ended.returncode, ended.stderr) == (0, "")


def test_alive_passes_over_a_model_that_came_after_the_start(
    repository: Path, container: Container, tmp_path: Path
) -> None:
    later = tmp_path / "models"
    for model in repository.iterdir():
        (later / model.name).mkdir(parents=True)
        (later / model.name / "config.pbtxt").write_text((model / "config.pbtxt").read_text())
    (later / "unheard_of").mkdir()
    (later / "unheard_of" / "config.pbtxt").touch()
    ended = container.alive(later)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_server_lists_its_models_for_alive_where_there_are_no_files(
    repository: Path, container: Container, tmp_path: Path
) -> None:
    ended = container.alive(tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    with urllib.request.urlopen(f"http://127.0.0.1:{container.http}/v2/models/stats") as answer:
        listed = re.findall(rb'"name":"([^"]*)"', answer.read())
    assert {name.decode() for name in listed} == {path.parent.name for path in repository.glob("*/config.pbtxt")}


def test_triton_2_51_does_not_report_a_dead_stub(slow_repository: Path, tmp_path: Path) -> None:
    """The reason for 26.08 in the container. If this fails, the wheel no longer has the fault."""
    with started(slow_repository, tmp_path) as container:
        stubs = psutil.Process(container.process.pid).children(recursive=True)
        next(stub for stub in stubs if "slow_0_0" in stub.cmdline()).kill()
        assert container.alive().returncode == 0


def test_a_start_removes_what_a_killed_server_left_in_shared_memory(
    container: Container, slow_repository: Path, tmp_path: Path
) -> None:
    """In a pod, /dev/shm stays when the container restarts."""
    (tmp_path / "killed").mkdir()
    with started(slow_repository, tmp_path / "killed") as killed:
        stubs = psutil.Process(killed.process.pid).children(recursive=True)
        for process in (killed.process, *stubs):
            process.kill()
        wait_until(lambda: not any(map(is_running, stubs)), what="all are dead")
        assert len(killed.files()) > 1
        its = container.files()
        with started(slow_repository, tmp_path) as again:
            assert len(again.files()) > 1
            assert killed.files() == set()
    assert container.ready()
    assert len(its) > 1
    assert its <= container.files()


def test_a_collector_gets_the_spans_of_the_ensemble_and_its_steps(toy_repository: Path, tmp_path: Path) -> None:
    with Collector() as collector:
        variables = {
            "DEEPLAB_TRACE_URL": collector.url,
            "OTEL_SERVICE_NAME": "vision",
            # Variables of OpenTelemetry that the chart sets or its README names.
            "OTEL_RESOURCE_ATTRIBUTES": "k8s.namespace.name=prod",
            "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer token",
            "OTEL_BSP_SCHEDULE_DELAY": "100",  # ms
        }
        with started(toy_repository, tmp_path, **variables) as container:
            with SegmentationClient(f"grpc://127.0.0.1:{container.grpc}", timeout=60.0) as client:
                client.segment(picture(7).pixels())
            spans = collector.await_spans({"InferRequest", *MODELS})
    ensemble, *steps = (spans[name] for name in MODELS)
    assert ensemble["parentSpanId"] == spans["InferRequest"]["spanId"]
    assert {step["parentSpanId"] for step in steps} == {ensemble["spanId"]}
    named = {"service.name": "vision", "service.instance.id": socket.gethostname(), "k8s.namespace.name": "prod"}
    for span in spans.values():
        assert named.items() <= attributes(span["resource"]).items()
        assert span["authorization"] == "Bearer token"


def test_sigterm_ends_it(slow_repository: Path, tmp_path: Path) -> None:
    with started(slow_repository, tmp_path) as container:
        container.process.send_signal(signal.SIGTERM)
        assert container.process.wait(60) == 0


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_full_queue_refuses_with_what_the_client_knows_as_overload(container: Container, protocol: str) -> None:
    """The queue of a model, because 2.51 does not answer a request to an ensemble in this case (core#466)."""
    api: Any = {"grpc": tritonclient.grpc, "http": tritonclient.http}[protocol]
    tensor = api.InferInput("SECONDS", [1, 1], "FP32")
    tensor.set_data_from_numpy(np.array([[0.5]], np.float32))
    url = f"127.0.0.1:{getattr(container, protocol)}"

    def infer(_number: int) -> InferenceServerException | None:
        with api.InferenceServerClient(url) as client:
            try:
                client.infer("slow", [tensor])
            except InferenceServerException as error:
                return error
        return None

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(infer, range(8)))
    refusals = [answer for answer in answers if answer is not None]
    assert 1 <= len(refusals) < len(answers)
    said = {(refusal.status(), refusal.message()) for refusal in refusals}
    assert len(said) == 1
    status, message = said.pop()
    assert status == {"grpc": "StatusCode.UNAVAILABLE", "http": "503"}[protocol]
    script = Script(failures={"infer": ({"grpc": StatusCode.UNAVAILABLE, "http": 503}[protocol], message)})
    server = {"grpc": GrpcServer, "http": HttpServer}[protocol](script)
    try:
        with (
            SegmentationClient(f"{protocol}://127.0.0.1:{server.port}", timeout=20.0, retries=1) as client,
            pytest.raises(ServerOverloadedError, match="Exceeds maximum queue size"),
        ):
            client.segment(b"\x05")
    finally:
        server.stop()
    assert len(script.requests) == 0
