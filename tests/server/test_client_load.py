"""Many requests through one client: each picture gets its own mask, and nothing accumulates."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from drivers import Kind, connected
from triton_process import wait_until

import deeplab_client
from benchmarks import toy
from benchmarks.proxy import Fault, Proxy
from deeplab_client import AsyncSegmentationClient, Segmentation, SegmentationClient

if TYPE_CHECKING:
    from triton_process import TritonProcess

pytestmark = pytest.mark.server

Scheme = Literal["grpc", "http"]
ROOT = Path(__file__).parents[2]
TIMEOUT = 60.0


def url_of(server: TritonProcess, scheme: Scheme) -> str:
    return f"{scheme}://{server.grpc_url if scheme == 'grpc' else server.http_url}"


@pytest.fixture(params=["grpc", "http"])
def scheme(request: pytest.FixtureRequest) -> Scheme:
    return request.param


@pytest.mark.parametrize("mask_format", ["raw", "png"])
def test_64_threads_get_the_masks_of_their_pictures(
    toy_server: TritonProcess, scheme: Scheme, mask_format: Literal["raw", "png"]
) -> None:
    def is_right(number: int) -> bool:
        return toy.picture(number).is_mask(client.segment(toy.picture(number).ppm()).mask)

    with (
        SegmentationClient(url_of(toy_server, scheme), timeout=TIMEOUT, mask_format=mask_format) as client,
        ThreadPoolExecutor(64) as pool,
    ):
        assert all(pool.map(is_right, range(640)))


@pytest.mark.parametrize("mask_format", ["raw", "png"])
def test_256_coroutines_get_the_masks_of_their_pictures(
    toy_server: TritonProcess, scheme: Scheme, mask_format: Literal["raw", "png"]
) -> None:
    async def all_right() -> bool:
        client = AsyncSegmentationClient(url_of(toy_server, scheme), timeout=TIMEOUT, mask_format=mask_format)

        async def is_right(number: int) -> bool:
            first, second = toy.picture(number), toy.picture(number + 256)
            return first.is_mask((await client.segment(first.ppm())).mask) and second.is_mask(
                (await client.segment(second.pixels())).mask
            )

        async with client:
            return all(await asyncio.gather(*map(is_right, range(256))))

    assert asyncio.run(all_right())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_streams_keep_their_order_past_bad_pictures(toy_server: TritonProcess, scheme: Scheme, kind: Kind) -> None:
    sent = [b"broken" if number % 10 == 3 else toy.picture(number).ppm() for number in range(100)]
    with connected(kind, url_of(toy_server, scheme), timeout=TIMEOUT) as client:
        results = list(client.segment_many(iter(sent), concurrency=7))
    assert len(results) == 100
    for number, result in enumerate(results):
        if number % 10 == 3:
            assert isinstance(result, deeplab_client.InvalidImageError)
        else:
            assert isinstance(result, Segmentation)
            assert toy.picture(number).is_mask(result.mask)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_2000_requests_leave_nothing_behind(toy_server: TritonProcess, scheme: Scheme, kind: Kind) -> None:
    command = [sys.executable, "-m", "tests.support.leaks", kind, url_of(toy_server, scheme), "2000"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    before, after = map(json.loads, done.stdout.splitlines())
    # A leak in each request would show 2,000 times; gRPC's pool of threads varies by a few.
    for held in ("descriptors", "sockets", "threads", "python threads"):
        assert after[held] <= before[held] + 8, (held, before, after)
    # A mask of 1.6 kB and its picture of 4.8 kB kept from each request would be 13 MB; arenas vary.
    assert after["megabytes"] < before["megabytes"] + 6, (before, after)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_clients_that_are_closed_leave_nothing_behind(toy_server: TritonProcess, scheme: Scheme, kind: Kind) -> None:
    def use_one() -> None:
        with connected(kind, url_of(toy_server, scheme), timeout=TIMEOUT) as client:
            assert toy.picture(1).is_mask(client.segment(toy.picture(1).ppm()).mask)

    def held() -> tuple[int, int]:
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count()

    for _ in range(3):  # grpc keeps a few of its own
        use_one()
    before = held()
    for _ in range(30):
        use_one()
    wait_until(lambda: held() <= before, what=f"{held()} down to {before} descriptors and threads")


def test_a_stream_that_is_left_early_ends_its_requests(toy_server: TritonProcess, scheme: Scheme) -> None:
    address = url_of(toy_server, scheme).removeprefix(f"{scheme}://")
    with Proxy(address) as proxy, SegmentationClient(f"{scheme}://{proxy.address}", timeout=TIMEOUT) as client:
        stream = client.segment_many((toy.picture(number).ppm() for number in range(1000)), concurrency=8)
        next(stream)
        proxy.fault = Fault("black hole")
        start = time.monotonic()
        stream.close()
        assert time.monotonic() - start < 20, "the calls were waited for"
        proxy.fault = None
        assert toy.picture(1).is_mask(client.segment(toy.picture(1).ppm(), timeout=10).mask)
