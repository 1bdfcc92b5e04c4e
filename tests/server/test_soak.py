"""Good and bad pictures of all formats over both protocols at once: each gets its own answer, and nothing piles up.

SOAK_REQUESTS sets how many; what was measured is printed.
"""

from __future__ import annotations

import collections
import functools
import gc
import itertools
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import pytest
from corpus import bmp, gif, heif, jpeg, netpbm, others, png, tiff, tiff_layout, webp
from corpus.case import Refused, Taken
from triton_process import FOLDERS, files_of

from benchmarks import toy
from deeplab_client import InvalidImageError, SegmentationClient

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy.typing as npt
    from corpus.case import Case, Pixels
    from triton_process import TritonProcess

pytestmark = pytest.mark.server

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "600"))
WARM_UP = 300
AT_ONCE = 16
PICTURES = 420  # 21 classes, 25 heights and 17 widths
# A picture, its pixels or its mask kept from each request would be 2 to 12 kB, 60 to 360 MB in 30,000. Allocators
# breathe, and shared memory grows by 1 MiB an instance until it has met the largest batch.
MEGABYTES = 12.0
# Connections and gRPC's own pools breathe.
DESCRIPTORS = 8
BYTES = 20_000


def _palette(pixels: Pixels) -> tuple[Any, Any]:
    """Return a picture of one color as a palette of two, and indices of the second."""
    return np.stack([255 - pixels[0, 0], pixels[0, 0]]), np.ones((*pixels.shape[:2], 1), np.int64)


def _palette_png(pixels: Pixels) -> bytes:
    colors, indices = _palette(pixels)
    block = png.chunk(b"PLTE", colors.astype(np.uint8).tobytes())
    return png.write(indices, 1, png.PALETTE, interlaced=True, before=block)


def _gif(pixels: Pixels) -> bytes:
    colors, indices = _palette(pixels)
    return gif.write(gif.Frame(indices[..., 0]), palette=colors, screen=(pixels.shape[1], pixels.shape[0]))


def _heic(pixels: Pixels) -> bytes:
    """Return a HEIC, or a PNG where a side is odd."""
    height, width = pixels.shape[:2]
    if height % 2 or width % 2:
        return png.write(pixels.astype(np.int64), 8, png.RGB, filters=[1])
    return heif.heic_file(pixels)


ENCODERS: tuple[Callable[[Pixels], bytes], ...] = (
    functools.partial(jpeg.encode, quality=90),
    functools.partial(jpeg.encode, quality=80, progressive=True, subsampling="4:2:0"),
    lambda pixels: png.write(pixels.astype(np.int64) * 257, 16, png.RGB, filters=[2]),
    _palette_png,
    functools.partial(webp.encode, lossless=True),
    functools.partial(webp.encode, quality=90),
    lambda pixels: bmp.write(bmp.bgr(pixels), pixels.shape[1], 24),
    lambda pixels: netpbm.write(pixels, 255),
    _gif,
    lambda pixels: tiff_layout.write(pixels, 8, tiff_layout.RGB, tiff_layout.Layout(tiff_layout.LZW, rows=8)),
    lambda pixels: tiff_layout.write(pixels, 8, tiff_layout.RGB, tiff_layout.Layout(tile=(16, 16))),
    _heic,
    heif.avif_file,
)


def _cases() -> Iterator[Case]:
    """Return the small files of the corpus: large ones would move the memory that allocators keep."""
    for made in (png, jpeg, webp, bmp, netpbm, gif, tiff, heif, others):
        yield from (case for case in made.cases() if len(case.data) < BYTES)


@dataclass(frozen=True, slots=True)
class Sent:
    """A file, and what must come back.

    Attributes:
        data: The file.
        shape: Of the mask; none where the file must be refused.
        class_id: Of all pixels of the mask, where it is known.
    """

    data: bytes
    shape: tuple[int, int] | None
    class_id: int | None = None

    def complaint(self, mask: npt.NDArray[np.uint8]) -> str:
        """Return what is wrong with a mask, or ""."""
        if self.shape is None:
            return "status: it is taken"
        if mask.shape != self.shape or (self.class_id is not None and (mask != self.class_id).any()):
            return f"mask: {mask.shape}, classes {np.unique(mask)}, not {self.shape}, class {self.class_id}"
        return ""


def uniform(number: int) -> Sent:
    """Return a picture of one color, whose mask is known."""
    picture = toy.picture(number)
    data = ENCODERS[number % len(ENCODERS)](picture.pixels())
    return Sent(data, (picture.height, picture.width), picture.class_id)


def corpus(case: Case) -> Sent:
    """Return a file of the corpus."""
    verdict = case.verdict
    return Sent(case.data, (len(verdict.pixels), verdict.pixels.shape[1]) if isinstance(verdict, Taken) else None)


@dataclass(frozen=True, slots=True)
class Held:
    """The memory of processes: resident megabytes and descriptors of each, and megabytes of shared memory."""

    megabytes: dict[str, float]
    descriptors: dict[str, int]
    shared: float

    @classmethod
    def by(cls, server: TritonProcess) -> Held:
        gc.collect()
        processes = {"client": psutil.Process(), "serve.py": psutil.Process(server.pid), "tritonserver": server.triton}
        for stub in server.stubs:  # named after the instance, as "preprocess_0_1"
            processes[next(filter(re.compile(r"\w+_\d+_\d+").fullmatch, stub.cmdline()))] = stub
        shared = [file for file in map(Path, files_of(server.pid)) if file.parent == FOLDERS[0]]
        return cls(
            {name: process.memory_info().rss / 1e6 for name, process in processes.items()},
            {name: process.num_fds() for name, process in processes.items()},
            sum(file.stat().st_blocks for file in shared) * 512 / 1e6,
        )


def soak(server: TritonProcess, count: int, sent: Callable[[int], Sent]) -> list[str]:
    """Send requests, 16 at once, over gRPC and HTTP in turns; return what was wrong with the answers."""
    numbers = itertools.count()
    wrong: list[str] = []

    def work(clients: tuple[SegmentationClient, SegmentationClient]) -> None:
        while (number := next(numbers)) < count:
            file = sent(number)
            try:
                complaint = file.complaint(clients[number % 2].segment(file.data).mask)
            except InvalidImageError as exc:
                complaint = f"status: {exc}" if file.shape else ""
            except Exception as exc:  # noqa: BLE001 - any other is a wrong status
                complaint = f"status: {exc!r}"
            if complaint:
                wrong.append(f"{complaint} ({number})")

    with (
        SegmentationClient(f"grpc://{server.grpc_url}", retries=0) as grpc,
        SegmentationClient(f"http://{server.http_url}", retries=0) as http,
        ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        for done in [pool.submit(work, (grpc, http)) for _ in range(AT_ONCE)]:
            done.result()
    return wrong


@pytest.mark.timeout(7200)
def test_mixed_pictures_get_their_answers_and_leave_nothing_behind(toy_server: TritonProcess) -> None:
    known = [uniform(number) for number in range(PICTURES)]
    made = list(_cases())
    taken = [corpus(case) for case in made if isinstance(case.verdict, Taken) and not case.verdict.or_refused]
    refused = [corpus(case) for case in made if isinstance(case.verdict, Refused)]

    def sent(number: int) -> Sent:
        """Return, of five files, three of one color, one other good one and a bad one; each protocol gets all."""
        turn, place = divmod(number, 5)
        if place < 3:
            return known[(3 * turn + place) % len(known)]
        pool = taken if place == 3 else refused
        return pool[turn % len(pool)]

    wrong = soak(toy_server, max(WARM_UP, REQUESTS // 10), sent)
    before, start = Held.by(toy_server), time.monotonic()
    wrong += soak(toy_server, REQUESTS, sent)
    seconds, after = time.monotonic() - start, Held.by(toy_server)
    kinds = collections.Counter(line.split(":")[0] for line in wrong)
    lines = [f"{REQUESTS} requests in {seconds:.0f} s: {kinds['mask']} wrong masks, {kinds['status']} wrong statuses"]
    lines += [
        f"{name}: {held:.1f} -> {after.megabytes[name]:.1f} MB, "
        f"{before.descriptors[name]} -> {after.descriptors[name]} descriptors"
        for name, held in before.megabytes.items()
    ]
    lines.append(f"shared memory: {before.shared:.1f} -> {after.shared:.1f} MB")
    sys.stdout.write("\n".join(["", *lines, ""]))
    assert not wrong
    for name, held in before.megabytes.items():
        assert after.megabytes[name] < held + MEGABYTES, name
        assert after.descriptors[name] <= before.descriptors[name] + DESCRIPTORS, name
    assert after.shared < before.shared + MEGABYTES
