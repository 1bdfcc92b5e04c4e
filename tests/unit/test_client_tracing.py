"""Client spans by OpenTelemetry's own SDK, over both protocols and clients, and what the server receives of them."""

from __future__ import annotations

import asyncio
import sys
import threading
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from drivers import Awaited, Kind, connected, python
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from script_servers import GrpcServer, Script, Server, url

from deeplab_client import (
    AsyncSegmentationClient,
    InvalidImageError,
    RetryPolicy,
    SegmentationClient,
    ServerUnavailableError,
)
from deeplab_client.testing import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.trace import Tracer

pytestmark = pytest.mark.unit

AT_ONCE = RetryPolicy(2, first_delay=0.001, longest_delay=0.001)
SECRET = "s3cr3t-bearer-value"  # noqa: S105 - a made up one
MASK = np.zeros((2, 2), np.uint8)


class Traced:
    """A tracer, and the spans that have ended."""

    def __init__(self, exporter: InMemorySpanExporter, tracer: Tracer) -> None:
        self._exporter = exporter
        self.tracer = tracer

    def spans(self) -> list[ReadableSpan]:
        """Return the client's spans, in the order in which they ended."""
        return [span for span in self._exporter.get_finished_spans() if span.kind is trace.SpanKind.CLIENT]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[Traced]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # OpenTelemetry can only set it once in a process.
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield Traced(exporter, provider.get_tracer("the application"))
    provider.shutdown()


def traceparent(span: ReadableSpan) -> str:
    context = span.context
    assert context is not None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_an_inference_is_a_client_span_that_the_server_receives(server: Server, kind: Kind, traced: Traced) -> None:
    with connected(kind, url(server), token=SECRET) as client, traced.tracer.start_as_current_span("handler") as parent:
        result = client.segment(b"\x05")
        assert trace.get_current_span() is parent
    (span,) = traced.spans()
    assert [headers["traceparent"] for headers in server.script.headers] == [traceparent(span)] * 2
    assert span.parent == parent.get_span_context()
    expected = {
        "server.address": "127.0.0.1",
        "server.port": server.port,
        "deeplab.model": "segment_resnet50",
        "deeplab.request_id": result.request_id,
        "deeplab.attempt": 1,
    }
    if isinstance(server, GrpcServer):
        name = "inference.GRPCInferenceService/ModelInfer"
        service, method = name.split("/")
        expected |= {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method, "rpc.grpc.status_code": 0}
    else:
        name = "POST"
        address = f"{url(server)}/v2/models/segment_resnet50/infer"
        expected |= {"http.request.method": "POST", "url.full": address, "http.response.status_code": 200}
    assert (span.name, attributes(span)) == (name, expected)
    assert span.status.status_code is trace.StatusCode.UNSET
    assert not span.events


def test_each_attempt_has_a_span_of_its_own(server: Server, kind: Kind, traced: Traced) -> None:
    is_grpc = isinstance(server, GrpcServer)
    message = f"you sent Bearer {SECRET}"
    server.script.failures["infer"] = (grpc.StatusCode.UNAVAILABLE if is_grpc else 503, message)
    server.script.failing = 1
    with connected(kind, url(server), token=SECRET, retries=AT_ONCE) as client:
        client.segment(b"\x05")
    failed, done = traced.spans()
    sent = [headers["traceparent"] for headers in server.script.headers]
    # Each attempt requests the model's config first, because another server may answer the second one.
    assert sent == [traceparent(failed)] * 2 + [traceparent(done)] * 2
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert attributes(failed)["error.type"] == "ServerUnavailableError"
    assert attributes(failed).get("rpc.grpc.status_code" if is_grpc else "http.response.status_code") == (
        14 if is_grpc else 503
    )
    (event,) = failed.events
    assert event.name == "exception"
    assert SECRET not in f"{event.attributes}{failed.status.description}"
    assert done.status.status_code is trace.StatusCode.UNSET
    assert attributes(done).get("http.request.resend_count") == (None if is_grpc else 1)
    assert attributes(done)["deeplab.attempt"] == 2
    assert "http.request.resend_count" not in attributes(failed)


def test_without_opentelemetry_there_is_no_span(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    """None in sys.modules blocks an import."""
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)
    with SegmentationClient("http://seg:8000", transport=FakeTransport(MASK)) as client:
        client.segment(MASK)
    assert not traced.spans()


def test_a_span_names_the_server_behind_a_path_a_proxy_or_a_socket(traced: Traced) -> None:
    where = {
        "http://seg:8000/gateway": ("http://seg:8000/gateway", "seg", 8000),
        "https://seg:8000": ("https://seg:8000", "seg", 8000),
        "http+unix:///run/seg.sock": ("http://localhost:80", "/run/seg.sock", None),
        "unix:///run/seg.sock": (None, "/run/seg.sock", None),
    }
    for address in where:
        proxy = "http://proxy:3128" if address.startswith("https") else None
        with SegmentationClient(address, proxy=proxy, transport=FakeTransport(MASK)) as client:
            client.segment(MASK)
    for span, (base, host, port) in zip(traced.spans(), where.values(), strict=True):
        path = None if base is None else f"{base}/v2/models/segment_resnet50/infer"
        found = attributes(span)
        assert (found.get("url.full"), found["server.address"], found.get("server.port")) == (path, host, port)


def test_a_server_that_is_gone_is_a_span_with_an_error(kind: Kind, traced: Traced) -> None:
    with connected(kind, "http://127.0.0.1:1", retries=0) as client, pytest.raises(ServerUnavailableError):
        client.segment(b"\x05")
    (span,) = traced.spans()
    assert span.status.status_code is trace.StatusCode.ERROR
    assert "http.response.status_code" not in attributes(span)


def test_an_error_without_a_reply_has_no_status(kind: Kind, traced: Traced) -> None:
    error = InvalidImageError("truncated")
    error.status = "of another protocol"
    fake = FakeTransport(MASK, answers=[error])
    transport = fake if kind == "sync" else Awaited(fake)
    with connected(kind, "grpc://fake", transport=transport) as client, pytest.raises(InvalidImageError):
        client.segment(b"1")
    (span,) = traced.spans()
    assert attributes(span)["error.type"] == "InvalidImageError"
    assert "rpc.grpc.status_code" not in attributes(span)


def test_other_exceptions_are_recorded_too(server: Server, kind: Kind, traced: Traced) -> None:
    def token() -> str:
        raise TimeoutError("the vault is sealed")

    with connected(kind, url(server), token=token) as client, pytest.raises(TimeoutError, match="sealed"):
        client.segment(b"\x05")
    (span,) = traced.spans()
    assert attributes(span)["error.type"] == "TimeoutError"
    assert span.status.status_code is trace.StatusCode.ERROR


def test_a_cancelled_call_ends_its_span(server: Server, traced: Traced) -> None:
    server.script.hold = threading.Event()

    async def use() -> None:
        async with AsyncSegmentationClient(url(server)) as client:
            with traced.tracer.start_as_current_span("handler") as parent:
                task = asyncio.create_task(client.segment(b"\x05"))
                while not server.script.requests:  # noqa: ASYNC110 - filled by a thread of the server's
                    await asyncio.sleep(0.001)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert trace.get_current_span() is parent

    asyncio.run(use())
    server.script.hold.set()
    (span,) = traced.spans()
    assert attributes(span)["error.type"] == "CancelledError"


def test_streams_have_a_span_for_each_request_in_the_callers_trace(server: Server, kind: Kind, traced: Traced) -> None:
    with connected(kind, url(server)) as client, traced.tracer.start_as_current_span("handler") as parent:
        list(client.segment_many([b"\x05", b"\x06", b"\x07"]))
        client.segment_tiles(np.zeros((64, 128), np.uint8), tile=64, overlap=0)
    spans = traced.spans()
    assert len(spans) == 5
    assert [span.parent for span in spans] == [parent.get_span_context()] * 5
    sent = {headers["traceparent"] for headers in server.script.headers}
    assert sent == {traceparent(span) for span in spans}


def test_calls_in_one_loop_keep_their_spans_apart(traced: Traced) -> None:
    server = GrpcServer(Script())

    async def handle(client: AsyncSegmentationClient, width: int) -> None:
        with traced.tracer.start_as_current_span("handler") as parent:
            await client.segment(bytes([width]))
            assert trace.get_current_span() is parent

    async def use() -> None:
        async with AsyncSegmentationClient(url(server)) as client:
            await asyncio.gather(*(handle(client, width) for width in range(1, 20)))

    asyncio.run(use())
    server.stop()
    assert len({span.parent.span_id for span in traced.spans() if span.parent is not None}) == 19


def test_hooks_see_the_callers_span(traced: Traced) -> None:
    seen: list[trace.Span] = []

    def see(_: object) -> None:
        seen.append(trace.get_current_span())

    with (
        SegmentationClient("fake", transport=FakeTransport(MASK), on_request=see, on_response=see) as client,
        traced.tracer.start_as_current_span("handler") as parent,
    ):
        client.segment(b"1")
    assert seen == [parent, parent]


LOADED = """
    import sys
    import numpy as np
    from deeplab_client import SegmentationClient
    from deeplab_client.testing import FakeTransport

    client = SegmentationClient("fake", transport=FakeTransport(np.zeros((2, 2), np.uint8)))
    client.segment(b"1")
    assert not [name for name in sys.modules if name.startswith("opentelemetry")]
    import opentelemetry.trace
    client.segment(b"1")
    assert "opentelemetry.sdk" not in sys.modules
    assert "grpc" not in sys.modules
"""


def test_nothing_of_opentelemetry_is_loaded_for_its_sake() -> None:
    run = python(LOADED)
    assert run.returncode == 0, run.stderr
