"""The load generator for all servers: pictures over HTTP, every mask compared, from processes of its own.

A closed load keeps so many requests in flight; an open one sends at its rate, whatever comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from benchmarks.harness import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

ANSWERED = "200"
# Triton's binary extension: the length of the JSON that stands before the tensors, in requests and replies.
JSON_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Wire:
    """Where and in which form a server takes pictures.

    Attributes:
        url: of a POST.
        tensors: whether body and reply are those of Triton's HTTP protocol, with IMAGE and MASK as binary tensors;
            otherwise they are the picture's and the mask's bytes and nothing else.
    """

    url: str
    tensors: bool = False

    def request(self, image: bytes) -> tuple[dict[str, str], bytes]:
        """Return headers and body. No server compresses; LitServe would."""
        headers = {"Content-Type": "image/jpeg", "Accept-Encoding": "identity"}
        if not self.tensors:
            return headers, image
        tensor = struct.pack("<I", len(image)) + image
        parameters = {"binary_data_size": len(tensor)}
        head = json.dumps(
            {
                "inputs": [{"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": parameters}],
                "outputs": [{"name": "MASK", "parameters": {"binary_data": True}}],
            }
        ).encode()
        return headers | {"Content-Type": "application/octet-stream", JSON_LENGTH: str(len(head))}, head + tensor

    def mask(self, headers: Mapping[str, str], body: bytes) -> bytes:
        """Return the class ids in a reply with status 200: one byte a pixel, row by row."""
        return body[int(headers[JSON_LENGTH]) :] if self.tensors else body

    def ask(self, image: bytes, *, timeout: float = 60.0) -> bytes:
        """Return the mask of one picture.

        Raises:
            OSError: no connection, or none in time.
            http.client.HTTPException: another reply than a mask.
        """
        address = urlsplit(self.url)
        with contextlib.closing(
            http.client.HTTPConnection(address.hostname or "", address.port, timeout=timeout)
        ) as connection:
            headers, body = self.request(image)
            connection.request("POST", address.path, body, headers)
            reply = connection.getresponse()
            content = reply.read()
            if str(reply.status) != ANSWERED:
                raise http.client.HTTPException(f"{self.url}: status {reply.status}: {content[:300]!r}")
            return self.mask(dict(reply.headers), content)


@dataclass(frozen=True, slots=True)
class Picture:
    """Files with an encoded image and with the mask that every server must return, one byte a pixel."""

    image: Path
    mask: Path


@dataclass(frozen=True, slots=True)
class Load:
    """What to send.

    Attributes:
        seconds: for which requests are sent; each caller sends one at least.
        concurrency: of a closed load, requests in flight; 0 for an open load.
        rate: of an open load, requests a second.
        timeout: seconds after which a request is given up.
        count: requests at most; 0 for any.
    """

    seconds: float
    concurrency: int = 0
    rate: float = 0.0
    timeout: float = 60.0
    count: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """One request.

    Attributes:
        sent: seconds since the load began.
        seconds: until the last byte of the reply, or until there was none.
        status: the HTTP status, or the name of the exception.
        pixels: of the mask that was expected.
        differing: pixels of it that are another class; all of them for a reply that is no such mask.
    """

    sent: float
    seconds: float
    status: str
    pixels: int
    differing: int


@dataclass(frozen=True, slots=True)
class Replies:
    """The replies to a load, in the order of their requests.

    Attributes:
        all: of them.
        busy: the share of a core that the busiest process of the load took; near 1 it may hold up what is measured.
        cores: that all processes of the load took together.
    """

    all: list[Reply]
    busy: float = 0.0
    cores: float = 0.0

    @property
    def seconds(self) -> list[float]:
        """How long each mask took."""
        return [reply.seconds for reply in self.all if reply.status == ANSWERED]

    @property
    def elapsed(self) -> float:
        """Seconds from the first request to the last reply."""
        return max(each.sent + each.seconds for each in self.all) - min(each.sent for each in self.all)

    @property
    def throughput(self) -> float:
        """Masks a second."""
        return len(self.seconds) / self.elapsed

    def throughput_between(self, begin: float, end: float) -> float:
        """Return the masks a second that came between two moments, in seconds since the load began."""
        times = [each.sent + each.seconds for each in self.all if each.status == ANSWERED]
        return sum(begin <= time <= end for time in times) / (end - begin)

    def percentile(self, share: float) -> float | None:
        """Return a percentile, a share from 0 to 1, of the seconds that masks took; None where none came."""
        return float(np.quantile(self.seconds, share, method="inverted_cdf")) if self.seconds else None

    def in_time(self, seconds: float) -> int:
        """Return how many masks came within some seconds of their request."""
        return sum(taken <= seconds for taken in self.seconds)

    @property
    def errors(self) -> dict[str, int]:
        """How many requests failed in each way."""
        return dict(Counter(reply.status for reply in self.all if reply.status != ANSWERED))

    @property
    def differing(self) -> list[float]:
        """The share of wrong pixels of each mask that has some."""
        return [each.differing / each.pixels for each in self.all if each.status == ANSWERED and each.differing]

    def check(self, server: str) -> None:
        """Raise RuntimeError when a request failed or got another mask: such a server's figures mean nothing."""
        if self.errors or self.differing:
            wrong = f"{len(self.differing)} wrong masks, failed: {self.errors or 'none'}"
            raise RuntimeError(f"{server} answered {len(self.all)} requests, not all of them right: {wrong}")


class Sender:
    """Processes of their own, so that sending holds up nothing that is measured; close it, or use it as a context."""

    def __init__(self, processes: int = 1) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.load"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C is ours, and ends them too
            )
            for _ in range(processes)
        ]

    def __enter__(self) -> Sender:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.communicate()

    def run(self, load: Load, wire: Wire, pictures: Sequence[Picture]) -> Replies:
        """Send a load, the pictures in turns.

        Raises:
            RuntimeError: a process of the load has ended.
        """
        used = self._processes[: load.concurrency or None]
        for number, process in enumerate(used):
            concurrency = load.concurrency // len(used) + (number < load.concurrency % len(used))
            share = replace(load, concurrency=concurrency, rate=load.rate / len(used))
            files = [(str(picture.image), str(picture.mask)) for picture in pictures]
            self._tell(process, {"load": asdict(share), "wire": asdict(wire), "pictures": files})
        for process in used:
            self._hear(process)
        begin = time.monotonic() + 0.01
        for process in used:
            self._tell(process, begin)
        answers = [self._hear(process) for process in used]
        replies = [Reply(*reply) for answer in answers for reply in answer["replies"]]
        busy = [answer["busy"] for answer in answers]
        return Replies(sorted(replies, key=lambda reply: reply.sent), max(busy), sum(busy))

    def _tell(self, process: subprocess.Popen[str], message: object) -> None:
        assert process.stdin is not None  # noqa: S101 - for the type checker: it is a pipe
        with contextlib.suppress(BrokenPipeError):  # _hear tells
            process.stdin.write(f"{json.dumps(message)}\n")
            process.stdin.flush()

    def _hear(self, process: subprocess.Popen[str]) -> Any:  # noqa: ANN401 - JSON
        assert process.stdout is not None  # noqa: S101 - for the type checker: it is a pipe
        if not (line := process.stdout.readline()):
            raise RuntimeError(f"a process of the load has ended, exit code {process.wait()}")
        return json.loads(line)


async def send(
    load: Load, wire: Wire, pictures: Sequence[tuple[bytes, bytes]], *, begin: float | None = None
) -> list[Reply]:
    """Send a load in this process; return the replies in the order of their requests.

    Args:
        load: what to send.
        wire: where and how.
        pictures: encoded images and their masks, sent in turns.
        begin: the moment of the monotonic clock to begin at; without it, now.
    """
    prepared = [(*wire.request(image), mask) for image, mask in pictures]
    timeout = aiohttp.ClientTimeout(total=load.timeout)
    replies: list[Reply] = []
    began = time.monotonic() if begin is None else begin
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=timeout, auto_decompress=False
    ) as session:

        async def ask(number: int) -> None:
            headers, body, expected = prepared[number % len(prepared)]
            sent = time.monotonic()
            mask = b""
            try:
                async with session.post(wire.url, data=body, headers=headers) as reply:
                    content = await reply.read()
                    status = str(reply.status)
                    if status == ANSWERED:
                        mask = wire.mask(reply.headers, content)
            except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, OSError) as error:
                status = type(error).__name__
            seconds = time.monotonic() - sent
            replies.append(Reply(sent - began, seconds, status, len(expected), difference(mask, expected)))

        numbers = itertools.islice(itertools.count(), load.count or None)

        async def caller() -> None:
            for number in numbers:
                await ask(number)
                if time.monotonic() > began + load.seconds:
                    return

        await asyncio.sleep(began - time.monotonic())
        if load.concurrency:
            await asyncio.gather(*(caller() for _ in range(load.concurrency)))
        else:
            await asyncio.gather(*[asyncio.ensure_future(ask(number)) async for number in ticks(load, began)])
    return sorted(replies, key=lambda reply: reply.sent)


async def ticks(load: Load, began: float) -> AsyncIterator[int]:
    """Count at the rate of an open load; after a delay it catches up, so that the rate holds."""
    for number in range(max(1, round(load.rate * load.seconds))):
        await asyncio.sleep(max(0.0, began + number / load.rate - time.monotonic()))
        yield number


def difference(mask: bytes, expected: bytes) -> int:
    """Return how many pixels of a mask are not as expected; all of them where it has another size."""
    if mask == expected:
        return 0
    if len(mask) != len(expected):
        return len(expected)
    return int(np.count_nonzero(np.frombuffer(mask, np.uint8) != np.frombuffer(expected, np.uint8)))


def main() -> None:
    """Send the loads that stdin tells, one JSON object a line, each at the moment in the line after it."""
    for line in sys.stdin:
        told = json.loads(line)
        pictures = [(Path(image).read_bytes(), Path(mask).read_bytes()) for image, mask in told["pictures"]]
        print(json.dumps("ready"), flush=True)  # noqa: T201 - to the process that started this one
        begin = json.loads(sys.stdin.readline())
        busy = time.process_time()
        replies = asyncio.run(send(Load(**told["load"]), Wire(**told["wire"]), pictures, begin=begin))
        share = (time.process_time() - busy) / max(1e-9, time.monotonic() - begin)
        answer = {"replies": [list(asdict(reply).values()) for reply in replies], "busy": share}
        print(json.dumps(answer), flush=True)  # noqa: T201 - likewise


if __name__ == "__main__":
    main()
