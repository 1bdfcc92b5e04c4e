"""A Locust master and its workers, against servers whose masks are known: one result, and missing workers in it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest
from locust_run import LOCUSTFILE, Locust, Masks, wait_for_a_reply
from PIL import Image
from script_servers import Script
from triton_process import wait_until

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from triton_process import TritonProcess

pytestmark = [pytest.mark.deploy, pytest.mark.stack]


class ByPeer(Masks):
    """Answers each peer with another class."""

    def class_of(self, peer: str) -> int:
        if peer not in self._peers:
            self._peers.append(peer)
        return self._peers.index(peer)


@contextlib.contextmanager
def workers(
    locust: Locust, number: int, port: int, *, folder: Path | None = None
) -> Generator[list[subprocess.Popen[bytes]]]:
    """Yield workers that know only their master; their log is in their folder."""
    folder = folder or locust.folder
    command = [sys.executable, "-m", "locust", "--locustfile", LOCUSTFILE, "--worker", "--master-port", str(port)]
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


def processes(number: int, port: int) -> list[str]:
    """Return the options of a master that starts its workers itself."""
    ports = [f"--master{port_of}-port={port}" for port_of in ("", "-bind")]
    return ["--processes", str(number), *ports, "--users", "2", "--spawn-rate", "2"]


def stage(seconds: int) -> list[str]:
    """Return the options of a run that lasts this long from the workers' first requests on, even if they are late."""
    return ["--shape", "step", "--stages", "1", "--stage-time", str(seconds)]


def test_a_master_and_its_workers(locust: Locust, toy_server: TritonProcess, unused_port: int) -> None:
    with workers(locust, 2, unused_port) as started:
        ended = locust.run(
            *master(2, unused_port),
            *("--host", f"grpc://{toy_server.grpc_url}", "--second-host", f"http://{toy_server.http_url}"),
            *("--shape", "step", "--stages", "2", "--stage-time", "4"),
        )
        assert ended.returncode == 0, ended.stderr
        summary = locust.summary()
        assert summary["strain"]["processes"] == 2
        # Workers report every 3 s: a stage begins and ends that much late.
        first, second = summary["stages"]
        assert (first["users"], second["users"]) == (4, 8)
        assert first["seconds"] == pytest.approx(4, abs=3)
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
    options = [*master(2, unused_port), "--host", f"grpc://127.0.0.1:{server.port}", *stage(2)]
    command = locust.command(*options, "--mask-format", "raw", "--summary", str(locust.json))
    try:
        with workers(locust, 2, unused_port), locust.begun(command) as (process, log):
            wait_until(lambda: bool(server.script.requests), what="a request")
            answers.clear()
            assert any("Shape test stopping" in line for line in log)
            time.sleep(2)  # longer than the half second that Locust leaves its workers
            answers.set()
            rest = log.read()
            assert process.wait(60) == 0, rest
    finally:
        answers.set()
        server.stop()
    total = locust.summary()["total"]
    assert (total["requests"], total["failures"]) == (len(server.script.requests), 0)


def test_workers_that_go_in_the_run_are_a_failed_run(
    locust: Locust, toy_server: TritonProcess, unused_port: int
) -> None:
    """One is killed, one ends in order, one stays: the run continues to its end."""
    options = [*master(3, unused_port), "--host", f"grpc://{toy_server.grpc_url}", *stage(5)]
    with (
        workers(locust, 3, unused_port) as (killed, ended, _),
        locust.begun(locust.command("--summary", str(locust.json), *options)) as (process, log),
    ):
        wait_for_a_reply(toy_server, users=4)
        killed.kill()
        ended.terminate()
        rest = log.read()
        assert process.wait(60) == 1, rest
    problems = locust.summary()["problems"]
    assert sorted(problem.partition(": ")[2] for problem in problems) == [
        "did not finish",
        "stopped before the end of the run",
    ]
    assert all(problem in rest for problem in problems)


def test_a_run_ends_with_its_last_worker_and_what_was_sent_is_not_lost(
    locust: Locust, toy_server: TritonProcess, unused_port: int
) -> None:
    options = [*master(2, unused_port), "--host", f"grpc://{toy_server.grpc_url}", "--run-time", "10m"]
    with (
        workers(locust, 2, unused_port) as started,
        locust.begun(locust.command("--summary", str(locust.json), *options)) as (process, log),
    ):
        wait_for_a_reply(toy_server, users=50)  # four users, but each worker must have begun
        for worker in started:
            worker.terminate()
        rest = log.read()
        assert process.wait(60) == 1, rest
    summary = locust.summary()
    assert [problem.partition(": ")[2] for problem in summary["problems"]] == ["stopped before the end of the run"] * 2
    assert summary["total"]["requests"] == summary["server"]["segment_resnet50"]["requests"]


def test_workers_that_come_late_and_send_nothing_are_missed(
    locust: Locust, toy_server: TritonProcess, unused_port: int
) -> None:
    """One dies and the other has no pictures. Locust gives both a share of the users without a message."""
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


def test_an_interrupt_leaves_the_report_of_the_workers(
    locust: Locust, toy_server: TritonProcess, unused_port: int
) -> None:
    options = ["--host", f"grpc://{toy_server.grpc_url}", "--run-time", "10m", *processes(2, unused_port)]
    with locust.begun(locust.command("--summary", str(locust.json), *options)) as (process, log):
        wait_for_a_reply(toy_server, users=2)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        rest = log.read()
        code = process.wait(60)
    locust.check_interrupted(rest, code)


@pytest.mark.parametrize("to_workers", [True, False], ids=["workers later", "the master alone"])
def test_workers_end_their_requests_soon_where_the_master_is_interrupted(
    locust: Locust, unused_port: int, *, to_workers: bool
) -> None:
    """The workers also get a signal after the master has told them to end, or they get none, as after `kill`."""
    answers = threading.Event()
    answers.set()
    server = Masks(Script(hold=answers))
    options = ["--host", f"grpc://127.0.0.1:{server.port}", "--run-time", "10m", *processes(2, unused_port)]
    try:
        with locust.begun(locust.command("--summary", str(locust.json), *options)) as (process, log):
            wait_until(lambda: len(server.script.requests) > 2, what="a reply")  # of so many, one user has had one
            answers.clear()
            children = psutil.Process(process.pid).children()
            process.send_signal(signal.SIGINT)
            assert len(list(itertools.islice((line for line in log if "Got quit message" in line), 2))) == 2
            for child in children if to_workers else ():
                child.send_signal(signal.SIGINT)
            rest = log.read()
            process.wait(60)
    finally:
        answers.set()
        server.stop()
    assert "Traceback" not in rest
    summary = locust.summary()
    assert summary["problems"] == []
    cut_off = summary["total"]["requests"] - len(server.script.requests)  # before they came to the server
    assert 0 <= cut_off <= 2 < len(server.script.requests)


def test_workers_that_are_interrupted_before_they_send_are_not_missed(
    locust: Locust, toy_server: TritonProcess, unused_port: int
) -> None:
    pictures = locust.folder / "pictures"
    pictures.mkdir()
    for number in range(20):
        Image.new("L", (7000, 6000)).save(pictures / f"{number}.png", compress_level=1)
    command = [word for word in locust.command() if word not in {"--kinds", "thumbnail=2,web=1"}]
    command += ["--pictures", str(pictures), "--kinds", "large", "--summary", str(locust.json), "--run-time", "10m"]
    command += ["--host", f"grpc://{toy_server.grpc_url}", *processes(2, unused_port)]
    with locust.starts(command, until="Sending spawn jobs") as (process, log):
        time.sleep(0.5)  # they read their pictures, which takes seconds
        os.killpg(process.pid, signal.SIGINT)
        rest = log.read()
        assert process.wait(60) == 1  # nothing was measured
    assert "Traceback" not in rest
    summary = locust.summary()
    assert (summary["problems"], summary["total"]["requests"]) == ([], 0)


def test_masks_are_compared_between_workers(locust: Locust, unused_port: int) -> None:
    server = ByPeer(Script())
    try:
        with workers(locust, 2, unused_port):
            ended = locust.run(
                *(*master(2, unused_port), "--host", f"grpc://127.0.0.1:{server.port}", "--users", "2"),
                *("--kinds", "thumbnail", "--mask-format", "raw", *stage(2)),
            )
    finally:
        server.stop()
    assert ended.returncode == 1, ended.stderr
    (failure,) = locust.summary()["failures"]
    assert failure == "wrong mask: two workers got different masks for the same picture"
