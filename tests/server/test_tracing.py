"""One call gives one trace: the caller's span, the client's, and Triton's of the ensemble and its steps.

Triton sends its spans to a collector on this machine, as OTLP in JSON over HTTP, which is what its library sends.
"""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from triton_process import TritonProcess

from deeplab_client import SegmentationClient

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

pytestmark = pytest.mark.server

MODELS = ["segment_resnet50", "preprocess", "core_resnet50", "postprocess"]


class Collector(http.server.ThreadingHTTPServer):
    """Keeps the spans that it is sent, by their trace."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.spans: list[Mapping[str, Any]] = []
        self.come = threading.Condition()

    def await_spans(self, trace_id: str, names: set[str]) -> dict[str, Mapping[str, Any]]:
        """Return the spans of a trace by their name, once all of these names have come."""
        deadline = time.monotonic() + 60
        with self.come:
            while True:
                found = {span["name"]: span for span in self.spans if span["traceId"] == trace_id}
                if names <= found.keys():
                    return found
                assert self.come.wait(deadline - time.monotonic()), f"only {sorted(found)} came"


class _Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.come:
            self.server.spans.extend(
                span for each in content["resourceSpans"] for scope in each["scopeSpans"] for span in scope["spans"]
            )
            self.server.come.notify_all()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Log nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def attributes(span: Mapping[str, Any]) -> dict[str, str]:
    return {each["key"]: each["value"].get("stringValue", "") for each in span["attributes"]}


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
        f"opentelemetry,url=http://127.0.0.1:{collector.server_port}/v1/traces",
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
    spans = collector.await_spans(f"{span.get_span_context().trace_id:032x}", {"InferRequest", *MODELS})
    # The client's own span lies between the caller's and the server's.
    assert spans["InferRequest"]["parentSpanId"] not in {"", f"{span.get_span_context().span_id:016x}"}
    ensemble, *steps = (spans[name] for name in MODELS)
    assert ensemble["parentSpanId"] == spans["InferRequest"]["spanId"]
    assert {step["parentSpanId"] for step in steps} == {ensemble["spanId"]}
    assert {attributes(span)["triton.request_id"] for span in (ensemble, *steps)} == {result.request_id}
