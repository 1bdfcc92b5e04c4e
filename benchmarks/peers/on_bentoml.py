"""The pipeline on BentoML: one Service, whose workers are processes with one request at a time each.

Tried: two workers with one thread each, and one with two; PEERS has the chosen setups. Adaptive batching
is left out, because it needs lists from clients, or a second Service that gets all pixels over HTTP, and batches hardly
help on a CPU (see the other peers). Requests above `max_concurrency` are rejected (429).
"""

# pyright: reportMissingImports=false, reportUntypedClassDecorator=false, reportUntypedFunctionDecorator=false
# BentoML is installed only by `make bench-peers`.

# No `from __future__ import annotations`: BentoML reads the annotations itself.

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from benchmarks.peers.service import MEDIA_TYPE, Service
from benchmarks.peers.steps import Pipeline

service = Service.read()


@bentoml.service(
    workers=service.workers,
    traffic={"timeout": service.timeout, "max_concurrency": service.queue},
)
class Segmenter:
    """One worker."""

    def __init__(self) -> None:
        self._pipeline = Pipeline(service)

    @bentoml.api(route="/segment")
    def segment(
        self, image: Annotated[Path, ContentType("image/jpeg")], /
    ) -> Annotated[bytes, ContentType(MEDIA_TYPE)]:
        """Return the mask of an image, which BentoML passes as a file."""
        return self._pipeline([image.read_bytes()])[0]


if __name__ == "__main__":
    os.environ |= {"BENTOML_HOME": os.path.expanduser("~/bentoml"), "BENTOML_DO_NOT_TRACK": "True"}  # noqa: PTH111 - os.environ needs text
    command = [sys.executable, "-m", "bentoml", "serve", "benchmarks.peers.on_bentoml:Segmenter"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(service.port)])  # noqa: S606 - BentoML's own
