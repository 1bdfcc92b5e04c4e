"""Ask a server for many masks through one client, in a process of its own; print what the process holds, as JSON.

Arguments: sync or async, the URL, and how many requests. Two lines are printed: after as many requests as it takes to
fill pools, caches and arenas, and after the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.toy import picture  # loads torch, in both measurements
from deeplab_client import AsyncSegmentationClient, SegmentationClient

WARM_UP = 500
AT_ONCE = 16
PAGE = os.sysconf("SC_PAGE_SIZE")


def report() -> None:
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    links: list[str] = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the folder's own
            links.append(str(entry.readlink()))
    held = {
        "descriptors": len(links),
        "sockets": sum(link.startswith("socket:") for link in links),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "python threads": threading.active_count(),
        "megabytes": resident / 1e6,
    }
    sys.stdout.write(f"{json.dumps(held)}\n")
    sys.stdout.flush()


def from_threads(url: str, requests: int) -> None:
    def work(client: SegmentationClient, numbers: itertools.chain[int]) -> None:
        for number in numbers:
            if not picture(number).is_mask(client.segment(picture(number).ppm()).mask):
                raise AssertionError(f"a wrong mask for {picture(number)}")

    with SegmentationClient(url) as client, ThreadPoolExecutor(AT_ONCE) as pool:
        for count in (WARM_UP, requests):
            numbers = itertools.chain(range(count))  # shared: each takes the next
            for done in [pool.submit(work, client, numbers) for _ in range(AT_ONCE)]:
                done.result()
            report()


async def from_coroutines(url: str, requests: int) -> None:
    async def work(client: AsyncSegmentationClient, numbers: itertools.chain[int]) -> None:
        for number in numbers:
            if not picture(number).is_mask((await client.segment(picture(number).ppm())).mask):
                raise AssertionError(f"a wrong mask for {picture(number)}")

    async with AsyncSegmentationClient(url) as client:
        for count in (WARM_UP, requests):
            numbers = itertools.chain(range(count))
            await asyncio.gather(*(work(client, numbers) for _ in range(AT_ONCE)))
            report()


if __name__ == "__main__":
    kind, url, requests = sys.argv[1:]
    if kind == "sync":
        from_threads(url, int(requests))
    else:
        asyncio.run(from_coroutines(url, int(requests)))
