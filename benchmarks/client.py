"""What deeplab_client costs beside tritonclient alone, and how masks travel fastest.

    python -m benchmarks.client [overhead] [masks]

Both serve the toy model (benchmarks/toy.py) with the embedded server, so that the network and the client weigh as much
as they can.
`overhead` sends the same requests through our client and through a bare loop over tritonclient's, in turns, from one
thread, and prints medians; beside them stands the processor time that this process took, which others on the machine
hardly change. `masks` sends pictures of several sizes through a throttled connection and prints the median time of each
format.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import argparse
import statistics
import tempfile
import time
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import tritonclient.grpc
import tritonclient.http
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks import toy
from benchmarks.proxy import Proxy
from deeplab_client import SegmentationClient
from deeplabv3.embedded.launch import RunningServer

if TYPE_CHECKING:
    from collections.abc import Callable

PHOTOGRAPH = Path(__file__).resolve().parents[1] / "tests" / "assets" / "cat.png"
Scheme = Literal["grpc", "http"]
SCHEMES: tuple[Scheme, ...] = ("grpc", "http")
LIBRARIES: dict[Scheme, Any] = {"grpc": tritonclient.grpc, "http": tritonclient.http}
OUTPUTS = ("MASK", "CLASS_PIXELS", "CLASS_NAMES", "IMAGE_ID")
WARM_UP, CALLS = 20, 600
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


@dataclass(frozen=True, slots=True)
class Cost:
    """What one call takes: seconds, and seconds of processor time in this process."""

    wall: float
    processor: float


def cost_of(call: Callable[[], object]) -> Cost:
    """Return what one call takes."""
    start, busy = time.perf_counter(), time.process_time()
    call()
    return Cost(time.perf_counter() - start, time.process_time() - busy)


def overhead(server: RunningServer) -> Table:
    """Compare our client with tritonclient's."""
    table = Table("protocol", "client", "ms", "processor ms", "difference ms", "ours / theirs")
    data = PHOTOGRAPH.read_bytes()
    for scheme in SCHEMES:
        address = address_of(server, scheme)
        theirs, close = bare_call(scheme, address, data)
        with SegmentationClient(f"{scheme}://{address}", mask_format="raw") as client:
            calls: dict[str, Callable[[], object]] = {
                "tritonclient": theirs,
                "deeplab_client": lambda client=client: client.segment(data),
            }
            costs: dict[str, list[Cost]] = {name: [] for name in calls}
            for number in range(-WARM_UP, CALLS):
                for name, call in sorted(calls.items(), reverse=number % 2 == 0):  # who goes first takes turns too
                    cost = cost_of(call)
                    if number >= 0:
                        costs[name].append(cost)
        close()
        wall = {name: statistics.median(cost.wall for cost in found) for name, found in costs.items()}
        for name, found in costs.items():
            table.add_row(
                scheme,
                name,
                f"{wall[name] * 1e3:.2f}",
                f"{statistics.median(cost.processor for cost in found) * 1e3:.2f}",
                f"{(wall[name] - wall['tritonclient']) * 1e3:+.2f}",
                f"{wall['tritonclient'] / wall[name]:.3f}",
            )
    return table


def masks(server: RunningServer) -> Table:
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
        return statistics.median(cost_of(lambda: client.segment(data)).wall for _ in range(REPEATS))


def photograph(size: tuple[int, int]) -> bytes:
    """Return the tests' photograph as a JPEG of (width, height)."""
    buffer = BytesIO()
    Image.open(PHOTOGRAPH).convert("RGB").resize(size, Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def address_of(server: RunningServer, scheme: Scheme) -> str:
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
        RunningServer(toy.build(Path(folder) / "models"), log=Path(folder) / "serve.log") as server,
    ):
        for part in chosen:
            console.print(parts[part](server))


if __name__ == "__main__":
    main()
