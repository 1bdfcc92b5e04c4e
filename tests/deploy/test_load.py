"""Locust as users run it, against a server whose masks are known: what it measures, what it objects to, its exit codes.

Locust runs in processes of its own: importing it replaces the sockets and locks of whoever does.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest
from pods import answered_by
from script_servers import GrpcServer, Script
from triton_process import wait_until

from embedded.checks import free_ports

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
        with subprocess.Popen(command, cwd=self.folder, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if "All users spawned" in line:
                    break
            yield process, process.stderr

    def summary(self) -> dict[str, Any]:
        return json.loads(self.json.read_text())


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
    assert sum(stage["total"]["requests"] for stage in summary["stages"]) == summary["total"]["requests"]
    assert all(stage["total"]["requests"] > 5 and 2 <= stage["seconds"] <= 5 for stage in summary["stages"])
    assert "closed loop, by stage" in ended.stderr
    assert 0 < summary["latency_seconds"]["p50"] <= summary["latency_seconds"]["p99"]
    assert summary["answered_per_second"] == pytest.approx(summary["total"]["requests"] / summary["seconds"])
    report = locust.html.read_text()
    assert "resnet50 web" in report
    assert "<html" in report


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


def test_an_open_loop_keeps_its_rate_whatever_the_server_does(locust: Locust, toy_server: TritonProcess) -> None:
    """Half of the run the server stands still: requests leave all the same, and have waited when they are answered."""
    rate, users, seconds = 5.0, 2, 10
    command = locust.command(
        *("--host", f"grpc://{toy_server.grpc_url}", "--loop", "open", "--arrivals", "constant", "--rate", str(rate)),
        *("--users", str(users), "--spawn-rate", "2", "--run-time", f"{seconds}s", "--summary", str(locust.json)),
    )
    with locust.begun(command) as (process, log):
        toy_server.triton.suspend()
        try:
            time.sleep(4)  # the length of the standstill, and no wait for something to happen
        finally:
            toy_server.triton.resume()
        rest = log.read()
        assert process.wait(60) == 0, rest
    summary = locust.summary()
    assert summary["total"]["requests"] == pytest.approx(rate * users * seconds, rel=0.15)
    assert summary["total"]["failures"] == 0
    # Of 10 s, 4 stood still: of the requests that left then, some waited for most of it.
    assert 2.0 < summary["latency_seconds"]["p95"] < 6.0
    assert summary["strain"]["most_unfinished"] > rate * users


def test_a_master_and_its_workers(locust: Locust, toy_server: TritonProcess, unused_port: int) -> None:
    workers = [
        subprocess.Popen(
            [
                *locust.command("--worker", "--master-port", str(unused_port)),
                *("--host", f"grpc://{toy_server.grpc_url}"),
            ],
            cwd=locust.folder,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(2)
    ]
    try:
        ended = locust.run(
            *("--master", "--expect-workers", "2", "--master-bind-port", str(unused_port)),
            *("--master-bind-host", "127.0.0.1", "--host", f"grpc://{toy_server.grpc_url}"),
            *("--users", "4", "--spawn-rate", "4", "--run-time", "5s"),
        )
        assert ended.returncode == 0, ended.stderr
        summary = locust.summary()
        assert summary["strain"]["processes"] == 2
        assert summary["server"]["segment_resnet50"]["requests"] == summary["total"]["requests"] > 20
        for worker in workers:
            assert worker.wait(30) == 0
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def test_a_server_that_is_not_there_is_named(locust: Locust, unused_port: int) -> None:
    ended = locust.run("--host", f"grpc://127.0.0.1:{unused_port}", "--users", "1", "--wait-ready", "1")
    assert ended.returncode == 3
    assert f"127.0.0.1:{unused_port}" in ended.stderr
    assert "--wait-ready" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_objectives_that_cannot_be_read_are_refused_at_once(locust: Locust, unused_port: int) -> None:
    locust.objectives.write_text("latency = 3\n")
    ended = locust.run("--host", f"grpc://127.0.0.1:{unused_port}", "--users", "1")
    assert ended.returncode == 2
    assert "'latency' is no objective" in ended.stderr


def test_an_interrupt_leaves_the_report(locust: Locust, toy_server: TritonProcess) -> None:
    command = locust.command(
        *("--host", f"grpc://{toy_server.grpc_url}", "--users", "2", "--spawn-rate", "2", "--run-time", "10m"),
        *("--html", str(locust.html), "--summary", str(locust.json)),
    )
    with locust.begun(command) as (process, log):
        before = answered_by(toy_server)
        wait_until(lambda: answered_by(toy_server) > before, what="a request")
        process.send_signal(signal.SIGINT)
        log.read()
        process.wait(60)
    assert locust.summary()["total"]["requests"] > 0
    assert locust.html.is_file()


def test_a_server_that_dies_in_the_run_is_a_failed_run(locust: Locust, toy_repository: Path, serving: Serving) -> None:
    doomed = serving(toy_repository)
    command = locust.command(
        *("--host", f"grpc://{doomed.grpc_url}", "--users", "2", "--spawn-rate", "2", "--run-time", "6s"),
        *("--timeout", "3", "--summary", str(locust.json)),
    )
    with locust.begun(command) as (process, log):
        before = answered_by(doomed)
        wait_until(lambda: answered_by(doomed) > before, what="a request")
        doomed.triton.kill()
        doomed.wait()
        rest = log.read()
        assert process.wait(60) == 1, rest
    assert "server unavailable" in rest
    assert 0 < locust.summary()["total"]["failures"] < locust.summary()["total"]["requests"]
