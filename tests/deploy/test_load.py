"""Locust in one process, against servers whose masks are known: measurements, objectives, exit codes, its page."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from locust_run import ROOT, Locust, Masks, wait_for_a_reply
from script_servers import GrpcServer, Script
from triton_process import wait_until

from benchmarks.proxy import Fault, Proxy

if TYPE_CHECKING:
    from triton_process import TritonProcess

pytestmark = [pytest.mark.deploy, pytest.mark.stack]


def test_a_closed_loop_over_both_protocols(locust: Locust, toy_server: TritonProcess) -> None:
    ended = locust.run(
        *("--host", f"grpc://{toy_server.grpc_url}", "--second-host", f"http://{toy_server.http_url}"),
        *("--users", "2", "--shape", "step", "--stages", "2", "--stage-time", "2"),
    )
    assert ended.returncode == 0, ended.stderr
    assert "objectives met" in ended.stderr
    summary = locust.summary()
    assert {kind["protocol"] for kind in summary["kinds"]} == {"gRPC", "HTTP"}
    assert {kind["name"] for kind in summary["kinds"]} == {"resnet50 thumbnail", "resnet50 web"}
    assert summary["total"]["failures"] == 0
    # Triton counted exactly the requests that were sent.
    assert summary["server"]["segment_resnet50"]["requests"] == summary["total"]["requests"] > 20
    assert [stage["users"] for stage in summary["stages"]] == [2, 4]
    by_stage = sum(stage["total"]["requests"] for stage in summary["stages"])
    # Two per user: one that was in flight at the end, and one that the user started in the meantime.
    assert 0 <= summary["total"]["requests"] - by_stage <= 8
    assert all(stage["total"]["requests"] > 5 and 1 <= stage["seconds"] <= 4 for stage in summary["stages"])
    assert "closed loop, by stage" in ended.stderr
    assert 0 < summary["latency_seconds"]["p50"] <= summary["latency_seconds"]["p99"]
    assert summary["answered_per_second"] == pytest.approx(summary["answered"] / summary["seconds"])
    assert 0 <= summary["total"]["requests"] - summary["answered"] <= 8
    assert summary["seconds"] == pytest.approx(4, abs=1.5)
    page = locust.html.read_text()
    assert "<html" in page
    assert "Load test passed: all" in page
    assert "segment_resnet50: version 1, " in page
    assert "batches by size" in page
    assert page.index("gRPC resnet50 web") < page.index('<div id="root">')


def test_an_interrupt_of_make_load_leaves_the_report(locust: Locust, toy_server: TritonProcess) -> None:
    code = (
        "import pathlib, types; from load_tests import laptop;"
        f"server = types.SimpleNamespace(grpc_url={toy_server.grpc_url!r}, http_url={toy_server.http_url!r});"
        f"laptop.locust('closed', server, 'resnet50', pathlib.Path({str(locust.folder)!r}), seconds=600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, start_new_session=True) as run:
        wait_for_a_reply(toy_server, users=4)
        os.killpg(run.pid, signal.SIGINT)  # as a terminal does
        # Not always -SIGINT: tabulate, which torch imports at the exit if it is installed, makes Python forget it.
        assert run.wait(60) in {-signal.SIGINT, 1}
    summary = json.loads((locust.folder / "closed.json").read_text())
    assert summary["total"]["requests"] > 4
    assert "Load test" in (locust.folder / "closed.html").read_text()


def test_an_objective_that_is_missed_decides_the_exit_code(locust: Locust, toy_server: TritonProcess) -> None:
    locust.objectives.write_text('throughput = 100000.0\n[p99]\n"* web" = 0.0001\n')
    ended = locust.run("--host", f"grpc://{toy_server.grpc_url}", "--users", "1", "--run-time", "2s")
    assert ended.returncode == 1
    assert "2 of 2 objectives missed" in ended.stderr
    assert [each["missed_by"] != "" for each in locust.summary()["objectives"]] == [True, True]


def test_wrong_masks_are_failures(locust: Locust) -> None:
    """A server that answers with masks of another size than the picture's."""
    server = GrpcServer(Script())
    try:
        ended = locust.run("--host", f"grpc://127.0.0.1:{server.port}", "--users", "1", "--run-time", "2s")
    finally:
        server.stop()
    assert ended.returncode == 1, ended.stderr
    assert "wrong mask: its size differs from the picture's" in ended.stderr
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
        command = locust.command("--host", f"grpc://127.0.0.1:{server.port}", "--users", "1", "--run-time", "2s")
        command[command.index("--locustfile") + 1] = str(broken)
        ended = subprocess.run(command, cwd=locust.folder, capture_output=True, text=True, check=False, timeout=60)
    finally:
        server.stop()
    assert ended.returncode == 1, ended.stderr
    assert "the load test itself failed" in ended.stderr


def test_an_open_loop_keeps_its_rate_whatever_the_server_does(locust: Locust, toy_server: TritonProcess) -> None:
    """For a part of the run nothing reaches the server, but requests are still sent, and their wait is counted."""
    rate, users, seconds = 5.0, 2, 6
    with Proxy(toy_server.grpc_url) as proxy:
        command = locust.command(
            *("--host", f"grpc://{proxy.address}", "--loop", "open", "--arrivals", "constant", "--rate", str(rate)),
            *("--users", str(users), "--spawn-rate", "2", "--run-time", f"{seconds}s", "--summary", str(locust.json)),
        )
        with locust.begun(command) as (process, log):
            proxy.fault = Fault("black hole")
            time.sleep(2.5)  # the length of the standstill, not a wait for an event
            proxy.fault = None
            rest = log.read()
            assert process.wait(60) == 0, rest
    summary = locust.summary()
    assert summary["total"]["requests"] == pytest.approx(rate * users * seconds, rel=0.15)
    assert summary["total"]["failures"] == 0
    # The server stood still for 2.5 of 6 s, and some of the requests of that time waited for most of it.
    assert 1.5 < summary["latency_seconds"]["p95"] < 4.5
    assert summary["strain"]["most_unfinished"] > rate * users


def test_the_page_starts_what_can_run_and_refuses_the_rest(
    locust: Locust, toy_server: TritonProcess, unused_port: int
) -> None:
    page = f"http://127.0.0.1:{unused_port}"
    command = [word for word in locust.command() if word not in {"--headless", "--only-summary"}]
    options = ["--web-host", "127.0.0.1", "--web-port", str(unused_port), "--summary", str(locust.json)]
    good = {"host": f"grpc://{toy_server.grpc_url}", "user_count": "2", "spawn_rate": "2"}

    def start(**fields: str) -> dict[str, Any]:
        data = urllib.parse.urlencode(good | fields).encode()
        with urllib.request.urlopen(f"{page}/swarm", data, timeout=30) as answer:  # noqa: S310 - our own server
            return json.load(answer)

    def statistics() -> dict[str, Any]:
        with urllib.request.urlopen(f"{page}/stats/requests", timeout=30) as answer:  # noqa: S310 - our own server
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
            assert start(shape="step", stages="2", stage_time="3", **second)["success"] is True
            wait_until(lambda: statistics()["user_count"] == 4, what="the second stage")
            with urllib.request.urlopen(f"{page}/stats/reset", b"", timeout=30) as answer:  # noqa: S310 - our own server
                assert answer.status == 200
            wait_until(lambda: statistics()["state"] == "stopped", what="the end of the last stage")
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
    assert process.returncode == 0
    summary = locust.summary()
    assert [stage["users"] for stage in summary["stages"]] == [2, 4]
    by_stage = sum(stage["total"]["requests"] for stage in summary["stages"])
    # The reset affects only the table of all requests, and replies that are awaited at the end belong to no stage.
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
        (["--shape", "spike", "--reset-stats"], "30", "would clear each stage of --shape spike"),
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
    options = ["--users", "60", "--spawn-rate", "60", "--run-time", "2s", "--think-time", "0.5"]
    ended = locust.run("--host", f"grpc://{toy_server.grpc_url}", *options)
    assert locust.summary()["failures"] == {}
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(("how", "options"), [(signal.SIGINT, []), (signal.SIGTERM, ["--shape", "step"])])
def test_an_interrupt_leaves_the_report(
    locust: Locust, toy_server: TritonProcess, how: signal.Signals, options: list[str]
) -> None:
    command = locust.command(
        *("--host", f"grpc://{toy_server.grpc_url}", "--users", "2", "--spawn-rate", "2", "--run-time", "10m"),
        *("--html", str(locust.html), "--summary", str(locust.json), *options),
    )
    with locust.begun(command) as (process, log):
        wait_for_a_reply(toy_server, users=2)
        process.send_signal(how)
        rest = log.read()
        code = process.wait(60)
    locust.check_interrupted(rest, code)
    assert locust.html.is_file()


def test_a_server_that_dies_in_the_run_is_a_failed_run(locust: Locust) -> None:
    server = Masks(Script())
    command = locust.command(
        *("--host", f"grpc://127.0.0.1:{server.port}", "--users", "2", "--spawn-rate", "2", "--run-time", "3s"),
        *("--timeout", "3", "--summary", str(locust.json)),
    )
    try:
        with locust.begun(command) as (process, log):
            wait_until(lambda: len(server.script.requests) > 2, what="a reply")  # of so many, one user has had one
            server.stop()
            rest = log.read()
            assert process.wait(60) == 1, rest
    finally:
        server.stop()
    assert "server unavailable" in rest
    assert 0 < locust.summary()["total"]["failures"] < locust.summary()["total"]["requests"]
