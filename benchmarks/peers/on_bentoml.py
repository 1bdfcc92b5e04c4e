"""The pipeline on BentoML: one Service, each of whose workers is a process that takes one request at a time.

Tried: two workers with a thread each, and one with two; PEERS has what was kept. Its adaptive batching takes lists that
clients send, or a second Service behind the first, to which all pixels would travel over HTTP; on a CPU a batch gains
next to nothing (the other peers' batches show it), so it is left out. `max_concurrency` refuses what is too much (429).
"""

# pyright: reportMissingImports=false, reportUntypedClassDecorator=false, reportUntypedFunctionDecorator=false
# BentoML is in an environment that only `make bench-peers` makes.

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
        """Return the mask of an image, which BentoML hands over as a file."""
        return self._pipeline([image.read_bytes()])[0]


if __name__ == "__main__":
    os.environ |= {"BENTOML_HOME": os.path.expanduser("~/bentoml"), "BENTOML_DO_NOT_TRACK": "True"}  # noqa: PTH111 - text
    command = [sys.executable, "-m", "bentoml", "serve", "benchmarks.peers.on_bentoml:Segmenter"]
    os.execv(sys.executable, [*command, "--host", "127.0.0.1", "--port", str(service.port)])  # noqa: S606 - BentoML's own
