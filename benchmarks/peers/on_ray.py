"""The pipeline on Ray Serve: one deployment, with a replica for each worker and an equal share of the cores for each.

As Ray's performance guide asks, `num_cpus` and OMP_NUM_THREADS agree, and a bounded queue rejects further requests
(503). `max_ongoing_requests` is far above its default of 5: with few slots the router looks for a free one again and
again, and sixteen callers got half the throughput. Requests go directly to the pipeline unless batching is on, because
`serve.batch` with batches of one costs 2 ms. Also tried: two replicas with a thread each, one with two, batches
of 8, and RAY_SERVE_THROUGHPUT_OPTIMIZED=1, which changed nothing; PEERS has the chosen setups. Not tried:
RAY_SERVE_ENABLE_HA_PROXY=1, which listens on all interfaces.

The HTTP proxy listens on 127.0.0.1. Ray has no such switch for its own services; a token, new for each run, locks them.
"""

# pyright: reportMissingImports=false, reportUntypedClassDecorator=false, reportUntypedFunctionDecorator=false
# pyright: reportUnknownParameterType=false, reportAttributeAccessIssue=false
# Ray is installed only by `make bench-peers`; without it nothing has a type.

import os
import secrets
import signal
from typing import Any

if __name__ == "__main__":  # before Ray is imported
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(),
    }

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from benchmarks.peers.service import MEDIA_TYPE, Service
from benchmarks.peers.steps import Pipeline

# The masks are too small for the object store, which would take 30 % of the memory by default.
OBJECT_STORE_BYTES = 200_000_000

service = Service.read()
# Half of the waiting requests wait in the replicas.
ONGOING = max(service.batch, service.queue // (2 * service.workers))


@serve.deployment(
    num_replicas=service.workers,
    ray_actor_options={"num_cpus": service.threads},
    max_ongoing_requests=ONGOING,
    max_queued_requests=max(1, service.queue - ONGOING * service.workers),
)
class Segmenter:
    """One replica."""

    def __init__(self) -> None:
        self._pipeline = Pipeline(Service.read())

    @serve.batch(max_batch_size=service.batch, batch_wait_timeout_s=service.batch_wait)
    async def batched(self, images: list[bytes]) -> list[bytes]:
        """Return the masks of a batch."""
        return self._pipeline(images)

    async def __call__(self, request: Request) -> Response:
        """Answer with a mask."""
        image: Any = await request.body()  # one image: serve.batch makes the list
        mask = await self.batched(image) if service.batch > 1 else self._pipeline([image])[0]
        return Response(mask, media_type=MEDIA_TYPE)


if __name__ == "__main__":
    ray.init(
        num_cpus=service.workers * service.threads,
        include_dashboard=False,
        object_store_memory=OBJECT_STORE_BYTES,
        _temp_dir=os.environ["TMPDIR"],
        _node_ip_address="127.0.0.1",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": service.port, "request_timeout_s": service.timeout})
    serve.run(Segmenter.bind(), route_prefix="/segment")
    signal.sigwait({signal.SIGTERM})
    serve.shutdown()
    ray.shutdown()
