"""The load generator of the benchmarks, and that a measured server ends with all its processes."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import socket
import struct
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from aiohttp import web

from benchmarks import load, servers
from benchmarks.load import Load, Picture, Replies, Reply, Sender, Wire
from benchmarks.peers.contenders import PEERS
from deeplabv3.embedded.launch import LaunchError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = Path(__file__).resolve().parents[2]
PICTURES = [(b"first", b"\0\1\2\3"), (b"second", b"\5\5")]


def reply(seconds: float, status: str = "200", *, sent: float = 0.0, differing: int = 0) -> Reply:
    return Reply(sent, seconds, status, pixels=4, differing=differing)


def sent_to(
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]], what: Load, *, tensors: bool = False
) -> Replies:
    """Send a load to a server that answers with a handler."""

    async def both() -> Replies:
        application = web.Application()
        application.router.add_post("/segment", handler)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            port = runner.addresses[0][1]
            wire = Wire(f"http://127.0.0.1:{port}/segment", tensors=tensors)
            return Replies(await load.send(what, wire, PICTURES))
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

    found = sent_to(answer, Load(60, concurrency=1, count=4))
    assert [(each.status, each.pixels, each.differing) for each in found.all] == [
        ("200", 4, 0),
        ("200", 2, 0),
        ("200", 4, 1),
        ("200", 2, 2),
    ]
    assert found.differing == [0.25, 1.0]
    with pytest.raises(
        RuntimeError, match="not answer all 4 requests correctly: wrong masks: 2, failed requests: none"
    ):
        found.check("Triton")


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
        await three.wait()  # no reply before three requests have arrived
        await asyncio.sleep(0.02)  # time for a fourth to arrive
        flying.remove(request)
        return web.Response(body=dict(PICTURES)[body])

    found = sent_to(answer, Load(60, concurrency=3, count=12))
    assert len(found.all) == 12
    found.check("a server whose replies are right")
    assert max(most) == 3


@pytest.mark.unit
def test_an_open_load_does_not_wait_for_replies() -> None:
    here: list[web.Request] = []
    all_here = asyncio.Event()

    async def answer(request: web.Request) -> web.Response:
        here.append(request)
        if len(here) == 10:
            all_here.set()
        await all_here.wait()  # no reply before all requests have arrived
        return web.Response(body=dict(PICTURES)[await request.read()])

    found = sent_to(answer, Load(0.05, rate=200.0))
    assert [each.status for each in found.all] == ["200"] * 10
    gaps = [later.sent - earlier.sent for earlier, later in itertools.pairwise(found.all)]
    assert sum(gaps) >= 9 / 200 * 0.9


@pytest.mark.unit
def test_failures_are_counted_by_status_and_are_no_answers() -> None:
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

    found = sent_to(answer, Load(60, concurrency=1, timeout=0.5, count=3))
    assert [each.status for each in found.all] == ["503", "ServerDisconnectedError", "TimeoutError"]
    assert found.errors == {"503": 1, "ServerDisconnectedError": 1, "TimeoutError": 1}
    assert not found.seconds
    assert found.throughput == 0
    assert found.percentile(0.99) is None
    with pytest.raises(RuntimeError, match="failed requests: 1 x 503, 1 x Server"):
        found.check("a server")


@pytest.mark.unit
def test_triton_is_asked_only_for_the_mask_as_binary() -> None:
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

    found = sent_to(answer, Load(60, concurrency=1, count=2), tensors=True)
    assert [each.differing for each in found.all] == [0, 0]
    (first, image), _ = asked
    assert image == b"first"
    assert first["outputs"] == [{"name": "MASK", "parameters": {"binary_data": True}}]
    assert first["inputs"] == [
        {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": 9}}
    ]


@pytest.mark.unit
def test_throughput_and_goodput_ignore_failures() -> None:
    found = Replies(
        [
            reply(1.0),
            reply(3.0, sent=1.0),
            reply(0.1, "503", sent=2.0),
            reply(1.5, sent=2.5, differing=1),
            reply(5.0, "TimeoutError"),
        ]
    )
    assert found.elapsed == 5.0
    assert found.throughput == 3 / 5
    assert found.in_time(1.5) == 2
    assert found.percentile(0.5) == 1.5
    assert found.throughput_between(2.0, 4.0) == 2 / 2
    assert found.differing == [0.25]


SERVER = """
import http.server, signal, subprocess, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(bytes(4))

deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.mark.unit
def test_a_server_ends_with_all_its_processes_after_a_load(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"a picture")
    picture = Picture(tmp_path / "picture", tmp_path / "mask")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-c", SERVER, str(port)]
    wire = Wire(f"http://127.0.0.1:{port}/segment")
    with servers.started("a server", command, wire, [picture], environment={}, folder=tmp_path, patience=0.3) as server:
        assert picture.mask.read_bytes() == bytes(4)  # the first server provides the expected mask
        processes = server.processes.all()
        assert len(processes) == 2
        assert server.processes.memory() > sum(process.memory_full_info().uss for process in processes) / 2
        with Sender(processes=2) as sender:
            found = sender.run(Load(60, concurrency=4, count=5), wire, [picture])
        found.check("a server")
        assert len(found.all) == 10  # five from each process
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


@pytest.mark.unit
def test_the_error_of_a_server_that_ends_has_its_log(tmp_path: Path) -> None:
    (tmp_path / "picture").write_bytes(b"a picture")
    pictures = [Picture(tmp_path / "picture", tmp_path / "mask")]
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with (
        pytest.raises(LaunchError, match=r"ended with exit code 1:\nno such model"),
        servers.started("x", command, Wire("http://127.0.0.1:9/"), pictures, environment={}, folder=tmp_path),
    ):
        pass


@pytest.mark.unit
def test_a_peer_that_is_not_installed_is_reported() -> None:
    mosec = next(peer for peer in PEERS if peer.name == "mosec")
    assert mosec.missing({}) == "not installed: make bench-peers"
    assert not mosec.missing({"mosec": "0.9.8"})


@pytest.mark.unit
def test_the_peers_use_the_same_versions() -> None:
    ours, theirs = (
        dict(re.findall(r"^(torch|numpy|pillow|pi-heif)==(.*)$", (ROOT / file).read_text(), re.MULTILINE))
        for file in ("constraints.txt", "benchmarks/peers/constraints.txt")
    )
    assert ours == theirs
