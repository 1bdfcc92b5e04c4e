"""OpenTelemetry client spans, if its API is loaded; otherwise nothing is imported.

Attributes follow OpenTelemetry's semantic conventions for client spans of HTTP and RPC.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING, Any

from deeplab_client._errors import SegmentationError

if TYPE_CHECKING:
    from collections.abc import Generator

    from deeplab_client._endpoint import Endpoint
    from deeplab_client._hooks import RequestInfo

# ruff: noqa: PLC0415 - the tracing API is optional, and a protocol's library is only loaded for its servers

_SERVICE, _METHOD = "inference.GRPCInferenceService", "ModelInfer"


@contextlib.contextmanager
def attempt(endpoint: Endpoint, request: RequestInfo) -> Generator[None]:
    """Run one attempt of an inference in a client span, whose context its requests carry."""
    if sys.modules.get("opentelemetry.trace") is None:
        yield
        return
    from opentelemetry import trace  # pyright: ignore[reportMissingImports] - optional

    span = trace.get_tracer("deeplab_client").start_span(
        f"{_SERVICE}/{_METHOD}" if endpoint.is_grpc else "POST",
        kind=trace.SpanKind.CLIENT,
        attributes={
            **(_about_grpc() if endpoint.is_grpc else _about_http(endpoint, request)),
            **({"server.port": endpoint.port} if endpoint.socket is None else {}),
            "server.address": endpoint.socket or endpoint.host,
            "deeplab.model": request.model,
            "deeplab.request_id": request.request_id,
            "deeplab.attempt": request.attempt,
        },
    )
    with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
        try:
            yield
        except BaseException as error:
            if isinstance(error, SegmentationError):
                span.set_attributes(_about_failure(error.status))
            span.set_attribute("error.type", type(error).__qualname__)
            span.record_exception(error)
            span.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))
            raise
        span.set_attributes({"rpc.grpc.status_code": 0} if endpoint.is_grpc else {"http.response.status_code": 200})


def _about_grpc() -> dict[str, Any]:
    return {"rpc.system": "grpc", "rpc.service": _SERVICE, "rpc.method": _METHOD}


def _about_http(endpoint: Endpoint, request: RequestInfo) -> dict[str, Any]:
    from deeplab_client._v2 import model_path

    about = {"http.request.method": "POST", "url.full": endpoint.url_of(model_path(request.model, "infer"))}
    return about if request.attempt == 1 else {**about, "http.request.resend_count": request.attempt - 1}


def _about_failure(status: int | str | None) -> dict[str, Any]:
    if isinstance(status, int):
        return {"http.response.status_code": status}
    if status is None:
        return {}
    from grpc import StatusCode  # already loaded, because the status is gRPC's

    return {"rpc.grpc.status_code": StatusCode[status].value[0]} if status in StatusCode.__members__ else {}
