"""How serve.py tells a pause from a busy machine, and a stopped process from one that a debugger looks at."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from deeplabv3.embedded.errors import StartError
from deeplabv3.embedded.processes import read_stat
from deeplabv3.embedded.watching import Instant, PausedError, Watch

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """A process that answers lines."""
    with subprocess.Popen(
        [sys.executable, "-c", ECHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            run(process)
            yield process
        finally:
            process.kill()


def run(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "\n"


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    while read_stat(process.pid).state != "T":
        os.sched_yield()


def test_who_stays_stopped_was_paused(process: subprocess.Popen[str]) -> None:
    watch = Watch(process.pid)
    watch.raise_if_stopped()
    stop(process)
    watch.raise_if_stopped()
    with pytest.raises(PausedError, match=r"^tritonserver was stopped by .*do not pause it"):
        watch.raise_if_stopped()


def test_who_ran_in_between_was_not_paused(process: subprocess.Popen[str]) -> None:
    """A debugger or tracer stops a process for moments."""
    watch = Watch(process.pid)
    for _ in range(3):
        stop(process)
        watch.raise_if_stopped()
        process.send_signal(signal.SIGCONT)
        run(process)


def test_a_stub_that_died_before_it_was_seen_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two checks; it would never be restarted, so the server must not become ready."""
    code = "import os, time; os.fork() or os._exit(1); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            server.stdout.readline()
            watch = Watch(server.pid)
            while watch.find_stubs():
                os.sched_yield()
            monkeypatch.setattr("deeplabv3.embedded.watching.UNREAPED_SECONDS", 0)
            with pytest.raises(StartError, match="a Python stub ended with exit code 1 while its model was loading"):
                watch.find_stubs()
        finally:
            server.kill()


def test_time_without_running_on_a_free_cpu_counts_as_lost() -> None:
    now = Instant.now()
    assert now.lost_since(Instant(now.seconds - 5, now.ready), asleep=0.25) == pytest.approx(4.75)
    assert now.lost_since(Instant(now.seconds - 5, now.ready - 5), asleep=0.25) == pytest.approx(-0.25)
    began = time.process_time()
    while time.process_time() < began + 0.05:
        pass
    assert Instant.now().ready - now.ready > 0.03
