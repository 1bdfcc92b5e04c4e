"""Measure the overhead of deeplab_client over tritonclient, and the fastest format for masks.

    python -m benchmarks.client [overhead] [masks] [--rounds 600] [--output out/bench]

Both serve the toy model (benchmarks/toy.py) with the embedded server, so that nearly all of the time is spent in the
network and the client. `overhead` sends the same requests through our client and through a plain loop over
tritonclient, in turns, from one thread. It also reports the CPU time of this process, which depends less on other load
on the machine. `masks` sends pictures of several sizes over throttled connections in each mask format, in turns. The
results are printed and written to client.json and client.png.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import contextlib
import tempfile
import time
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tritonclient.grpc
import tritonclient.http
from PIL import Image

from benchmarks import harness, toy
from benchmarks.proxy import Proxy
from benchmarks.report import Column, Panel, Report
from deeplab_client import SegmentationClient
from deeplabv3.embedded.launch import RunningServer

if TYPE_CHECKING:
    from collections.abc import Callable

Scheme = Literal["grpc", "http"]
Format = Literal["raw", "png"]
LIBRARIES: dict[Scheme, Any] = {"grpc": tritonclient.grpc, "http": tritonclient.http}
FORMATS: tuple[Format, ...] = ("raw", "png")
OUTPUTS = ("MASK", "CLASS_NAMES", "IMAGE_ID")
WARM_UP = 20
SIZES = ((500, 375), (1280, 853), (4000, 3000))
RATES = {"localhost": None, "1 Gbit/s": 125e6, "100 Mbit/s": 12.5e6, "10 Mbit/s": 1.25e6}
MASK_ROUNDS = 2
THEIRS, OURS = "tritonclient", "deeplab_client"


def bare_call(scheme: Scheme, client: Any, data: bytes) -> list[Any]:  # noqa: ANN401 - tritonclient has no types
    """Make a request as a program without our client would."""
    library = LIBRARIES[scheme]
    options = {"binary_data": True} if scheme == "http" else {}
    image = library.InferInput("IMAGE", [1, 1], "BYTES")
    image.set_data_from_numpy(np.array([[data]], np.object_), **options)
    outputs = [library.InferRequestedOutput(name, **options) for name in OUTPUTS]
    reply = client.infer(toy.ENSEMBLE, [image], outputs=outputs)
    return [reply.as_numpy(name) for name in OUTPUTS]


def overhead(report: Report, server: RunningServer, rounds: int) -> None:
    """Compare our client with tritonclient."""
    data = harness.PHOTOGRAPH.read_bytes()
    for scheme, library in LIBRARIES.items():
        address = address_of(server, scheme)
        with (
            contextlib.closing(library.InferenceServerClient(address)) as bare,
            SegmentationClient(f"{scheme}://{address}", mask_format="raw") as client,
        ):
            calls: dict[str, Callable[[], object]] = {
                THEIRS: partial(bare_call, scheme, bare, data),
                OURS: partial(client.segment, data),
            }
            for turn, name, call in harness.in_turns(calls, rounds, warm_up=WARM_UP):
                start, busy = time.perf_counter(), time.process_time()
                call()
                seconds, busy = time.perf_counter() - start, time.process_time() - busy
                if turn >= 0:
                    figures = {"seconds": seconds, "processor": busy, "rate": 1 / seconds}
                    report.add("overhead", name, {"protocol": scheme}, figures)
    report.compare("overhead", "rate", {OURS: (THEIRS,)}, high_is_good=True)


def masks(report: Report, server: RunningServer, rounds: int) -> None:
    """Compare the formats of masks over connections of different speed."""
    for scheme in LIBRARIES:
        for width, height in SIZES:
            buffer = BytesIO()
            picture = Image.open(harness.PHOTOGRAPH).convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
            picture.save(buffer, "JPEG", quality=85)
            size = f"{width} x {height}, {len(buffer.getvalue()) / 1e3:.0f} kB"
            for connection, rate in RATES.items():
                condition = {"protocol": scheme, "picture": size, "connection": connection}
                with Proxy(address_of(server, scheme)) as proxy, contextlib.ExitStack() as stack:
                    proxy.rate = rate
                    url = f"{scheme}://{address_of(server, scheme) if rate is None else proxy.address}"
                    calls = {
                        name: partial(
                            stack.enter_context(SegmentationClient(url, mask_format=name, timeout=300)).segment,
                            buffer.getvalue(),
                        )
                        for name in FORMATS
                    }
                    for turn, name, call in harness.in_turns(calls, min(rounds, MASK_ROUNDS), warm_up=1):
                        start = time.perf_counter()
                        call()
                        if turn >= 0:
                            report.add("masks", name, condition, {"seconds": time.perf_counter() - start})
    report.compare("masks", "seconds", {"raw": ("png",)}, high_is_good=False)


def address_of(server: RunningServer, scheme: Scheme) -> str:
    """Return `host:port`."""
    return server.grpc_url if scheme == "grpc" else server.http_url


def main() -> int:
    """Measure the chosen parts."""
    parts = {"overhead": overhead, "masks": masks}
    options = harness.parser("benchmarks.client", __doc__, rounds=600, parts=tuple(parts)).parse_args()
    report = Report("client", options.output)
    columns = (Column("seconds", "ms", 1e3, ".2f"), Column("processor", "CPU ms", 1e3, ".2f"))
    with tempfile.TemporaryDirectory() as folder:
        repository = toy.build(Path(folder) / "models")
        with RunningServer(repository, log=Path(folder) / "serve.log") as server:
            for part in options.parts:
                parts[part](report, server, options.rounds)
                report.show(part, report.of(part), columns)
    panels = [
        Panel("overhead", name, f"{title}, {scheme}", "ms per request", scale=1e3, where={"protocol": scheme})
        for scheme in LIBRARIES
        for name, title in (("seconds", "Latency"), ("processor", "CPU time of the client"))
    ]
    report.plot(panels, title=f"{OURS} (blue) and plain tritonclient: one request at a time", ours=(OURS,))
    return report.end()


if __name__ == "__main__":
    harness.run(main)
