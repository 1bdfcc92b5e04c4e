"""The load generator: one asyncio loop over aiohttp, in a process of its own, for all servers.

`run` starts the process. A closed load keeps so many requests in flight; an open one sends at its rate, whatever
comes back.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import numpy as np

from benchmarks.peers.replies import ANSWERED, Reply
from benchmarks.peers.wire import Wire

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Load:
    """What to send.

    Attributes:
        count: requests in all.
        concurrency: of a closed load, requests in flight; 0 for an open load.
        rate: of an open load, requests a second.
        timeout: seconds after which a request is given up.
    """

    count: int
    concurrency: int = 0
    rate: float = 0.0
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class Picture:
    """An encoded image and the mask that every server must return, one byte a pixel."""

    image: Path
    mask: Path


def run(load: Load, wire: Wire, pictures: list[Picture]) -> list[Reply]:
    """Send the load from a process of its own; return the replies in the order of their requests."""
    spec = {
        "load": asdict(load),
        "wire": wire.as_json(),
        "pictures": [[str(picture.image), str(picture.mask)] for picture in pictures],
    }
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers.load"],
        cwd=ROOT,
        input=json.dumps(spec),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        start_new_session=True,  # Ctrl-C is ours, and ends it too
    )
    return [Reply(**reply) for reply in json.loads(done.stdout)]


async def send(load: Load, wire: Wire, pictures: list[tuple[bytes, bytes]]) -> list[Reply]:
    """Send the load, the (image, mask) pairs in turns; return the replies in the order of their requests."""
    prepared = [(*wire.request(image), mask) for image, mask in pictures]
    timeout = aiohttp.ClientTimeout(total=load.timeout)
    replies: list[Reply] = []
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, auto_decompress=False
    ) as session:
        began = time.perf_counter()

        async def ask(number: int) -> None:
            headers, body, expected = prepared[number % len(prepared)]
            sent = time.perf_counter()
            mask = b""
            try:
                async with session.post(wire.url, data=body, headers=headers) as reply:
                    content = await reply.read()
                    status = str(reply.status)
                    if status == ANSWERED:
                        mask = wire.mask(reply.headers, content)
            except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, OSError) as error:
                status = type(error).__name__
            seconds = time.perf_counter() - sent
            replies.append(Reply(sent - began, seconds, status, len(expected), difference(mask, expected)))

        if load.concurrency:
            numbers = iter(range(load.count))

            async def worker() -> None:
                for number in numbers:
                    await ask(number)

            await asyncio.gather(*(worker() for _ in range(load.concurrency)))
        else:
            await asyncio.gather(*[asyncio.ensure_future(ask(number)) async for number in ticks(load)])
    return sorted(replies, key=lambda reply: reply.sent)


async def ticks(load: Load) -> AsyncIterator[int]:
    """Count at the rate of an open load; after a delay it catches up, so that the rate holds."""
    began = time.perf_counter()
    for number in range(load.count):
        await asyncio.sleep(max(0.0, began + number / load.rate - time.perf_counter()))
        yield number


def difference(mask: bytes, expected: bytes) -> int:
    """Return how many pixels of a mask are not as expected; all of them where it has another size."""
    if mask == expected:
        return 0
    if len(mask) != len(expected):
        return len(expected)
    return int(np.count_nonzero(np.frombuffer(mask, np.uint8) != np.frombuffer(expected, np.uint8)))


def main() -> None:
    """Read a spec from stdin and write the replies to stdout, both as JSON."""
    spec = json.load(sys.stdin)
    pictures = [(Path(image).read_bytes(), Path(mask).read_bytes()) for image, mask in spec["pictures"]]
    replies = asyncio.run(send(Load(**spec["load"]), Wire(**spec["wire"]), pictures))
    json.dump([asdict(reply) for reply in replies], sys.stdout)


if __name__ == "__main__":
    main()
