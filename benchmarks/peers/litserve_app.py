"""The pipeline on LitServe: decode, predict and encode in one worker process, as its documentation has it.

Tried: two workers with a thread each, one with two, batches of 8, and `fast_queue`, which changed nothing; CONTENDERS
has what was kept. LitServe has no limit on what waits; `timeout` ends what has waited too long (504).
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false, reportUnknownParameterType=false
# LitServe is in an environment that only `make bench-peers` makes; without it nothing has a type.

# No `from __future__ import annotations`: LitServe and FastAPI read the annotations themselves.

from typing import Annotated, Any

import litserve
import numpy as np
import numpy.typing as npt
import torch
from fastapi import Body
from fastapi.responses import Response

from benchmarks.peers.pipeline import Pipeline
from benchmarks.peers.service import MEDIA_TYPE, Service

Pixels = tuple[torch.Tensor, npt.NDArray[np.int32]]
Logits = tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]


class Segmenter(litserve.LitAPI):
    """One worker."""

    def setup(self, device: str) -> None:  # noqa: ARG002  LitServe's signature
        """Load the model."""
        self._pipeline = Pipeline(Service.read())

    def decode_request(self, request: Annotated[bytes, Body()]) -> Pixels:
        """Return the pixels of one image, and its size."""
        return self._pipeline.preprocess(request)

    def batch(self, inputs: list[Pixels]) -> list[Pixels]:
        """Leave the images apart: `predict` joins them, and keeps their sizes."""
        return inputs

    def unbatch(self, output: list[Logits]) -> list[Logits]:
        """Return what `predict` has taken apart again."""
        return output

    def predict(self, x: Any) -> Any:  # noqa: ANN401  one image, or a list where batches are asked for
        """Return logits and size of each image."""
        if isinstance(x, list):
            return self._pipeline.predict(x)
        return self._pipeline.predict([x])[0]

    def encode_response(self, output: Logits) -> Response:
        """Return the mask."""
        return Response(self._pipeline.postprocess(*output), media_type=MEDIA_TYPE)


def main() -> None:
    """Serve until Ctrl-C."""
    service = Service.read()
    api = Segmenter(max_batch_size=service.batch, batch_timeout=service.batch_wait, api_path="/segment")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=service.workers, timeout=service.timeout)
    server.run(host="127.0.0.1", port=service.port, num_api_servers=1, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
