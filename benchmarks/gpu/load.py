"""Requests to a server from a process of its own, so that the load is no bottleneck of what is measured.

    python -m benchmarks.gpu.load HOST:PORT MODEL PICTURE CONCURRENCY

prints "ready" when it has had an answer, reads three numbers from stdin, the monotonic times at which to begin, to
begin counting and to end, keeps CONCURRENCY requests in flight until then, and prints what it counted as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc.aio as grpc

_OUTPUT = "MASK"


@dataclass(slots=True)
class Count:
    """What one process saw of the answers that came while it counted.

    Attributes:
        seconds: how long each answered request took.
        errors: message -> how often.
    """

    seconds: list[float] = field(default_factory=list[float])
    errors: dict[str, int] = field(default_factory=dict[str, int])


class Requests:
    """The same picture, again and again."""

    def __init__(self, client: Any, model: str, picture: bytes) -> None:  # noqa: ANN401  tritonclient has no types
        self._client = client
        self._model = model
        self._image = grpc.InferInput("IMAGE", [1, 1], "BYTES")
        self._image.set_data_from_numpy(np.array([[picture]], np.object_))
        self._outputs = [grpc.InferRequestedOutput(_OUTPUT)]

    async def send(self) -> None:
        """Send one and wait for its answer."""
        await self._client.infer(self._model, [self._image], outputs=self._outputs)

    async def keep_sending(self, counts_from: float, until: float, count: Count) -> None:
        """Send one after the other until a time, and count what comes after another."""
        while (started := time.monotonic()) < until:
            try:
                await self.send()
                message = None
            except Exception as exc:  # noqa: BLE001  counted as failed; the load goes on
                message = str(exc)[:200]
            ended = time.monotonic()
            if not counts_from <= ended <= until:
                continue
            if message is None:
                count.seconds.append(ended - started)
            else:
                count.errors[message] = count.errors.get(message, 0) + 1


async def main(address: str, model: str, picture: bytes, concurrency: int) -> None:
    """Run the load of one process."""
    async with grpc.InferenceServerClient(address) as client:
        requests = Requests(client, model, picture)
        await requests.send()
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        begin, counts_from, until = (float(number) for number in sys.stdin.readline().split())
        await asyncio.sleep(max(0.0, begin - time.monotonic()))
        count, busy = Count(), time.process_time()
        await asyncio.gather(*(requests.keep_sending(counts_from, until, count) for _ in range(concurrency)))
        share = (time.process_time() - busy) / (until - begin)
        sys.stdout.write(json.dumps({"seconds": count.seconds, "errors": count.errors, "busy": share}) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes(), int(sys.argv[4])))
