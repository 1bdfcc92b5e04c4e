"""The pipeline on LitServe."""

# No `from __future__ import annotations`: LitServe and FastAPI read the annotations themselves.

from typing import Annotated

import litserve
import numpy as np
import torch
from fastapi import Body
from fastapi.responses import Response

from benchmarks.peers.pipeline import Pipeline
from benchmarks.peers.service import MEDIA_TYPE, Service


class Segmenter(litserve.LitAPI):
    """One worker."""

    def setup(self, device: str) -> None:
        self._pipeline = Pipeline(Service.read())

    def decode_request(self, request: Annotated[bytes, Body()]) -> tuple[torch.Tensor, np.ndarray]:
        return self._pipeline.preprocess(request)

    def batch(self, inputs):
        return inputs

    def unbatch(self, output):
        return output

    def predict(self, x):
        batched = isinstance(x, list)
        items = x if batched else [x]
        logits = self._pipeline.core([pixels for pixels, _ in items])
        found = [(each, size) for each, (_, size) in zip(logits, items, strict=True)]
        return found if batched else found[0]

    def encode_response(self, output) -> Response:
        return Response(self._pipeline.postprocess(*output), media_type=MEDIA_TYPE)


if __name__ == "__main__":
    service = Service.read()
    api = Segmenter(max_batch_size=service.batch, batch_timeout=service.batch_wait, api_path="/segment")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=service.workers, timeout=service.timeout)
    server.run(host="127.0.0.1", port=service.port, num_api_servers=1, generate_client_file=False, log_level="warning")
