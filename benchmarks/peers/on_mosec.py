"""The pipeline on mosec: one stage that does everything, or three as in mosec's examples with pre- and postprocessing.

Tried: one stage with two workers of one thread each, with one of two threads, with batches of 8; three stages with 2, 1
and 2 workers, which send each image's 0.8 MB of pixels through a socket, pickled. PEERS has the chosen setups.
Requests above `--capacity` are rejected (429).
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# mosec is installed only by `make bench-peers`.

import sys
from typing import Any

import mosec

from benchmarks.peers.service import MEDIA_TYPE, Service
from benchmarks.peers.steps import Pipeline

service = Service.read()


class Takes(mosec.Worker):
    """Accepts the bytes of a request unchanged."""

    def deserialize(self, data: bytes) -> bytes:
        """Return the image."""
        return data


class Sends(mosec.Worker):
    """Sends the bytes of a mask unchanged."""

    resp_mime_type = MEDIA_TYPE

    def serialize(self, data: bytes) -> bytes:
        """Return the mask."""
        return data


class First(Takes):
    """Decodes and resizes."""

    def __init__(self) -> None:
        super().__init__()
        self._preprocess = Pipeline(service, model=None).preprocess

    def forward(self, data: bytes) -> Any:  # noqa: ANN401 - mosec has no types
        """Return pixels and size."""
        return self._preprocess(data)


class Second(mosec.Worker):
    """Runs the model."""

    def __init__(self) -> None:
        super().__init__()
        self._predict = Pipeline(service).predict

    def forward(self, data: Any) -> Any:  # noqa: ANN401 - one item, or a list if the stage has batches
        """Return logits and size of each image."""
        return self._predict(data) if isinstance(data, list) else self._predict([data])[0]


class Third(Sends):
    """Makes masks."""

    def __init__(self) -> None:
        super().__init__()
        self._postprocess = Pipeline(service, model=None).postprocess

    def forward(self, data: Any) -> bytes:  # noqa: ANN401 - mosec has no types
        """Return the mask."""
        return self._postprocess(*data)


class Whole(Takes, Sends):
    """All three steps."""

    def __init__(self) -> None:
        super().__init__()
        self._pipeline = Pipeline(service)

    def forward(self, data: Any) -> Any:  # noqa: ANN401 - one item, or a list if the stage has batches
        """Return the mask of each image."""
        return self._pipeline(data) if isinstance(data, list) else self._pipeline([data])[0]


if __name__ == "__main__":
    sys.argv += ["--address", "127.0.0.1", "--port", str(service.port), "--log-level", "warning"]
    sys.argv += ["--capacity", str(service.queue), "--timeout", str(round(service.timeout * 1000))]
    server = mosec.Server()
    wait = max(1, round(service.batch_wait * 1000))
    batches = {"max_batch_size": service.batch, "max_wait_time": wait, "route": "/segment"}
    if service.stages:
        server.append_worker(First, num=service.workers, route="/segment")
        server.append_worker(Second, **batches)
        server.append_worker(Third, num=service.workers, route="/segment")
    else:
        server.append_worker(Whole, num=service.workers, **batches)
    server.run()
