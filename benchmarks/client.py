"""What deeplab_client costs beside tritonclient alone, and how masks travel fastest.

    PYTHONPATH=tests:tests/server .venv/bin/python benchmarks/client.py [overhead] [masks]

Both serve the tests' toy model with the embedded server, so that the network and the client weigh as much as they can.
`overhead` sends the same requests through our client and through a bare loop over tritonclient's, in turns, from one
thread, and prints the best round of each: what others do on the machine only ever adds time. `masks` sends pictures of
several sizes through a throttled connection and prints the median time of each format.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pictures
import toy
import tritonclient.grpc
import tritonclient.http
from proxy import Proxy
from rich.console import Console
from rich.table import Table
from triton_process import TritonProcess

from deeplab_client import SegmentationClient

if TYPE_CHECKING:
    from collections.abc import Callable

Scheme = Literal["grpc", "http"]
SCHEMES: tuple[Scheme, ...] = ("grpc", "http")
LIBRARIES: dict[Scheme, Any] = {"grpc": tritonclient.grpc, "http": tritonclient.http}
OUTPUTS = ("MASK", "CLASS_PIXELS", "CLASS_NAMES")
ROUNDS, CALLS = 12, 60
SIZES = ((500, 375), (1280, 853), (4000, 3000))
RATES = {"localhost": None, "1 Gbit/s": 125e6, "100 Mbit/s": 12.5e6, "10 Mbit/s": 1.25e6}
REPEATS = 3


def bare_call(scheme: Scheme, address: str, data: bytes) -> tuple[Callable[[], object], Callable[[], None]]:
    """Return a call as a program without our client would write it, and what closes it."""
    library = LIBRARIES[scheme]
    client = library.InferenceServerClient(address)
    options = {"binary_data": True} if scheme == "http" else {}

    def call() -> object:
        image = library.InferInput("IMAGE", [1, 1], "BYTES")
        image.set_data_from_numpy(np.array([[data]], np.object_), **options)
        outputs = [library.InferRequestedOutput(name, **options) for name in OUTPUTS]
        reply = client.infer("segment_resnet50", [image], outputs=outputs)
        return [reply.as_numpy(name) for name in OUTPUTS]

    return call, client.close


def seconds_of(call: Callable[[], object], calls: int) -> float:
    """Return what a call takes, the mean of several."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def overhead(server: TritonProcess) -> Table:
    """Compare our client with tritonclient's."""
    table = Table("protocol", "tritonclient ms", "ours ms", "ours - theirs ms", "throughput, ours / theirs")
    data = pictures.small()
    for scheme in SCHEMES:
        address = address_of(server, scheme)
        theirs, close = bare_call(scheme, address, data)
        with SegmentationClient(f"{scheme}://{address}", mask_format="raw") as client:
            rounds: list[tuple[float, float]] = []
            for number in range(ROUNDS + 1):
                pair = [theirs, lambda client=client: client.segment(data)]
                first, second = (seconds_of(call, CALLS) for call in (pair if number % 2 else pair[::-1]))
                rounds.append((first, second) if number % 2 else (second, first))
            best_theirs, best_ours = (min(column) for column in zip(*rounds[1:], strict=True))
        close()
        table.add_row(
            scheme,
            f"{best_theirs * 1e3:.2f}",
            f"{best_ours * 1e3:.2f}",
            f"{(best_ours - best_theirs) * 1e3:+.2f}",
            f"{best_theirs / best_ours:.3f}",
        )
    return table


def masks(server: TritonProcess) -> Table:
    """Compare the formats in which a mask travels."""
    table = Table("protocol", "picture", "connection", "raw ms", "png ms", "raw / png")
    for scheme in SCHEMES:
        for size in SIZES:
            data = photograph(size)
            for name, rate in RATES.items():
                with Proxy(address_of(server, scheme)) as proxy:
                    proxy.rate = rate
                    address = address_of(server, scheme) if rate is None else proxy.address
                    raw, png = (median_of(f"{scheme}://{address}", form, data) for form in ("raw", "png"))
                label = f"{size[0]} x {size[1]}, {len(data) / 1e3:.0f} kB"
                table.add_row(scheme, label, name, f"{raw * 1e3:.1f}", f"{png * 1e3:.1f}", f"{raw / png:.2f}")
    return table


def median_of(url: str, mask_format: Literal["raw", "png"], data: bytes) -> float:
    """Return the seconds of one call by one client."""
    with SegmentationClient(url, mask_format=mask_format, timeout=300) as client:
        client.segment(data)
        return statistics.median(seconds_of(lambda: client.segment(data), 1) for _ in range(REPEATS))


def photograph(size: tuple[int, int]) -> bytes:
    """Return the tests' photograph as a JPEG of (width, height)."""
    buffer = BytesIO()
    pictures.cat(size).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def address_of(server: TritonProcess, scheme: Scheme) -> str:
    """Return `host:port`."""
    return server.grpc_url if scheme == "grpc" else server.http_url


def main() -> None:
    """Measure what is asked for, or everything."""
    parts = {"overhead": overhead, "masks": masks}
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="|".join(parts), help="default: all")
    chosen = parser.parse_args().parts or list(parts)
    console = Console()
    with (
        tempfile.TemporaryDirectory() as folder,
        TritonProcess(toy.build(Path(folder) / "models"), log=Path(folder) / "serve.log") as server,
    ):
        for part in chosen:
            console.print(parts[part](server))


if __name__ == "__main__":
    main()
