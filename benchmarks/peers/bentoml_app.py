"""The pipeline on BentoML: one Service, each of whose workers is a process that takes one request at a time.

Tried: two workers with a thread each, and one with two; CONTENDERS has what was kept. Its adaptive batching takes lists
that clients send, or a second Service behind the first, to which all pixels would travel over HTTP; on a CPU a batch
gains next to nothing (the other peers' batches show it), so it is left out. `max_concurrency` turns away what is too
much (429).
"""

# pyright: reportMissingImports=false, reportUntypedClassDecorator=false, reportUntypedFunctionDecorator=false
# BentoML is in an environment that only `make bench-peers` makes.

# No `from __future__ import annotations`: BentoML reads the annotations itself.

from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from benchmarks.peers.pipeline import Pipeline
from benchmarks.peers.service import MEDIA_TYPE, Service

service = Service.read()


@bentoml.service(
    workers=service.workers,
    traffic={"timeout": service.timeout, "max_concurrency": service.queue},
)
class Segmenter:
    """One worker."""

    def __init__(self) -> None:
        self._pipeline = Pipeline(Service.read())

    @bentoml.api(route="/segment")
    def segment(
        self, image: Annotated[Path, ContentType("image/jpeg")], /
    ) -> Annotated[bytes, ContentType(MEDIA_TYPE)]:
        """Return the mask of an image, which BentoML hands over as a file."""
        return self._pipeline([image.read_bytes()])[0]
