"""The pipeline on TorchServe: a handler of the usual three methods, packaged with the model.

Tried: two workers with a thread each, one with two, batches of 8; CONTENDERS has what was kept. `job_queue_size` turns
away what is too much (503).
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false
# TorchServe is in an environment that only `make bench-peers` makes.

from typing import Any

from ts.torch_handler.base_handler import BaseHandler

from benchmarks.peers.pipeline import Pipeline
from benchmarks.peers.service import Service


class Segmenter(BaseHandler):
    """One worker."""

    def initialize(self, context: Any) -> None:  # noqa: ANN401  TorchServe has no types
        """Load the model that was packaged."""
        folder = context.system_properties["model_dir"]
        file = context.manifest["model"]["serializedFile"]
        self._pipeline = Pipeline(Service.read(), model=f"{folder}/{file}")
        self.initialized = True

    def preprocess(self, data: Any) -> Any:  # noqa: ANN401
        """Return pixels and size of each image."""
        return [self._pipeline.preprocess(bytes(row["body"])) for row in data]

    def inference(self, data: Any, *_: Any, **__: Any) -> Any:  # noqa: ANN401
        """Return logits and size of each image."""
        return self._pipeline.predict(data)

    def postprocess(self, data: Any) -> list[bytes]:  # noqa: ANN401
        """Return the masks."""
        return [self._pipeline.postprocess(*each) for each in data]
