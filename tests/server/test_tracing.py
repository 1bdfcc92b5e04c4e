"""One call gives one trace: the caller's span, the client's, and Triton's of the ensemble and its steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from trace_collector import MODELS, Collector, attributes
from triton_process import TritonProcess

from deeplab_client import SegmentationClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.server


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def test_one_call_is_one_trace(
    toy_repository: Path, collector: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = TracerProvider()
    # OpenTelemetry's own way sets it once and for all in a process.
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    settings = (
        "mode=opentelemetry",
        "rate=1",
        "level=TIMESTAMPS",
        f"opentelemetry,url={collector.url}",
        "opentelemetry,bsp_schedule_delay=100",  # ms
    )
    options = ["--", *(f"--trace-config={setting}" for setting in settings)]
    with TritonProcess(toy_repository, log=tmp_path / "serve.log", options=options) as server:
        for scheme in ("grpc", "http"):
            check(server, collector, provider, scheme)


def check(
    server: TritonProcess, collector: Collector, provider: TracerProvider, scheme: Literal["grpc", "http"]
) -> None:
    address = server.grpc_url if scheme == "grpc" else server.http_url
    with (
        SegmentationClient(f"{scheme}://{address}") as client,
        provider.get_tracer("service").start_as_current_span("handle an upload") as span,
    ):
        result = client.segment(np.zeros((40, 60, 3), np.uint8))
    spans = collector.await_spans({"InferRequest", *MODELS}, f"{span.get_span_context().trace_id:032x}")
    # The client's own span lies between the caller's and the server's.
    assert spans["InferRequest"]["parentSpanId"] not in {"", f"{span.get_span_context().span_id:016x}"}
    ensemble, *steps = (spans[name] for name in MODELS)
    assert ensemble["parentSpanId"] == spans["InferRequest"]["spanId"]
    assert {step["parentSpanId"] for step in steps} == {ensemble["spanId"]}
    assert {attributes(span)["triton.request_id"] for span in (ensemble, *steps)} == {result.request_id}
