"""The pipeline on LitServe: decode, predict and encode in one worker process, as in its documentation.

Tried: two workers with one thread each, one with two, batches of 8, and `fast_queue`, which changed nothing; PEERS has
the chosen setups. LitServe has no limit for waiting requests; `timeout` ends requests that waited too long (504).
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
# LitServe is installed only by `make bench-peers`; without it nothing has a type.

# No `from __future__ import annotations`: LitServe and FastAPI read the annotations themselves.

import os
import signal
from typing import Annotated, Any

import litserve
from fastapi import Body
from fastapi.responses import Response

from benchmarks.peers.service import MEDIA_TYPE, Service
from benchmarks.peers.steps import Logits, Pipeline, Pixels


class Segmenter(litserve.LitAPI):
    """One worker."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the model."""
        self._pipeline = Pipeline(Service.read())

    def decode_request(self, request: Annotated[bytes, Body()]) -> Pixels:
        """Return the pixels of one image, and its size."""
        return self._pipeline.preprocess(request)

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        """Return the images unchanged, because `predict` joins them and keeps their sizes."""
        return inputs

    def unbatch(self, output: list[Logits]) -> list[Logits]:
        """Return the list unchanged, because `predict` has split the batch."""
        return output

    def predict(self, x: Any) -> Any:  # noqa: ANN401 - one image, or a list if batching is on
        """Return logits and size of each image."""
        return self._pipeline.predict(x) if isinstance(x, list) else self._pipeline.predict([x])[0]

    def encode_response(self, output: Logits) -> Response:
        """Return the mask."""
        return Response(self._pipeline.postprocess(*output), media_type=MEDIA_TYPE)


if __name__ == "__main__":
    service = Service.read()
    owner = os.getpid()

    def stop(*_: object) -> None:
        """Stop as on Ctrl-C, which is the only signal that LitServe handles."""
        if os.getpid() == owner:
            signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, stop)
    api = Segmenter(max_batch_size=service.batch, batch_timeout=service.batch_wait, api_path="/segment")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=service.workers, timeout=service.timeout)
    server.run(host="127.0.0.1", port=service.port, num_api_servers=1, generate_client_file=False, log_level="warning")
