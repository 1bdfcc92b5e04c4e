"""The pipeline on Ray Serve."""

import os
import signal

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.pipeline import Pipeline
from benchmarks.peers.service import MEDIA_TYPE, Service

service = Service.read()


@serve.deployment(
    num_replicas=service.workers,
    ray_actor_options={"num_cpus": service.threads},
    max_ongoing_requests=max(2, 2*service.batch),
    max_queued_requests=service.queue,
)
class Segmenter:
    def __init__(self) -> None:
        self._pipeline = Pipeline(Service.read())

    @serve.batch(max_batch_size=service.batch, batch_wait_timeout_s=service.batch_wait)
    async def segment(self, images: list[bytes]) -> list[bytes]:
        return self._pipeline(images)

    async def __call__(self, request: Request) -> Response:
        return Response(await self.segment(await request.body()), media_type=MEDIA_TYPE)


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, _temp_dir=os.environ["TMPDIR"], _node_ip_address="127.0.0.1", object_store_memory=200_000_000)
    serve.start(http_options={"host": "127.0.0.1", "port": service.port, "request_timeout_s": service.timeout})
    serve.run(Segmenter.bind(), route_prefix="/segment")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
