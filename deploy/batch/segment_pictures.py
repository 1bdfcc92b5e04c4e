"""Segment all pictures of a folder or bucket through a served endpoint, with Ray Data.

docs/batch.md describes when to use it, what it writes and how it resumes.

Ray manages the pool of processes, gives them shards of paths, and replaces a process that dies. Each process reads its
pictures and writes its shard itself. So no picture and no mask goes through Ray's object store, an unreadable picture
becomes a row and does not end the job, and a shard is written atomically. Ray's own readers and writers offer none of
the three.
"""

# pyright: reportMissingImports=false, reportUnknownParameterType=false
# Ray and pyarrow are only in the environment of `make check-batch`, so their types are unknown here.

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import secrets
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from places import Place, forget_failures, list_pictures, without_rows
from segmenter import Cost, Job, Segmenter

from deeplab_client import SegmentationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

OBJECT_STORE_BYTES = 500_000_000  # enough for paths; the default of a local Ray is 30 % of the memory
SECONDS_BETWEEN_LINES = 5.0

_log = logging.getLogger("segment_pictures")


@dataclass
class Tally:
    """The progress of the job.

    Attributes:
        pictures: Number of pictures to segment in this run.
        started: Start of the job in seconds since the epoch.
        began: Start of the first worker in seconds since the epoch; until then, Ray starts.
        done: Number of pictures that have a row.
        failures: Number of failures by kind of error.
        processor: CPU seconds of the workers.
        peak: Largest memory of a worker in bytes.
        concurrency: Concurrent requests of the worker that reported last.
    """

    pictures: int
    started: float = field(default_factory=time.time)
    began: float = math.inf
    done: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    cost: Cost = field(default_factory=Cost)
    processor: float = 0.0
    peak: int = 0
    concurrency: int = 0

    def add(self, shard: dict[str, Any]) -> None:
        """Add a worker's report about a shard."""
        self.done += shard["pictures"]
        self.began = min(self.began, shard["began"])
        self.failures.update(json.loads(shard["failures"]))
        self.cost = Cost(**{name: value + shard[name] for name, value in asdict(self.cost).items()})
        self.processor += shard["processor"]
        self.peak = max(self.peak, shard["peak"])
        self.concurrency = shard["concurrency"]

    def progress(self) -> str:
        """Return a line about the progress."""
        rate = self.done / (time.time() - self.began)
        left = (self.pictures - self.done) / rate
        failed = self.failures.total()
        return (
            f"{self.done:,} of {self.pictures:,} pictures, {failed:,} failed, {rate:.1f} per second, {left:.0f} s left"
        )

    def report(self, job: Job, *, earlier: int) -> dict[str, Any]:
        """Return the figures of the whole run."""
        now = time.time()
        seconds, segmented = max(now - self.began, 1e-3), max(1, self.done - self.failures.total())
        return {
            "pictures": self.done,
            "done_before": earlier,
            "failures": dict(self.failures),
            "seconds": round(seconds, 2),
            "seconds_to_start": round(min(self.began, now) - self.started, 2),
            "pictures_per_second": round(self.done / seconds, 2),
            "megabytes_per_second": round(self.cost.size / 1e6 / seconds, 3),
            "mean_milliseconds": {
                "read": round(1e3 * self.cost.read / max(1, self.done), 2),
                "segment": round(1e3 * self.cost.segment / segmented, 2),
                "encode": round(1e3 * self.cost.encode / segmented, 2),
                "processor": round(1e3 * self.processor / max(1, self.done), 2),
            },
            "megabytes_of_a_worker": round(self.peak / 1e6),
            "workers": job.workers,
            "requests_at_a_time": self.concurrency * job.workers,
        }


def segment(job: Job, shards: Sequence[pa.Table], tally: Tally) -> None:
    """Segment shards of paths on Ray: on the cluster of RAY_ADDRESS, or on a new one on this machine."""
    local = "RAY_ADDRESS" not in os.environ
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if local:  # the only protection of Ray's ports; Ray reads it when it is imported
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex()}
    import ray.data  # noqa: PLC0415 - see above

    if local:
        ray.init(
            address="local",  # not a Ray that is already running here
            num_cpus=job.workers,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address="127.0.0.1",
        )
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False  # they count shards, not pictures
        done = ray.data.from_arrow(shards).map_batches(
            Segmenter,
            fn_constructor_args=[job],
            batch_size=None,  # one block per shard
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=job.workers),
            num_cpus=1,
        )
        told = time.monotonic()
        for shard in done.iter_rows():
            tally.add(shard)
            if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
                _log.info("%s", tally.progress())
                told = time.monotonic()
    finally:
        ray.shutdown()


def check_settings(job: Job) -> None:
    """Store the settings in the output, or compare them with those of earlier runs.

    Raises:
        SystemExit: The settings differ.
    """
    settings = {"model": job.model, "masks": job.masks}
    try:
        before = json.loads(job.output.read("job.json"))
    except FileNotFoundError:
        job.output.write("job.json", json.dumps(settings).encode())
        return
    if before != settings:
        raise SystemExit(f"{job.output.root} has results of {before}, not of {settings}; use another output")


def parse(arguments: Sequence[str] | None) -> tuple[Job, argparse.Namespace]:
    """Return the job of a command line, and its options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    place = "a folder or a URI of pyarrow, such as s3://bucket/folder, gs://, abfss:// or hdfs://"
    parser.add_argument("input", help=f"pictures to segment: {place}")
    parser.add_argument("output", help=f"where to write the results: {place}, outside the input")
    parser.add_argument(
        "--url", default=os.environ.get("DEEPLAB_URL"), help="URL of the server (default: the variable DEEPLAB_URL)"
    )
    parser.add_argument(
        "--model",
        default=os.environ.get("DEEPLAB_MODEL", "segment_resnet50"),
        help="ensemble to use (default: the variable DEEPLAB_MODEL, or segment_resnet50)",
    )
    parser.add_argument(
        "--masks",
        choices=("png", "rle", "files", "none"),
        default="png",
        help="masks as a column of PNG or of run-length encodings, as PNG files, or none (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=2, help="processes, each with one core (default: %(default)s)")
    parser.add_argument(
        "--per-replica",
        type=int,
        default=32,
        help="concurrent requests for each address of the URL (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=300.0,
        help="seconds for a picture, including the wait for an unavailable server (default: %(default)g)",
    )
    parser.add_argument("--shard", type=int, default=500, help="pictures per Parquet file (default: %(default)s)")
    parser.add_argument(
        "--retry-errors", action="store_true", help="segment the pictures again that failed with a retryable error"
    )
    options = parser.parse_args(arguments)
    for name in ("workers", "per_replica", "shard", "timeout"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')} must be greater than 0, got {getattr(options, name)}")
    if options.url is None:
        parser.error("no server given; use --url or set DEEPLAB_URL")
    source, output = Place.of(options.input), Place.of(options.output)
    if output.filesystem == source.filesystem and f"{output.root}/".startswith(f"{source.root}/"):
        parser.error(
            f"the output {options.output} is inside the input {options.input}, so the next run would segment its "
            "masks; use another output"
        )
    names = ("url", "model", "masks", "per_replica", "workers", "timeout")
    return Job(source, output, **{name: getattr(options, name) for name in names}), options


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: A setting is wrong, or the server is not available.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    job, options = parse(arguments)
    with job.client() as client:
        try:
            client.wait_until_ready(timeout=job.timeout)
        except SegmentationError as error:
            raise SystemExit(f"{job.url}: {error}") from None
    for folder in ("rows", "_unfinished"):
        job.output.make_folder(folder)
    check_settings(job)
    job.output.filesystem.delete_dir_contents(f"{job.output.root}/_unfinished", missing_dir_ok=True)
    if options.retry_errors:
        forget_failures(job.output)
    try:
        listed = list_pictures(job.source)
    except (OSError, UnicodeDecodeError) as error:  # a name that is not UTF-8 has no row
        raise SystemExit(f"{options.input}: {error}") from None
    shards = list(without_rows(job.output, listed, shard=options.shard))
    pictures = sum(map(len, shards))
    _log.info("%s pictures, %s of them already done", f"{len(listed):,}", f"{len(listed) - pictures:,}")
    tally = Tally(pictures)
    if shards:
        segment(job, shards, tally)
    report = json.dumps(tally.report(job, earlier=len(listed) - pictures), indent=2)
    job.output.write("report.json", report.encode())
    sys.stdout.write(f"{report}\n")


if __name__ == "__main__":
    main()
