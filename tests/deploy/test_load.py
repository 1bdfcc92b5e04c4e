"""Locust as users run it, against a server whose masks are known: what it measures, what it objects to, its exit codes.

Locust runs in processes of its own: importing it replaces the sockets and locks of whoever does.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from pods import answered_by
from script_servers import NAMES, GrpcServer, Script, elements, image_id
from triton_process import wait_until

from benchmarks.proxy import Fault, Proxy
from deeplabv3.embedded.checks import free_ports

if TYPE_CHECKING:
    from collections.abc import Generator

    from triton_process import Serving, TritonProcess

pytestmark = [pytest.mark.deploy, pytest.mark.stack]

ROOT = Path(__file__).resolve().parents[2]
LENIENT = 'error_share = 0.0\nwrong_replies = 0\n[p99]\n"*" = 60.0\n'


class Locust:
    """Runs of Locust whose files go to one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.objectives = folder / "objectives.toml"
        self.objectives.write_text(LENIENT)
        self.html, self.json = folder / "report.html", folder / "summary.json"

    def command(self, *options: str) -> list[str]:
        return [
            *(sys.executable, "-m", "locust", "--locustfile", str(ROOT / "load_tests" / "locustfile.py")),
            *("--headless", "--only-summary", "--variants", "resnet50", "--kinds", "thumbnail=2,web=1"),
            *("--objectives", str(self.objectives), *options),
        ]

    def run(self, *options: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        command = self.command("--html", str(self.html), "--summary", str(self.json), *options)
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False, timeout=timeout)

    @contextlib.contextmanager
    def begun(self, command: list[str]) -> Generator[tuple[subprocess.Popen[str], IO[str]]]:
        """Yield a run whose users all send, and its log from there on."""
        with subprocess.Popen(
            command, cwd=self.folder, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            assert process.stderr is not None
            for line in process.stderr:
                # A master that was not told of all users in time says the second.
                if "All users spawned" in line or "Spawning is complete" in line:
                    break
            try:
                yield process, process.stderr
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def summary(self) -> dict[str, Any]:
        return json.loads(self.json.read_text())


class Masks(GrpcServer):
    """Answers with masks of the right size."""

    def __init__(self, script: Script) -> None:
        self._peers: list[str] = []
        self._one = threading.Lock()
        super().__init__(script)

    def class_of(self, peer: str) -> int:
        del peer
        return 0

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: ANN401, N802 Triton's name, untyped
        image = request.raw_input_contents[0][4:]
        shown = ImageOps.exif_transpose(Image.open(io.BytesIO(image)))
        with self._one:
            mask = np.full((shown.height, shown.width), self.class_of(context.peer()), np.uint8)
            counts = np.bincount(mask.ravel(), minlength=2).astype("<i8")
            self.script.fixed = [
                ("MASK", "UINT8", [1, *mask.shape], mask.tobytes()),
                ("CLASS_PIXELS", "INT64", [1, 2], counts.tobytes()),
                ("CLASS_NAMES", "BYTES", [1, 2], elements(*NAMES)),
                image_id(image),
            ]
            return super().ModelInfer(request, context)


class ByPeer(Masks):
    """Gives each peer another class."""

    def class_of(self, peer: str) -> int:
        if peer not in self._peers:
            self._peers.append(peer)
        return self._peers.index(peer)


def wait_for_a_reply(server: TritonProcess, *, users: int) -> None:
    """Return when a user of a closed loop has had one.

    A user asks again when it has its reply: of more answers than there are users, one has come.
    """
    before = answered_by(server)
    wait_until(lambda: answered_by(server) > before + users, what="a reply")


@pytest.fixture
def locust(tmp_path: Path) -> Locust:
    return Locust(tmp_path)


@pytest.fixture
def unused_port() -> int:
    return next(free_ports("127.0.0.1", set()))


def test_a_closed_loop_over_both_protocols(locust: Locust, toy_server: TritonProcess) -> None:
    ended = locust.run(
        *("--host", f"grpc://{toy_server.grpc_url}", "--second-host", f"http://{toy_server.http_url}"),
        *("--users", "2", "--shape", "step", "--stages", "2", "--stage-time", "3"),
    )
    assert ended.returncode == 0, ended.stderr
    assert "objectives met" in ended.stderr
    summary = locust.summary()
    assert {kind["protocol"] for kind in summary["kinds"]} == {"gRPC", "HTTP"}
    assert {kind["name"] for kind in summary["kinds"]} == {"resnet50 thumbnail", "resnet50 web"}
    assert summary["total"]["failures"] == 0
    # What Triton counted meanwhile is what was sent.
    assert summary["server"]["segment_resnet50"]["requests"] == summary["total"]["requests"] > 20
    assert [stage["users"] for stage in summary["stages"]] == [2, 4]
    by_stage = sum(stage["total"]["requests"] for stage in summary["stages"])
    # Two of each user: one that was under way at the end, and one that it began meanwhile.
    assert 0 <= summary["total"]["requests"] - by_stage <= 8
    assert all(stage["total"]["requests"] > 5 and 2 <= stage["seconds"] <= 5 for stage in summary["stages"])
    assert "closed loop, by stage" in ended.stderr
    assert 0 < summary["latency_seconds"]["p50"] <= summary["latency_seconds"]["p99"]
    assert summary["answered_per_second"] == pytest.approx(summary["answered"] / summary["seconds"])
    assert 0 <= summary["total"]["requests"] - summary["answered"] <= 8
    assert summary["seconds"] == pytest.approx(6, abs=1.5)
    page = locust.html.read_text()
    assert "<html" in page
    assert "Load test passed: all" in page
    assert "segment_resnet50: version 1, " in page
    assert "batches by size" in page
    assert page.index("gRPC resnet50 web") < page.index('<div id="root">')


def test_an_objective_that_is_missed_decides_the_exit_code(locust: Locust, toy_server: TritonProcess) -> None:
    locust.objectives.write_text('throughput = 100000.0\n[p99]\n"* web" = 0.0001\n')
    ended = locust.run("--host", f"grpc://{toy_server.grpc_url}", "--users", "1", "--run-time", "3s")
    assert ended.returncode == 1
    assert "2 of 2 objectives missed" in ended.stderr
    assert [each["missed_by"] != "" for each in locust.summary()["objectives"]] == [True, True]


def test_wrong_masks_are_failures(locust: Locust) -> None:
    """A server that answers with masks of another size than the picture's."""
    server = GrpcServer(Script())
    try:
        ended = locust.run("--host", f"grpc://127.0.0.1:{server.port}", "--users", "1", "--run-time", "3s")
    finally:
        server.stop()
    assert ended.returncode == 1, ended.stderr
    assert "wrong mask: not of the picture's size" in ended.stderr
    summary = locust.summary()
    assert summary["total"]["failures"] == summary["total"]["requests"] > 0


def test_an_error_of_the_load_test_itself_is_a_failed_run(locust: Locust) -> None:
    broken = locust.folder / "broken.py"
    broken.write_text(
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "from load_tests.locustfile import HostUser, SecondHostUser\n"
        "from load_tests.sending import Sending\n"
        "Sending.draw = None\n"
    )
    server = Masks(Script())
    try:
        command = locust.command("--host", f"grpc://127.0.0.1:{server.port}", "--users", "1", "--run-time", "3s")
        command[command.index("--locustfile") + 1] = str(broken)
        ended = subprocess.run(command, cwd=locust.folder, capture_output=True, text=True, check=False, timeout=60)
    finally:
        server.stop()
    assert ended.returncode == 1, ended.stderr
    assert "the load test itself failed" in ended.stderr


def test_an_open_loop_keeps_its_rate_whatever_the_server_does(locust: Locust, toy_server: TritonProcess) -> None:
    """For a part of the run nothing reaches the server: requests leave all the same, and their wait is counted."""
    rate, users, seconds = 5.0, 2, 10
    with Proxy(toy_server.grpc_url) as proxy:
        command = locust.command(
            *("--host", f"grpc://{proxy.address}", "--loop", "open", "--arrivals", "constant", "--rate", str(rate)),
            *("--users", str(users), "--spawn-rate", "2", "--run-time", f"{seconds}s", "--summary", str(locust.json)),
        )
        with locust.begun(command) as (process, log):
            proxy.fault = Fault("black hole")
            time.sleep(4)  # the length of the standstill, and no wait for something to happen
            proxy.fault = None
            rest = log.read()
            assert process.wait(60) == 0, rest
    summary = locust.summary()
    assert summary["total"]["requests"] == pytest.approx(rate * users * seconds, rel=0.15)
    assert summary["total"]["failures"] == 0
    # Of 10 s, 4 stood still: of the requests that left then, some waited for most of it.
    assert 2.0 < summary["latency_seconds"]["p95"] < 6.0
    assert summary["strain"]["most_unfinished"] > rate * users


@contextlib.contextmanager
def workers(
    locust: Locust, number: int, port: int, *, folder: Path | None = None
) -> Generator[list[subprocess.Popen[bytes]]]:
    """Yield workers that were told nothing but who their master is; their log is in their folder."""
    folder = folder or locust.folder
    file = str(ROOT / "load_tests" / "locustfile.py")
    command = [sys.executable, "-m", "locust", "--locustfile", file, "--worker", "--master-port", str(port)]
    with (folder / "workers.log").open("ab") as log:
        started = [subprocess.Popen(command, cwd=folder, stderr=log) for _ in range(number)]
    try:
        yield started
    finally:
        for worker in started:
            worker.kill()
            worker.wait()


def master(number: int, port: int) -> list[str]:
    return [
        *("--master", "--expect-workers", str(number), "--master-bind-port", str(port)),
        *("--master-bind-host", "127.0.0.1", "--users", "4", "--spawn-rate", "4"),
    ]


def test_a_master_and_its_workers(locust: Locust, toy_server: TritonProcess, unused_port: int) -> None:
    with workers(locust, 2, unused_port) as started:
        ended = locust.run(
            *master(2, unused_port),
            *("--host", f"grpc://{toy_server.grpc_url}", "--second-host", f"http://{toy_server.http_url}"),
            *("--shape", "step", "--stages", "2", "--stage-time", "5"),
        )
        assert ended.returncode == 0, ended.stderr
        summary = locust.summary()
        assert summary["strain"]["processes"] == 2
        # Workers report every 3 s: a stage begins and ends that much late.
        first, second = summary["stages"]
        assert (first["users"], second["users"]) == (4, 8)
        assert first["seconds"] == pytest.approx(5, abs=3)
        assert min(first["total"]["requests"], second["total"]["requests"]) > 5
        assert first["total"]["requests"] + second["total"]["requests"] == summary["total"]["requests"]
        assert summary["server"]["segment_resnet50"]["requests"] == summary["total"]["requests"] > 20
        # The master alone knows of the second host and of the kinds.
        assert {kind["protocol"] for kind in summary["kinds"]} == {"gRPC", "HTTP"}
        assert {kind["name"] for kind in summary["kinds"]} == {"resnet50 thumbnail", "resnet50 web"}
        for worker in started:
            assert worker.wait(30) == 0


def test_the_last_replies_of_workers_are_waited_for(locust: Locust, unused_port: int) -> None:
    answers = threading.Event()
    answers.set()
    server = Masks(Script(hold=answers))
    options = [*master(2, unused_port), "--host", f"grpc://127.0.0.1:{server.port}", "--run-time", "5s"]
    command = locust.command(*options, "--mask-format", "raw", "--summary", str(locust.json))
    try:
        with workers(locust, 2, unused_port), locust.begun(command) as (process, log):
            wait_until(lambda: bool(server.script.requests), what="a request")
            answers.clear()
            assert any("limit reached" in line for line in log)
            time.sleep(2)  # longer than the half second that Locust leaves its workers
            answers.set()
            rest = log.read()
            assert process.wait(60) == 0, rest
    finally:
        answers.set()
        server.stop()
    total = locust.summary()["total"]
    assert (total["requests"], total["failures"]) == (len(server.script.requests), 0)


@pytest.mark.parametrize(
    ("how", "number"),
    [(signal.SIGKILL, 1), (signal.SIGTERM, 1), (signal.SIGTERM, 2)],  # of two: the last ends the run
)
def test_workers_that_go_are_a_failed_run(
    locust: Locust, toy_server: TritonProcess, unused_port: int, how: signal.Signals, number: int
) -> None:
    said = "did not finish" if how == signal.SIGKILL else "left before the end"
    seconds = "60s" if number == 2 else "8s"
    options = [*master(2, unused_port), "--host", f"grpc://{toy_server.grpc_url}", "--run-time", seconds]
    with (
        workers(locust, 2, unused_port) as started,
        locust.begun(locust.command("--summary", str(locust.json), *options)) as (process, log),
    ):
        wait_for_a_reply(toy_server, users=4)
        for worker in started[:number]:
            worker.send_signal(how)
        rest = log.read()
        assert process.wait(60) == 1, rest
    problems = locust.summary()["problems"]
    assert len(problems) == number
    assert all(problem.endswith(said) and problem in rest for problem in problems)
    if how == signal.SIGTERM:  # what it had sent is not lost
        assert locust.summary()["total"]["requests"] == locust.summary()["server"]["segment_resnet50"]["requests"]


def test_workers_that_come_late_and_send_nothing_are_missed(
    locust: Locust, toy_server: TritonProcess, unused_port: int
) -> None:
    """One dies, the other has no pictures: Locust gives both a share of the users, and says nothing."""
    shown, elsewhere = locust.folder / "pictures", locust.folder / "elsewhere"
    shown.mkdir()
    elsewhere.mkdir()
    Image.new("RGB", (40, 30)).save(shown / "one.png")
    command = [word for word in locust.command() if word not in {"--kinds", "thumbnail=2,web=1"}]
    command += ["--pictures", shown.name, "--summary", str(locust.json), "--run-time", "10m"]
    with (
        workers(locust, 1, unused_port),
        locust.begun([*command, *master(1, unused_port), "--host", f"grpc://{toy_server.grpc_url}"]) as (process, log),
        workers(locust, 1, unused_port, folder=elsewhere),
    ):
        theirs = elsewhere / "workers.log"
        wait_until(lambda: "pictures is not a folder" in theirs.read_text(), what="the worker without pictures")
        with workers(locust, 1, unused_port) as doomed:
            assert any("3 workers connected" in line for line in log)
            doomed[0].kill()
        process.terminate()
        rest = log.read()
        assert process.wait(60) == 1, rest
    problems = sorted(problem.partition(": ")[2] for problem in locust.summary()["problems"])
    assert problems == ["did not finish", "pictures is not a folder"]


def test_masks_are_compared_between_workers(locust: Locust, unused_port: int) -> None:
    server = ByPeer(Script())
    try:
        with workers(locust, 2, unused_port):
            ended = locust.run(
                *(*master(2, unused_port), "--host", f"grpc://127.0.0.1:{server.port}", "--users", "2"),
                *("--kinds", "thumbnail", "--mask-format", "raw", "--run-time", "4s"),
            )
    finally:
        server.stop()
    assert ended.returncode == 1, ended.stderr
    (failure,) = locust.summary()["failures"]
    assert failure == "wrong mask: two workers got different ones for one picture"


def test_the_page_starts_what_can_run_and_refuses_the_rest(
    locust: Locust, toy_server: TritonProcess, unused_port: int
) -> None:
    page = f"http://127.0.0.1:{unused_port}"
    command = [word for word in locust.command() if word not in {"--headless", "--only-summary"}]
    options = ["--web-host", "127.0.0.1", "--web-port", str(unused_port), "--summary", str(locust.json)]
    good = {"host": f"grpc://{toy_server.grpc_url}", "user_count": "2", "spawn_rate": "2"}

    def start(**fields: str) -> dict[str, Any]:
        data = urllib.parse.urlencode(good | fields).encode()
        with urllib.request.urlopen(f"{page}/swarm", data, timeout=30) as answer:  # noqa: S310 our own address
            return json.load(answer)

    def statistics() -> dict[str, Any]:
        with urllib.request.urlopen(f"{page}/stats/requests", timeout=30) as answer:  # noqa: S310 likewise
            return json.load(answer)

    def is_up() -> bool:
        with contextlib.suppress(OSError):
            return bool(statistics())
        return False

    with subprocess.Popen([*command, *options], cwd=locust.folder, stderr=subprocess.PIPE, text=True) as process:
        try:
            wait_until(is_up, what="the page")
            for name, value in {
                "rate": "-5",
                "loop": "bogus",
                "variants": "resnet50=x",
                "host": "ftp://there",
                "second_host": "ftp://there",
                "timeout": "soon",
            }.items():
                answer = start(**{name: value})
                assert answer["success"] is False
                assert value in answer["message"]
            assert statistics()["state"] == "ready"
            second = {"second_host": f"http://{toy_server.http_url}"}
            assert start(shape="step", stages="2", stage_time="4", **second)["success"] is True
            wait_until(lambda: statistics()["user_count"] == 4, what="the second stage")
            with urllib.request.urlopen(f"{page}/stats/reset", b"", timeout=30) as answer:  # noqa: S310 likewise
                assert answer.status == 200
            wait_until(lambda: statistics()["state"] == "stopped", what="the end of the last stage")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    assert process.returncode == 0
    summary = locust.summary()
    assert [stage["users"] for stage in summary["stages"]] == [2, 4]
    by_stage = sum(stage["total"]["requests"] for stage in summary["stages"])
    # The reset is the table's of all requests alone; what was waited for at the end belongs to no stage.
    served = summary["server"]["segment_resnet50"]["requests"]
    assert served - 4 <= by_stage <= served
    assert 0 < summary["total"]["requests"] < by_stage
    assert {kind["protocol"] for kind in summary["kinds"]} == {"gRPC", "HTTP"}
    assert summary["total"]["failures"] == 0


def test_a_server_that_is_not_there_is_named(locust: Locust, unused_port: int) -> None:
    ended = locust.run("--host", f"grpc://127.0.0.1:{unused_port}", "--users", "1", "--wait-ready", "1")
    assert ended.returncode == 3
    assert f"127.0.0.1:{unused_port}" in ended.stderr
    assert "--wait-ready" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("options", "timeout", "said"),
    [
        (["--objectives", "wrong.toml"], "30", "'latency' is not an objective"),
        (["--summary", "."], "30", "Is a directory"),
        (["--pictures", "missing"], "30", "missing is not a folder"),
        (["--shape", "spike", "--reset-stats"], "30", "leave it out of --shape spike"),
        ([], "soon", "DEEPLAB_TIMEOUT"),
    ],
)
def test_what_cannot_be_used_is_refused_at_once(
    locust: Locust, unused_port: int, options: list[str], timeout: str, said: str
) -> None:
    (locust.folder / "wrong.toml").write_text("latency = 3\n")
    command = locust.command("--host", f"grpc://127.0.0.1:{unused_port}", "--users", "1", *options)
    ended = subprocess.run(
        command,
        cwd=locust.folder,
        env=os.environ | {"DEEPLAB_TIMEOUT": timeout},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 2, ended.stderr
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_users_that_pause_when_a_run_ends_have_failed_nothing(locust: Locust, toy_server: TritonProcess) -> None:
    options = ["--users", "60", "--spawn-rate", "60", "--run-time", "4s", "--think-time", "0.5"]
    ended = locust.run("--host", f"grpc://{toy_server.grpc_url}", *options)
    assert locust.summary()["failures"] == {}
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("how", "options"),
    [
        (signal.SIGINT, []),
        (signal.SIGTERM, []),
        (signal.SIGTERM, ["--shape", "step"]),
        (signal.SIGINT, ["--processes", "2"]),
    ],
)
def test_an_interrupt_leaves_the_report(
    locust: Locust, toy_server: TritonProcess, unused_port: int, how: signal.Signals, options: list[str]
) -> None:
    command = locust.command(
        *("--host", f"grpc://{toy_server.grpc_url}", "--users", "2", "--spawn-rate", "2", "--run-time", "10m"),
        *("--html", str(locust.html), "--summary", str(locust.json), *options),
    )
    if "--processes" in options:
        command += [f"--master{port}-port={unused_port}" for port in ("", "-bind")]
    with locust.begun(command) as (process, log):
        wait_for_a_reply(toy_server, users=2)
        os.killpg(process.pid, how)  # as a terminal does, workers included
        rest = log.read()
        code = process.wait(60)
    assert "Traceback" not in rest
    summary = locust.summary()
    # A request that takes longer than the interrupt waits for is a failed one.
    assert code == (0 if summary["met"] else 1)
    assert summary["problems"] == []
    assert summary["failures"].keys() <= {"unfinished when the run ended"}
    assert 0 < summary["answered"] <= summary["total"]["requests"]
    if not summary["failures"]:
        assert summary["total"]["requests"] == summary["server"]["segment_resnet50"]["requests"]
    assert 0 < summary["seconds"] < 30
    assert locust.html.is_file()


def test_a_server_that_dies_in_the_run_is_a_failed_run(locust: Locust, toy_repository: Path, serving: Serving) -> None:
    doomed = serving(toy_repository)
    command = locust.command(
        *("--host", f"grpc://{doomed.grpc_url}", "--users", "2", "--spawn-rate", "2", "--run-time", "6s"),
        *("--timeout", "3", "--summary", str(locust.json)),
    )
    with locust.begun(command) as (process, log):
        wait_for_a_reply(doomed, users=2)
        doomed.triton.kill()
        doomed.wait()
        rest = log.read()
        assert process.wait(60) == 1, rest
    assert "server unavailable" in rest
    assert 0 < locust.summary()["total"]["failures"] < locust.summary()["total"]["requests"]
