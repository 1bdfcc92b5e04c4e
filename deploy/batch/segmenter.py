"""One process of the job: it reads the pictures of a shard, sends them to the server, and writes their rows."""

# pyright: reportMissingImports=false, reportUnknownParameterType=false
# Ray and pyarrow are only in the environment of `make check-batch`, so their types are unknown here.

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

# Every other picture would fail in the same way, so the job ends. It resumes after the cause is fixed.
FATAL = (AccessDeniedError, ModelNotFoundError, TLSError, UnsupportedError)
# Retry until the timeout, to wait for a server that is unavailable or overloaded.
RETRY_UNTIL_TIMEOUT = RetryPolicy(retries=1_000_000, first_delay=0.5, longest_delay=30.0)


@dataclass(frozen=True)
class Job:
    """The settings of a job.

    Attributes:
        source: Folder of the pictures.
        output: Folder of the rows and masks.
        url: URL of the server, whose name may have an address for each replica.
        model: Name of the ensemble.
        masks: `png` or `rle` for a column of the rows, `files` for PNG files, or `none`.
        per_replica: Concurrent requests for each address of the server, over all workers.
        workers: Number of processes.
        timeout: Seconds for a picture, including the wait for an unavailable server.
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
        """Return a client with the token, certificates and other settings of the environment."""
        return SegmentationClient.from_env(
            url=self.url, model=self.model, timeout=self.timeout, retries=RETRY_UNTIL_TIMEOUT
        )

    def concurrency(self) -> int:
        """Return the number of concurrent requests of a worker, from the current number of replicas."""
        return max(1, math.ceil(self.per_replica * replicas(self.url) / self.workers))


def replicas(url: str) -> int:
    """Return the current number of addresses of a URL's name; a headless Service has one for each ready pod."""
    place = urlsplit("//" + url.rstrip("/").rpartition("/")[2])
    try:
        found = socket.getaddrinfo(place.hostname, None, type=socket.SOCK_STREAM)
    except OSError:
        return 1
    families = Counter(family for family, *_ in set(found))
    return max(families.values())  # a pod may have an IPv4 and an IPv6 address


class Segmenter:
    """Segments shards in a process of its own."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._client = job.client()

    def __call__(self, shard: pa.Table) -> pa.Table:
        """Write the rows of a shard of paths; return the cost of the shard as one row.

        Raises:
            SegmentationError: One of `FATAL`, which every picture would cause.
        """
        began, processor, paths = time.time(), time.process_time(), shard["path"].to_pylist()
        concurrency = self._job.concurrency()
        with ThreadPoolExecutor(concurrency) as pool:
            answers = list(pool.map(self._answer, paths))
        rows, costs = zip(*answers, strict=True)
        # The name depends only on the paths, so that a shard that Ray repeats replaces its file.
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
        """Return the result. Wait for a missing model, because a server that starts or stops also lacks it."""
        left = self._job.timeout
        deadline = time.monotonic() + left
        while True:
            try:
                return self._client.segment(picture, timeout=left)
            except ModelNotFoundError:  # noqa: PERF203 - each attempt can fail
                time.sleep(1.0)
                left = deadline - time.monotonic()
                if left < 1:
                    raise


@dataclass(frozen=True)
class Cost:
    """The cost of pictures: bytes, and seconds to read, segment and encode them."""

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
