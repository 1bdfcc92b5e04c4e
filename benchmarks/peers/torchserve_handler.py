"""The pipeline on TorchServe."""

from ts.torch_handler.base_handler import BaseHandler

from benchmarks.peers.pipeline import Pipeline
from benchmarks.peers.service import Service


class Segmenter(BaseHandler):
    def initialize(self, context):
        self._pipeline = Pipeline(Service.read())
        self.initialized = True

    def handle(self, data, context):
        return self._pipeline([bytes(row.get("body") or row.get("data")) for row in data])
