"""The job of deploy/batch on a real Ray, from a folder and from a local S3 server, against a real tritonserver."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import secrets
import subprocess
import urllib.request
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import psutil
import pytest
from PIL import Image
from pods import answered_by
from pycocotools import mask as coco
from triton_process import TritonProcess, alive, wait_until

from benchmarks.toy import COLORS
from deeplabv3.embedded.checks import free_ports

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    Start = Callable[..., "Run"]

pytestmark = [pytest.mark.batch, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-batch" / "bin" / "python"
SUFFIXES = (".png", ".jpg", ".JPEG", ".webp", ".tif", ".heic")  # the server detects the format, not the suffix
# pyarrow is only in the environment of the job.
HEAD = """
import base64, json, sys
import pyarrow.dataset
from pyarrow import fs
filesystem, root = fs.FileSystem.from_uri(sys.argv[1])
folder = f"{root}/{sys.argv[2]}"
"""
LIST = """
found = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
json.dump({file.base_name: str(file.mtime_ns) for file in found if file.is_file}, sys.stdout)
"""
READ = """
rows = pyarrow.dataset.dataset(folder, filesystem=filesystem).to_table().to_pylist()
json.dump(rows, sys.stdout, default=lambda value: base64.b85encode(value).decode())
"""


@dataclass(frozen=True)
class Place:
    """The place of pictures and results: a folder, or a bucket of an S3 server.

    Attributes:
        uri: For the job.
        variables: Of its environment.
        path: The folder, where it is one.
        url: The bucket, where it is one.
    """

    uri: str
    variables: dict[str, str]
    path: Path | None = None
    url: str = ""

    def write(self, name: str, content: bytes) -> None:
        if self.path is None:
            url, kind = f"{self.url}/{quote(name)}", {"Content-Type": "image/png"}
            request = urllib.request.Request(url, content, kind, method="PUT")  # noqa: S310 - http
            urllib.request.urlopen(request, timeout=120).close()  # noqa: S310 - http
        else:
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_bytes(content)

    def files(self, folder: str) -> dict[str, str]:
        """Return the names in a folder, each with a value that changes when the file is written again."""
        if self.path is None:
            return json.loads(python(self, LIST, folder))
        return {path.name: f"{path.stat().st_ino} {path.stat().st_mtime_ns}" for path in self.path.glob(f"{folder}/*")}


def python(place: Place, code: str, folder: str) -> str:
    """Return the output of code in the job's environment about a folder of a place."""
    command = [PYTHON, "-c", HEAD + code, place.uri, folder]
    variables = os.environ | place.variables
    return subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True, timeout=300).stdout


def read(place: Place) -> list[dict[str, Any]]:
    """Return the rows of the result; masks are in base 85."""
    return json.loads(python(place, READ, "out/rows"))


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    assert PYTHON.exists(), "run `make check-batch`"


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    path = tmp_path / "my pictures ü #1"
    path.mkdir()
    return Place(str(path), {}, path)


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A bucket of moto's S3 server, which has no password."""
    log = tmp_path_factory.mktemp("s3") / "moto.log"
    port = next(free_ports("127.0.0.1", set()))
    url = f"http://127.0.0.1:{port}"
    variables = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    place = Place("s3://pictures", variables, url=f"{url}/pictures")
    command = [PYTHON.with_name("moto_server"), "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file) as server:

        def made() -> bool:
            assert server.poll() is None, log.read_text()
            try:
                place.write("", b"")
            except OSError:
                return False
            return True

        try:
            wait_until(made, what="a bucket", seconds=120)
            yield place
        finally:
            server.kill()


@dataclass(frozen=True)
class Cluster:
    """A Ray that jobs connect to.

    Attributes:
        variables: For the jobs.
        process: The one that all others of it descend from.
    """

    variables: dict[str, str]
    process: psutil.Process


def map_workers(ancestor: psutil.Process) -> list[psutil.Process]:
    """Return the processes of a Ray that send pictures."""
    family = ancestor.children(recursive=True)
    return [process for process in family if alive(process) and process.name().startswith("ray::Map")]


@pytest.fixture(scope="module")
def cluster(bucket: Place, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A Ray whose workers get their environment from it and not from the job, like those in pods."""
    log = tmp_path_factory.mktemp("ray") / "ray.log"
    port = next(free_ports("127.0.0.1", set()))
    shared = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(), "RAY_USAGE_STATS_ENABLED": "0"}
    settings = {
        "port": port,
        "node-ip-address": "127.0.0.1",
        "num-cpus": 2,
        "object-store-memory": 200_000_000,
        "include-dashboard": False,
        # Any free ports, because Ray rejects a port in the default range of its workers.
        "min-worker-port": 0,
        "max-worker-port": 0,
    }
    options = [f"--{name}={value}" for name, value in settings.items()]

    def start() -> subprocess.Popen[bytes]:
        with log.open("w") as file:
            return subprocess.Popen(
                [PYTHON.with_name("ray"), "start", "--head", "--block", *options],
                env=os.environ | bucket.variables | shared,
                stdout=file,
                stderr=file,
            )

    def runs(process: subprocess.Popen[bytes]) -> bool:
        def ended() -> bool:
            return process.poll() is not None

        wait_until(lambda: ended() or "Ray runtime started" in log.read_text(), what="Ray", seconds=120)
        return not ended()

    tries = (start() for _ in range(4))  # Ray's processes have 15 s to start, which a busy machine can exceed
    process = next(filter(runs, tries), None)
    assert process, log.read_text()
    head = psutil.Process(process.pid)
    yield Cluster(shared | {"RAY_ADDRESS": f"127.0.0.1:{port}"}, head)
    for each in [*head.children(recursive=True), head]:  # after SIGTERM, Ray would wait 30 s without need
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


@dataclass(frozen=True)
class Picture:
    """Return a picture of one color; each number has its own color and size."""

    number: int

    @property
    def name(self) -> str:
        return f"in/day {self.number % 7}/{self.number:05}{SUFFIXES[self.number % len(SUFFIXES)]}"

    @property
    def class_id(self) -> int:
        return self.number % len(COLORS)

    @property
    def size(self) -> tuple[int, int]:
        return 20 + self.number // len(COLORS) % 64, 20 + self.number // len(COLORS) // 64

    @property
    def broken(self) -> bool:
        return self.number % 100 == 50

    def content(self) -> bytes:
        buffer = io.BytesIO()
        red, green, blue = COLORS[self.class_id].tolist()
        Image.new("RGB", self.size, (red, green, blue)).save(buffer, "PNG")
        return buffer.getvalue()[:40] if self.broken else buffer.getvalue()


def pictures(place: Place, count: int) -> dict[str, Picture]:
    """Write pictures, 1 % of them broken, and files that are none; return them by their path from the folder `in`."""
    made = [Picture(number) for number in range(count)]
    for each in made:
        place.write(each.name, each.content())
    place.write("in/notes.txt", b"no picture")
    place.write("in/.thumbnails/1.png", made[0].content())
    return {each.name.removeprefix("in/"): each for each in made}


class Run:
    """A run of the job, on a Ray of its own or on a cluster."""

    def __init__(self, place: Place, server: str, *options: str, cluster: Cluster | None, log: Path) -> None:
        script = ROOT / "deploy" / "batch" / "segment_pictures.py"
        command = [PYTHON, script, f"{place.uri}/in", f"{place.uri}/out", "--url", f"grpc://{server}", *options]
        variables = os.environ | place.variables | (cluster.variables if cluster else {})
        self._cluster, self._log = cluster, log
        with log.open("w") as file:
            self.process = subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=file, text=True)

    def kill(self) -> None:
        """Kill the job alone, as the kernel would, and wait until its workers, which notice, have ended."""
        job = psutil.Process(self.process.pid)
        workers = map_workers(self._cluster.process if self._cluster else job)
        family = job.children(recursive=True)  # Ray's agents continue for about a minute, but send nothing
        self.process.kill()
        self.process.communicate()
        try:
            wait_until(lambda: not any(map(alive, workers)), what="the end of the job's workers", seconds=60)
        finally:
            for process in filter(alive, family):
                process.kill()

    def error(self) -> str:
        """Return what it has written on stderr."""
        return self._log.read_text()

    def report(self) -> dict[str, Any]:
        """Return what it says at its end."""
        output, _ = self.process.communicate(timeout=900)
        assert self.process.returncode == 0, self.error()
        return json.loads(output)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Start]:
    """Start runs; those that have not ended by then are killed at the end."""
    runs: list[Run] = []

    def start(place: Place, server: str, *options: str, cluster: Cluster | None = None) -> Run:
        runs.append(Run(place, server, *options, cluster=cluster, log=tmp_path / f"run-{len(runs)}.log"))
        return runs[-1]

    yield start
    for each in runs:
        if each.process.poll() is None:
            each.kill()
        assert each.process.stdout is not None
        each.process.stdout.close()


def check(rows: Sequence[dict[str, Any]], made: dict[str, Picture]) -> None:
    """Compare rows with the pictures: each once, all but its mask right."""
    assert Counter(row["path"] for row in rows) == Counter(made.keys())
    for row in rows:
        picture = made[row["path"]]
        if picture.broken:
            assert row["error"]["kind"] == "InvalidImageError"
            assert row["error"]["message"]
            assert row["error"]["retryable"] is False
            assert {row[name] for name in ("width", "height", "classes", "mask", "model")} == {None}
            continue
        assert row["error"] is None, row["error"]
        assert (row["width"], row["height"]) == picture.size
        (found,) = row["classes"]
        assert (found["id"], found["share"]) == (picture.class_id, 1.0)
        assert (row["model"], row["version"]) == ("segment_resnet50", "1")


def check_mask(mask: Image.Image, picture: Picture) -> None:
    assert mask.size == picture.size
    assert np.array_equal(np.unique(np.asarray(mask)), [picture.class_id])


def test_a_job_that_is_killed_goes_on_and_does_each_picture_once(
    folder: Place, run: Start, toy_server: TritonProcess
) -> None:
    kill_and_go_on(folder, run, toy_server, count=2000, shard=50)


def test_so_does_one_in_object_storage_and_on_a_cluster(
    bucket: Place, cluster: Cluster, run: Start, toy_server: TritonProcess
) -> None:
    kill_and_go_on(bucket, partial(run, cluster=cluster), toy_server, count=300, shard=20)


def kill_and_go_on(place: Place, run: Start, toy_server: TritonProcess, *, count: int, shard: int) -> None:
    made = pictures(place, count)
    options = ("--shard", str(shard), "--per-replica", "8")
    first = run(place, toy_server.grpc_url, *options)

    def half_done() -> bool:
        assert first.process.poll() is None, first.error()
        return len(place.files("out/rows")) >= count // shard // 4

    wait_until(half_done, what="some shards", seconds=600)
    first.kill()
    shards = place.files("out/rows")
    done = {row["path"] for row in read(place)}
    assert 0 < len(done) < count
    before = answered_by(toy_server)

    report = run(place, toy_server.grpc_url, *options).report()
    print(report)  # noqa: T201 - the figures of docs/batch.md, with pytest -s
    assert (report["pictures"], report["done_before"]) == (count - len(done), len(done))
    assert report["pictures_per_second"] > 0
    again = place.files("out/rows")
    assert shards.items() <= again.items(), "what was done is left as it was"
    left = [picture for path, picture in made.items() if path not in done]
    assert report["failures"] == {"InvalidImageError": sum(picture.broken for picture in left)}
    wait_until(
        lambda: answered_by(toy_server) - before == sum(not picture.broken for picture in left),
        what="a request for each picture that was left, and no other",
    )
    rows = read(place)
    check(rows, made)
    for row in rows:
        if row["error"] is None:
            with Image.open(io.BytesIO(base64.b85decode(row["mask"]))) as mask:
                check_mask(mask, made[row["path"]])
    assert place.files("out/_unfinished") == {}


def test_masks_are_run_lengths_or_files_where_these_are_asked_for(
    folder: Place, cluster: Cluster, run: Start, toy_server: TritonProcess
) -> None:
    assert folder.path is not None
    made = pictures(folder, 120)
    for masks in ("rle", "files"):
        run(folder, toy_server.grpc_url, "--masks", masks, "--workers", "1", cluster=cluster).report()
        rows = read(folder)
        check(rows, made)
        assert {row["mask"] for row in rows} == {None}
        for row in rows:
            picture = made[row["path"]]
            file = folder.path / "out" / "masks" / f"{row['path']}.png"
            assert file.exists() == (masks == "files" and not picture.broken)
            if file.exists():
                with Image.open(file) as mask:
                    check_mask(mask, picture)
            elif not picture.broken:
                (found,) = row["classes"]
                where = coco.decode({"size": [row["height"], row["width"]], "counts": found["rle"].encode()})
                assert where.shape == picture.size[::-1]
                assert where.all()
        other = run(folder, toy_server.grpc_url, "--masks", "none")
        assert other.process.wait(120) == 1
        assert "use another output" in other.error()
        (folder.path / "out").rename(folder.path / f"out of {masks}")


def test_pictures_of_a_server_that_went_away_are_done_when_asked_for(
    folder: Place, cluster: Cluster, run: Start, toy_repository: Path, tmp_path: Path
) -> None:
    made = pictures(folder, 150)
    run = partial(run, cluster=cluster)
    options = ("--shard", "10", "--timeout", "5", "--per-replica", "20")
    with TritonProcess(toy_repository, log=tmp_path / "serve-1.log") as server:
        first = run(folder, server.grpc_url, *options)
        wait_until(lambda: folder.files("out/rows"), what="a shard", seconds=300)
        server.stub("preprocess").kill()
        assert server.wait() == 1
    report = first.report()
    rows = read(folder)
    assert Counter(row["path"] for row in rows) == Counter(made.keys())
    lost = [row["path"] for row in rows if row["error"] and row["error"]["retryable"]]
    assert lost
    assert sum(report["failures"].values()) == len([row for row in rows if row["error"]])
    with TritonProcess(toy_repository, log=tmp_path / "serve-2.log") as server:
        assert run(folder, server.grpc_url, *options, "--timeout", "60").report()["pictures"] == 0
        report = run(folder, server.grpc_url, *options, "--timeout", "60", "--retry-errors").report()
    assert report["pictures"] == len(lost)
    check(read(folder), made)
