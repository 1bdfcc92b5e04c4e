"""The pipeline on mosec: one stage that does it all, or three as in mosec's examples with pre- and postprocessing.

Tried: one stage with two workers of a thread each, with one of two threads, with batches of 8; three stages with 2, 1
and 2 workers, which send each image's 3.2 MB of pixels through a socket, pickled. CONTENDERS has what was kept.
`--capacity` turns away what is too much (429).
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# mosec is in an environment that only `make bench-peers` makes.

import sys
from typing import Any

import mosec

from benchmarks.peers.pipeline import Core, Pipeline, Postprocess, Preprocess, predict
from benchmarks.peers.service import MEDIA_TYPE, Service

# What comes in and goes out is a list where a stage has batches.
Items = Any


class First(mosec.Worker):
    """Takes the bytes of a request as they are."""

    def __init__(self) -> None:
        super().__init__()
        self._preprocess = Preprocess(Service.read())

    def deserialize(self, data: bytes) -> bytes:
        """Return the image."""
        return data

    def forward(self, data: bytes) -> Items:
        """Return pixels and size."""
        return self._preprocess(data)


class Second(mosec.Worker):
    """Runs the model."""

    def __init__(self) -> None:
        super().__init__()
        self._core = Core(Service.read())

    def forward(self, data: Items) -> Items:
        """Return logits and size of each image."""
        return predict(self._core, data) if isinstance(data, list) else predict(self._core, [data])[0]


class Third(mosec.Worker):
    """Sends the bytes of a mask as they are."""

    resp_mime_type = MEDIA_TYPE

    def __init__(self) -> None:
        super().__init__()
        self._postprocess = Postprocess(Service.read())

    def forward(self, data: Items) -> bytes:
        """Return the mask."""
        return self._postprocess(*data)

    def serialize(self, data: bytes) -> bytes:
        """Return the mask."""
        return data


class Whole(mosec.Worker):
    """All three steps."""

    resp_mime_type = MEDIA_TYPE

    def __init__(self) -> None:
        super().__init__()
        self._pipeline = Pipeline(Service.read())

    def deserialize(self, data: bytes) -> bytes:
        """Return the image."""
        return data

    def serialize(self, data: bytes) -> bytes:
        """Return the mask."""
        return data

    def forward(self, data: Items) -> Items:
        """Return the mask of each image."""
        return self._pipeline(data) if isinstance(data, list) else self._pipeline([data])[0]


def main() -> None:
    """Serve until a signal comes."""
    service = Service.read()
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


if __name__ == "__main__":
    main()
