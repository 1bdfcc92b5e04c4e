"""What the comparison of model servers counts, and that its servers end."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from aiohttp import web

from benchmarks.peers import load, replies
from benchmarks.peers.contenders import CONTENDERS, missing
from benchmarks.peers.load import Load
from benchmarks.peers.replies import Reply
from benchmarks.peers.running import Running
from benchmarks.peers.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = Path(__file__).resolve().parents[2]
PICTURES = [(b"first", b"\0\1\2\3"), (b"second", b"\5\5")]


def reply(seconds: float, status: str = "200", *, sent: float = 0.0, differing: int = 0) -> Reply:
    return Reply(sent, seconds, status, pixels=4, differing=differing)


def sent_to(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], what: Load, *, tensors: bool = False
) -> list[Reply]:
    """Send a load to a server that answers as the handler says."""

    async def both() -> list[Reply]:
        application = web.Application()
        application.router.add_post("/segment", handler)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            return await load.send(what, Wire(f"http://127.0.0.1:{port}/segment", tensors=tensors), PICTURES)
        finally:
            await runner.cleanup()

    return asyncio.run(both())


@pytest.mark.unit
def test_every_reply_is_compared_with_the_mask_of_its_own_picture() -> None:
    wrong = {b"first": b"\0\1\2\7", b"second": b"\5\5\5"}

    seen: set[bytes] = set()

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        masks = wrong if body in seen else dict(PICTURES)
        seen.add(body)
        return web.Response(body=masks[body])

    found = sent_to(answer, Load(4, concurrency=1))
    assert [(each.status, each.pixels, each.differing) for each in found] == [
        ("200", 4, 0),
        ("200", 2, 0),
        ("200", 4, 1),
        ("200", 2, 2),
    ]
    assert replies.worst_difference(found) == 1.0


@pytest.mark.unit
def test_a_closed_load_keeps_its_number_of_requests_in_flight() -> None:
    flying: list[web.Request] = []
    most: list[int] = []
    three = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        flying.append(request)
        most.append(len(flying))
        if len(flying) == 3:
            three.set()
        body = await request.read()
        await three.wait()  # nobody is answered before three are here
        await asyncio.sleep(0.02)  # in which a fourth would come
        flying.remove(request)
        return web.Response(body=dict(PICTURES)[body])

    found = sent_to(answer, Load(12, concurrency=3))
    assert len(found) == 12
    assert max(most) == 3


@pytest.mark.unit
def test_an_open_load_does_not_wait_for_replies() -> None:
    here: list[web.Request] = []
    all_here = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        here.append(request)
        if len(here) == 10:
            all_here.set()
        await all_here.wait()  # nobody is answered before all have asked
        return web.Response(body=dict(PICTURES)[await request.read()])

    found = sent_to(answer, Load(10, rate=200.0))
    assert [each.status for each in found] == ["200"] * 10
    gaps = [later.sent - earlier.sent for earlier, later in itertools.pairwise(found)]
    assert sum(gaps) >= 9 / 200 * 0.9


@pytest.mark.unit
def test_what_fails_is_told_by_its_kind_and_answers_nobody() -> None:
    numbers = itertools.count()

    async def answer(request: web.Request) -> web.StreamResponse:
        number = next(numbers)
        if number == 0:
            return web.Response(status=503)
        if number == 1:
            assert request.transport is not None
            request.transport.close()
        await asyncio.sleep(60)
        return web.Response()

    found = sent_to(answer, Load(3, concurrency=1, timeout=0.5))
    assert [each.status for each in found] == ["503", "ServerDisconnectedError", "TimeoutError"]
    assert replies.errors(found) == {"503": 1, "ServerDisconnectedError": 1, "TimeoutError": 1}
    assert not replies.latencies(found)
    assert replies.throughput(found) == 0


@pytest.mark.unit
def test_triton_is_asked_for_the_mask_alone_in_binary() -> None:
    asked: list[tuple[dict[str, object], bytes]] = []

    async def answer(request: web.Request) -> web.Response:
        body = await request.read()
        split = int(request.headers["Inference-Header-Content-Length"])
        (length,) = struct.unpack_from("<I", body, split)
        image = body[split + 4 :]
        assert len(image) == length
        asked.append((json.loads(body[:split]), image))
        head = b'{"outputs":[]}'
        return web.Response(
            body=head + dict(PICTURES)[image], headers={"Inference-Header-Content-Length": str(len(head))}
        )

    found = sent_to(answer, Load(2, concurrency=1), tensors=True)
    assert [each.differing for each in found] == [0, 0]
    (first, image), _ = asked
    assert image == b"first"
    assert first["outputs"] == [{"name": "MASK", "parameters": {"binary_data": True}}]
    assert first["inputs"] == [
        {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 9}}
    ]


@pytest.mark.unit
def test_percentiles_are_values_that_were_seen() -> None:
    hundred = [float(number) for number in range(100, 0, -1)]
    assert [replies.percentile(hundred, share) for share in (0.5, 0.99, 1.0)] == [50.0, 99.0, 100.0]
    assert replies.percentile([7.0], 0.5) == 7.0
    assert replies.percentile([], 0.5) is None


@pytest.mark.unit
def test_throughput_and_answers_in_time_leave_out_what_failed() -> None:
    found = [
        reply(1.0),
        reply(3.0, sent=1.0),
        reply(0.1, "503", sent=2.0),
        reply(1.5, sent=2.5, differing=1),
        reply(5.0, "TimeoutError"),
    ]
    assert replies.elapsed(found) == 5.0
    assert replies.throughput(found) == 3 / 5
    assert replies.in_time(found, 1.5) == 2
    assert replies.worst_difference(found) == 0.25


@pytest.mark.unit
def test_a_server_ends_with_all_that_it_started(tmp_path: Path) -> None:
    child = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    parent = (
        "import subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE, start_new_session=True)\n"
        "child.stdout.readline(); print(child.pid, flush=True); child.wait()"
    )
    command = [sys.executable, "-c", parent]
    with Running(command, environment={}, folder=tmp_path, stop=signal.SIGTERM, patience=0.3) as server:
        while not server.log_tail().strip():
            assert server.exit_code is None
        lone = psutil.Process(int(server.log_tail()))
        processes = server.processes()
        assert lone in processes
        assert len(processes) == 2
        assert server.memory() > sum(process.memory_full_info().uss for process in processes) / 2
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
    assert server.exit_code is not None


@pytest.mark.unit
def test_a_peer_that_is_absent_is_reported() -> None:
    by_name = {contender.name: contender for contender in CONTENDERS}
    assert missing(by_name["mosec"], {}) == "not installed: make bench-peers"
    assert missing(by_name["mosec"], {"mosec": "0.9.8"}) == ""


@pytest.mark.unit
def test_the_peers_compute_with_the_same_versions() -> None:
    ours, theirs = (
        dict(re.findall(r"^(torch|numpy|pillow|pi-heif)==(.*)$", (ROOT / file).read_text(), re.MULTILINE))
        for file in ("constraints.txt", "benchmarks/peers/constraints.txt")
    )
    assert ours == theirs
