"""The pipeline on mosec."""

import os
import sys

import mosec
from mosec.mixin import NumBinIPCMixin

from benchmarks.peers.pipeline import Core, Pipeline, Postprocess, Preprocess
from benchmarks.peers.service import MEDIA_TYPE, Service


class Whole(mosec.Worker):
    resp_mime_type = MEDIA_TYPE

    def __init__(self):
        super().__init__()
        self._pipeline = Pipeline(Service.read())

    def deserialize(self, data):
        return data

    def serialize(self, data):
        return data

    def forward(self, data):
        return self._pipeline(data) if isinstance(data, list) else self._pipeline([data])[0]


class First(mosec.Worker):
    def __init__(self):
        super().__init__()
        self._preprocess = Preprocess(Service.read())

    def deserialize(self, data):
        return data

    def forward(self, data):
        return self._preprocess(data)


class Second(mosec.Worker):
    def __init__(self):
        super().__init__()
        self._core = Core(Service.read())

    def forward(self, data):
        batched = isinstance(data, list)
        items = data if batched else [data]
        logits = self._core([pixels for pixels, _ in items])
        found = [(each, size) for each, (_, size) in zip(logits, items, strict=True)]
        return found if batched else found[0]


class Third(mosec.Worker):
    resp_mime_type = MEDIA_TYPE

    def __init__(self):
        super().__init__()
        self._postprocess = Postprocess(Service.read())

    def forward(self, data):
        return self._postprocess(*data)

    def serialize(self, data):
        return data


if __name__ == "__main__":
    service = Service.read()
    sys.argv += ["--address", "127.0.0.1", "--port", str(service.port), "--capacity", str(service.queue),
        "--timeout", str(round(service.timeout * 1000)), "--log-level", "warning"]
    server = mosec.Server()
    wait = max(1, round(service.batch_wait * 1000))
    if service.stages:
        server.append_worker(First, num=service.workers, route="/segment")
        server.append_worker(Second, num=1, max_batch_size=service.batch, max_wait_time=wait, route="/segment")
        server.append_worker(Third, num=service.workers, route="/segment")
    else:
        server.append_worker(Whole, num=service.workers, max_batch_size=service.batch, max_wait_time=wait, route="/segment")
    server.run()
