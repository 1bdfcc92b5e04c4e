"""The pipeline on BentoML."""

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
    def __init__(self) -> None:
        self._pipeline = Pipeline(Service.read())

    @bentoml.api(route="/segment")
    def segment(self, image: Annotated[Path, ContentType("image/jpeg")], /) -> Annotated[bytes, ContentType(MEDIA_TYPE)]:
        return self._pipeline([image.read_bytes()])[0]
