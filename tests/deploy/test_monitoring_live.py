"""deploy/monitoring on a real Prometheus that scrapes a real Triton: under load, with a dead stub, after its end."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from monitoring_files import ELSEWHERE, RECORDED, TRITON_SERIES, queries
from prometheus_process import WINDOW, PrometheusProcess
from triton_process import TritonProcess, wait_until

from benchmarks import toy
from deeplab_client import InvalidImageError, SegmentationClient, SegmentationError

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

pytestmark = [pytest.mark.deploy, pytest.mark.stack]

CALLERS = 4


@contextlib.contextmanager
def load(url: str) -> Generator[None]:
    """Send requests from several callers until the block ends; every fifth has no picture."""
    stopped = threading.Event()

    def call(client: SegmentationClient) -> None:
        number = 0
        while not stopped.is_set():
            number += 1
            if number % 5:
                with contextlib.suppress(SegmentationError):  # the test looks at the metrics of these errors
                    client.segment(toy.picture(number).ppm())
            else:
                with contextlib.suppress(SegmentationError):
                    client.segment(b"no picture at all")

    with SegmentationClient(f"grpc://{url}", retries=0) as client, ThreadPoolExecutor(CALLERS) as pool:
        callers = [pool.submit(call, client) for _ in range(CALLERS)]
        try:
            yield
        finally:
            stopped.set()
    for caller in callers:
        caller.result()


def exported(url: str) -> set[str]:
    """Return the names of the series of a server, without the sum and count of a summary."""
    with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310 - our own server
        text = reply.read().decode()
    return set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))


def test_a_life_of_a_server(toy_repository: Path, tmp_path: Path) -> None:
    """Load, rejected pictures, a dead stub, the end: on one server, because each stage needs the one before."""
    options = (
        "--",
        "--metrics-config=summary_latencies=true",
        "--metrics-config=histogram_latencies=true",
        "--metrics-interval-ms=500",
    )
    with TritonProcess(toy_repository, log=tmp_path / "serve.log", options=options) as server:
        with SegmentationClient(f"grpc://{server.grpc_url}", retries=0) as client, pytest.raises(InvalidImageError):
            client.segment(b"no picture at all")
        target = re.sub(r"http://(.+)/metrics", r"\1", server.metrics_url)
        with PrometheusProcess(tmp_path, target=target) as prometheus, load(server.grpc_url):
            wait_until(lambda: prometheus.value("deeplab:p99_seconds") > 0, what="quantiles")
            wait_until(lambda: prometheus.value("deeplab:pictures_refused:rate5m") > 0, what="refused pictures")
            assert_all_have_data(prometheus, server)
            assert_bad_pictures_disturb_nobody(prometheus)
            break_a_stub(prometheus, server)
            assert server.wait() == 1
            for alert in ("DeepLabNoReadyReplica", "DeepLabReplicaDown"):
                wait_until(lambda alert=alert: alert in prometheus.firing(), what=alert)


def assert_all_have_data(prometheus: PrometheusProcess, server: TritonProcess) -> None:
    assert exported(server.metrics_url) == TRITON_SERIES
    expected = [query for query in queries() if not query.series() & ELSEWHERE.keys()]
    silent = [query for query in expected if not prometheus.query(query.filled(window=WINDOW))]
    assert not silent
    # Of "Replicas: desired, ready and maximum" one query needs no Kubernetes.
    assert {panel.panel for panel in queries()} - {query.panel for query in expected} == {
        "Pictures within 2 s",
        "Utilization",
        "Memory in use",
        "Power",
        "/dev/shm in use",  # noqa: S108 - a title
        "Restarts in an hour, and out-of-memory kills",
        "Memory of the container, as a share of its limit",
        "Last XID error of a GPU",
        "GPU clock throttled",
    }
    assert not [name for name in RECORDED if not prometheus.query(name)]
    assert all(sample["metric"]["job"] == "deeplab-triton" for name in RECORDED for sample in prometheus.query(name))


def assert_bad_pictures_disturb_nobody(prometheus: PrometheusProcess) -> None:
    # A fifth of the requests has no picture, and a fifth of the requests to the ensemble failed.
    answered, refused = (prometheus.value(f"sum(deeplab:pictures_{what}:rate5m)") for what in ("answered", "refused"))
    assert refused / (answered + refused) == pytest.approx(0.2, abs=0.05)
    assert prometheus.value("deeplab:error_ratio:rate5m") < 0.01
    assert not prometheus.firing()


def break_a_stub(prometheus: PrometheusProcess, server: TritonProcess) -> None:
    """Kill a stub while serve.py is stopped, because serve.py would end the server, and nothing in a pod does that."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        server.stub("postprocess").kill()
        wait_until(lambda: "DeepLabStubDead" in prometheus.firing(), what="DeepLabStubDead")
        assert prometheus.value("up") == 1
        assert prometheus.value("deeplab:replicas_ready") == 1
        with urllib.request.urlopen(f"http://{server.http_url}/v2/health/live", timeout=10) as reply:
            assert reply.status == 200
    finally:
        os.kill(server.pid, signal.SIGCONT)
