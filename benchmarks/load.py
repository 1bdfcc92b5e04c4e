"""The load generator for all servers: separate processes send pictures over HTTP and check every mask.

A closed loop keeps a number of requests in flight; an open loop sends at a rate, independently of the replies.
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
# Triton's binary extension: the length of the JSON before the tensors, in requests and replies.
JSON_LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Wire:
    """The URL and the format of a server's requests and replies.

    Attributes:
        url: for POST requests.
        tensors: whether requests and replies use Triton's HTTP protocol, with IMAGE and MASK as binary tensors;
            otherwise they are just the bytes of the picture and of the mask.
    """

    url: str
    tensors: bool = False

    def request(self, image: bytes) -> tuple[dict[str, str], bytes]:
        """Return headers and body. They ask for no compression, because only LitServe would compress."""
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
        """Return the class ids of a reply with status 200: one byte per pixel, row by row."""
        return body[int(headers[JSON_LENGTH]) :] if self.tensors else body

    def ask(self, image: bytes, *, timeout: float = 60.0) -> bytes:
        """Return the mask of one picture.

        Raises:
            OSError: no connection, or a timeout.
            http.client.HTTPException: the reply is not a mask.
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
    """Files with an encoded image and with the mask that every server must return, one byte per pixel."""

    image: Path
    mask: Path


@dataclass(frozen=True, slots=True)
class Load:
    """A load.

    Attributes:
        seconds: how long requests are sent; each caller sends at least one.
        concurrency: requests in flight of a closed loop; 0 for an open loop.
        rate: requests per second of an open loop.
        timeout: of a request, in seconds.
        count: maximum number of requests; 0 for no limit.
    """

    seconds: float
    concurrency: int = 0
    rate: float = 0.0
    timeout: float = 60.0
    count: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """The result of one request.

    Attributes:
        sent: seconds since the load began.
        seconds: until the last byte of the reply, or until the failure.
        status: the HTTP status, or the name of the exception.
        pixels: of the expected mask.
        differing: wrong pixels of the mask; all of them if the reply is not a mask of this size.
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
        busy: CPU share of the busiest process of the load; near 1, it may limit the throughput.
        cores: CPU share of all processes of the load together.
    """

    all: list[Reply]
    busy: float = 0.0
    cores: float = 0.0

    @property
    def seconds(self) -> list[float]:
        """The latency of each mask."""
        return [reply.seconds for reply in self.all if reply.status == ANSWERED]

    @property
    def elapsed(self) -> float:
        """Seconds from the first request to the last reply."""
        return max(each.sent + each.seconds for each in self.all) - min(each.sent for each in self.all)

    @property
    def throughput(self) -> float:
        """Masks per second."""
        return len(self.seconds) / self.elapsed

    def throughput_between(self, begin: float, end: float) -> float:
        """Return the masks per second between two times, in seconds since the load began."""
        times = [each.sent + each.seconds for each in self.all if each.status == ANSWERED]
        return sum(begin <= time <= end for time in times) / (end - begin)

    def percentile(self, share: float) -> float | None:
        """Return a percentile, from 0 to 1, of the latency in seconds; None without masks."""
        return float(np.quantile(self.seconds, share, method="inverted_cdf")) if self.seconds else None

    def in_time(self, seconds: float) -> int:
        """Return the number of masks with at most this latency."""
        return sum(taken <= seconds for taken in self.seconds)

    @property
    def errors(self) -> dict[str, int]:
        """The number of failed requests by status."""
        return dict(Counter(reply.status for reply in self.all if reply.status != ANSWERED))

    @property
    def differing(self) -> list[float]:
        """The share of wrong pixels of each wrong mask."""
        return [each.differing / each.pixels for each in self.all if each.status == ANSWERED and each.differing]

    def check(self, server: str) -> None:
        """Raise RuntimeError if a request failed or a mask is wrong, because such figures mean nothing."""
        if self.errors or self.differing:
            failed = ", ".join(f"{count} x {status}" for status, count in self.errors.items()) or "none"
            wrong = f"wrong masks: {len(self.differing)}, failed requests: {failed}"
            raise RuntimeError(f"{server} did not answer all {len(self.all)} requests correctly: {wrong}")


class Sender:
    """Separate processes that send a load, so that they do not slow down this one. Close it, or use it in `with`."""

    def __init__(self, processes: int = 1) -> None:
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "benchmarks.load"],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                start_new_session=True,  # Ctrl-C reaches only this process, which ends them
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
        """Send a load, with the pictures in turns.

        Raises:
            RuntimeError: a process of the load generator has ended.
        """
        used = self._processes[: load.concurrency or None]
        for number, process in enumerate(used):
            concurrency = load.concurrency // len(used) + (number < load.concurrency % len(used))
            share = replace(load, concurrency=concurrency, rate=load.rate / len(used))
            files = [(str(picture.image), str(picture.mask)) for picture in pictures]
            self._write(process, {"load": asdict(share), "wire": asdict(wire), "pictures": files})
        for process in used:
            self._read(process)
        begin = time.monotonic() + 0.01
        for process in used:
            self._write(process, begin)
        answers = [self._read(process) for process in used]
        replies = [Reply(*reply) for answer in answers for reply in answer["replies"]]
        busy = [answer["busy"] for answer in answers]
        return Replies(sorted(replies, key=lambda reply: reply.sent), max(busy), sum(busy))

    def _write(self, process: subprocess.Popen[str], message: object) -> None:
        assert process.stdin is not None  # noqa: S101 - for the type checker; it is a pipe
        with contextlib.suppress(BrokenPipeError):  # _read reports it
            process.stdin.write(f"{json.dumps(message)}\n")
            process.stdin.flush()

    def _read(self, process: subprocess.Popen[str]) -> Any:  # noqa: ANN401 - JSON
        assert process.stdout is not None  # noqa: S101 - for the type checker; it is a pipe
        if not (line := process.stdout.readline()):
            raise RuntimeError(f"a process of the load generator ended with exit code {process.wait()}")
        return json.loads(line)


async def send(
    load: Load, wire: Wire, pictures: Sequence[tuple[bytes, bytes]], *, begin: float | None = None
) -> list[Reply]:
    """Send a load in this process; return the replies in the order of their requests.

    Args:
        load: the load.
        wire: URL and format.
        pictures: encoded images and their masks, sent in turns.
        begin: start time on the monotonic clock; now by default.
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
    """Count at the rate of an open loop; after a delay it catches up."""
    for number in range(max(1, round(load.rate * load.seconds))):
        await asyncio.sleep(max(0.0, began + number / load.rate - time.monotonic()))
        yield number


def difference(mask: bytes, expected: bytes) -> int:
    """Return the number of wrong pixels of a mask; all of them if its size is wrong."""
    if mask == expected:
        return 0
    if len(mask) != len(expected):
        return len(expected)
    return int(np.count_nonzero(np.frombuffer(mask, np.uint8) != np.frombuffer(expected, np.uint8)))


def main() -> None:
    """Read loads from stdin, one JSON object per line, and send each at the time in the next line."""
    for line in sys.stdin:
        message = json.loads(line)
        pictures = [(Path(image).read_bytes(), Path(mask).read_bytes()) for image, mask in message["pictures"]]
        print(json.dumps("ready"), flush=True)  # noqa: T201 - to the process that started this one
        begin = json.loads(sys.stdin.readline())
        busy = time.process_time()
        replies = asyncio.run(send(Load(**message["load"]), Wire(**message["wire"]), pictures, begin=begin))
        share = (time.process_time() - busy) / max(1e-9, time.monotonic() - begin)
        answer = {"replies": [list(asdict(reply).values()) for reply in replies], "busy": share}
        print(json.dumps(answer), flush=True)  # noqa: T201 - likewise


if __name__ == "__main__":
    main()
