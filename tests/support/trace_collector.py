"""A receiver of spans on this machine: OTLP in JSON over HTTP, as Triton's library sends them."""

from __future__ import annotations

import http.server
import json
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

# Each of these has a span with its name in the trace of a plain request.
MODELS = ["segment_resnet50", "preprocess", "core_resnet50", "postprocess"]


class Collector(http.server.ThreadingHTTPServer):
    """Keeps the spans that it is sent, each with its `resource` and the `authorization` of the request that sent it.

    It receives within a `with` block.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receiver)
        self.url = f"http://127.0.0.1:{self.server_port}/v1/traces"
        self.spans: list[Mapping[str, Any]] = []
        self.come = threading.Condition()
        self._thread = threading.Thread(target=self.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()

    def await_spans(self, names: set[str], trace_id: str | None = None) -> dict[str, Mapping[str, Any]]:
        """Wait for spans with all of these names; return the spans of a trace, or of all traces, by name."""
        deadline = time.monotonic() + 60
        with self.come:
            while True:
                found = {span["name"]: span for span in self.spans if trace_id in {None, span["traceId"]}}
                if names <= found.keys():
                    return found
                assert self.come.wait(deadline - time.monotonic()), f"only {sorted(found)} came"


class _Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.come:
            self.server.spans.extend(
                {**span, "resource": each["resource"], "authorization": self.headers["Authorization"]}
                for each in content["resourceSpans"]
                for scope in each["scopeSpans"]
                for span in scope["spans"]
            )
            self.server.come.notify_all()
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Log nothing."""


def attributes(of: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts among the attributes of a span or a resource."""
    return {each["key"]: each["value"].get("stringValue", "") for each in of["attributes"]}
