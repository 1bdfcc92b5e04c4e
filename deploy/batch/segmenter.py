"""One process of the job: reads the pictures of a shard, has them segmented, and writes their rows."""

# pyright: reportMissingImports=false, reportUnknownParameterType=false
# Ray and pyarrow are in an environment that only `make check-batch` makes; without it nothing of theirs has a type.

from __future__ import annotations

import hashlib
import json
import math
import resource
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pyarrow as pa
from places import SCHEMA, Place

from deeplab_client import (
    AccessDeniedError,
    DeadlineExceededError,
    ModelNotFoundError,
    RetryPolicy,
    SegmentationClient,
    SegmentationError,
    TLSError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from deeplab_client import ResultDict, Segmentation

# Every other picture would fail in the same way: the job ends, and goes on once this is put right.
FATAL = (AccessDeniedError, ModelNotFoundError, TLSError, UnsupportedError)
# As many as the timeout has room for: a server that is away or has too much to do is waited for.
PATIENT = RetryPolicy(retries=1_000_000, first_delay=0.5, longest_delay=30.0)


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        source: Where the pictures are.
        output: Where rows and masks go.
        url: The server; its name may have an address for each replica.
        model: The ensemble to ask.
        masks: `png` or `rle` for a column of the rows, `files` for PNG files, or `none`.
        per_replica: Requests at a time for each address of the server, over all workers.
        workers: Processes.
        timeout: Seconds that a picture may take, waiting for a server that is away included.
    """

    source: Place
    output: Place
    url: str
    model: str
    masks: str
    per_replica: int
    workers: int
    timeout: float

    def client(self) -> SegmentationClient:
        """Return a client with the token, the certificates and whatever else the environment has."""
        return SegmentationClient.from_env(url=self.url, model=self.model, timeout=self.timeout, retries=PATIENT)

    def concurrency(self) -> int:
        """Return how many requests a worker has under way, by the number of replicas that there are now."""
        return max(1, math.ceil(self.per_replica * replicas(self.url) / self.workers))


def replicas(url: str) -> int:
    """Return how many addresses the name in a URL has now: a headless Service has one for each pod that is ready."""
    place = urlsplit("//" + url.rstrip("/").rpartition("/")[2])
    try:
        found = socket.getaddrinfo(place.hostname, None, type=socket.SOCK_STREAM)
    except OSError:
        return 1
    families = Counter(family for family, *_ in set(found))
    return max(families.values())  # a pod may have an address of each family


class Segmenter:
    """Segments one shard after another, in a process of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._client = job.client()

    def __call__(self, shard: pa.Table) -> pa.Table:
        """Write the rows of a shard of paths; return what the shard cost, one row.

        Raises:
            SegmentationError: Nothing can be segmented: one of `FATAL`.
        """
        began, processor, paths = time.time(), time.process_time(), shard["path"].to_pylist()
        concurrency = self._job.concurrency()
        with ThreadPoolExecutor(concurrency) as pool:
            answers = list(pool.map(self._answer, paths))
        rows, costs = zip(*answers, strict=True)
        # The same paths have the same name: where Ray repeats a shard, the file is replaced.
        name = hashlib.sha256("\n".join(paths).encode()).hexdigest()[:32]
        self._job.output.write_rows(f"{name}.parquet", pa.Table.from_pylist(rows, SCHEMA))
        failures = Counter(row["error"]["kind"] for row in rows if "error" in row)
        total = Cost(*(sum(parts) for parts in zip(*(asdict(cost).values() for cost in costs), strict=True)))
        about = {
            "pictures": len(rows),
            "failures": json.dumps(failures),
            "concurrency": concurrency,
            "began": began,
            "processor": time.process_time() - processor,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        return pa.Table.from_pylist([about | asdict(total)])

    def _answer(self, path: str) -> tuple[dict[str, Any], Cost]:
        job, start = self._job, time.perf_counter()
        try:
            picture = job.source.read(path)
        except OSError as error:
            retryable = not isinstance(error, (FileNotFoundError, PermissionError))
            return failure(path, error, retryable=retryable), Cost(read=time.perf_counter() - start)
        read = time.perf_counter()
        try:
            result = self._segment(picture)
        except FATAL:
            raise
        except SegmentationError as error:
            retryable = error.retryable or isinstance(error, DeadlineExceededError)
            return failure(path, error, retryable=retryable), Cost(len(picture), read - start)
        answered = time.perf_counter()
        row = success(path, result.to_dict(rle=job.masks == "rle"))
        if job.masks == "png":
            row["mask"] = result.to_png()
        elif job.masks == "files":
            job.output.make_folder(f"masks/{path}".rpartition("/")[0])
            job.output.write(f"masks/{path}.png", result.to_png())
        return row, Cost(len(picture), read - start, answered - read, time.perf_counter() - answered)

    def _segment(self, picture: bytes) -> Segmentation:
        """Return the result; wait for a model that is missing, which it also is on a server that starts or stops."""
        deadline = time.monotonic() + self._job.timeout
        while True:
            try:
                return self._client.segment(picture)
            except ModelNotFoundError:  # noqa: PERF203 - each try fails by itself
                if time.monotonic() > deadline:
                    raise
                time.sleep(1.0)


@dataclass(frozen=True)
class Cost:
    """What pictures took: bytes, and seconds to read, to segment and to encode them."""

    size: int = 0
    read: float = 0.0
    segment: float = 0.0
    encode: float = 0.0


def success(path: str, result: ResultDict) -> dict[str, Any]:
    """Return the row of a picture that was segmented, without its mask."""
    return {
        "path": path,
        "width": result["width"],
        "height": result["height"],
        "classes": [
            {
                "id": each["id"],
                "name": each["name"],
                "share": each["fraction"],
                "rle": each["rle"] and each["rle"]["counts"],
            }
            for each in result["classes"]
        ],
        "model": result["model_name"],
        "version": result["model_version"],
        "weights": result["weights"],
    }


def failure(path: str, error: Exception, *, retryable: bool) -> dict[str, Any]:
    """Return the row of a picture that failed."""
    message = str(error) or type(error).__name__
    return {"path": path, "error": {"kind": type(error).__name__, "message": message, "retryable": retryable}}
