"""A service as client/README.md teaches to write it; checked by basedpyright and by mypy --strict, never run."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Protocol

from deeplab_client import (
    TLS,
    AccessDeniedError,
    AsyncSegmentationClient,
    AsyncTransport,
    DeadlineExceededError,
    ImageLike,
    InvalidImageError,
    ModelNotFoundError,
    ResponseInfo,
    RetryAttempt,
    RetryPolicy,
    Segmentation,
    SegmentationClient,
    SegmentationError,
    ServerUnavailableError,
    Transport,
)
from deeplab_client.testing import AsyncFakeTransport, FakeTransport, ReceivedRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray
    from PIL import Image

    from deeplab_client import CocoAnnotation, CocoCategory, ModelInfo, ResultDict

log = logging.getLogger(__name__)


class Upload(Protocol):
    """An uploaded file of a web framework."""

    async def read(self) -> bytes:
        """Return its bytes."""
        ...


@dataclass(frozen=True)
class Response:
    """A response for a web framework.

    Attributes:
        headers: Such as `Retry-After`.
    """

    status: HTTPStatus
    body: bytes
    headers: dict[str, str]


def status_of(error: SegmentationError) -> HTTPStatus:
    """Return how an error is reported to the caller of the service."""
    if isinstance(error, InvalidImageError):
        return HTTPStatus.UNPROCESSABLE_ENTITY
    if isinstance(error, DeadlineExceededError):
        return HTTPStatus.GATEWAY_TIMEOUT
    if isinstance(error, (ModelNotFoundError, AccessDeniedError)):
        return HTTPStatus.INTERNAL_SERVER_ERROR
    return HTTPStatus.SERVICE_UNAVAILABLE if error.retryable else HTTPStatus.BAD_GATEWAY


def refusal(error: SegmentationError) -> Response:
    """Return the response for an error."""
    log.warning("request %s of model %s: %s", error.request_id, error.model, error.message)
    seconds: float | None = error.retry_after
    headers = {} if seconds is None else {"Retry-After": f"{seconds:.0f}"}
    return Response(status_of(error), json.dumps({"error": error.message}).encode(), headers)


async def report(attempt: RetryAttempt) -> None:
    """Log a retry."""
    log.info("try %d failed, the next one in %.1f s: %s", attempt.number, attempt.delay, attempt.error)
    await asyncio.sleep(0)


def measure(response: ResponseInfo) -> None:
    """Log how long an attempt took."""
    outcome = "ok" if response.error is None else type(response.error).__name__
    log.info("%s of %s: %s in %.3f s", response.request.request_id, response.request.model, outcome, response.seconds)


async def token() -> str:
    """Return the token of the next request."""
    return "secret"


class Service:
    """The handlers of a web application."""

    def __init__(self, transport: AsyncTransport | None = None) -> None:
        self.client = AsyncSegmentationClient.from_env(
            timeout=5.0,
            retries=RetryPolicy(retries=3, first_delay=0.2, longest_delay=2.0),
            on_retry=report,
            on_response=measure,
            token=token,
            headers={"x-tenant": "a"},
            transport=transport,
        )

    async def start(self) -> None:
        """Wait for the server, and log what it offers."""
        await self.client.wait_until_ready(timeout=60.0)
        server = await self.client.server()
        log.info("%s %s", server.name, server.version)
        models: list[ModelInfo] = await self.client.models()
        for model in models:
            limit: int | None = model.max_pixels
            names: tuple[str, ...] | None = model.class_names
            log.info("%s: %s, at most %s pixels, classes %s", model.name, model.weights, limit, names)

    async def healthy(self) -> bool:
        """Return whether the server is ready."""
        try:
            return await self.client.is_ready()
        except SegmentationError:
            return False

    async def segment(self, upload: Upload, *, request_id: str, model: str | None = None) -> Response:
        """Answer with the classes of an uploaded picture."""
        client = self.client.with_options(request_id=request_id, headers={"x-route": "upload"})
        try:
            result = await client.segment(await upload.read(), model=model, confidence=True)
        except SegmentationError as error:
            return refusal(error)
        answer: ResultDict = result.at_least(0.5).to_dict(rle=True)
        return Response(HTTPStatus.OK, json.dumps(answer).encode(), {"x-request-id": result.request_id})

    async def shares(self, paths: Iterable[Path]) -> AsyncIterator[tuple[Path, dict[str, float]]]:
        """Yield the shares of the classes in each picture that can be segmented."""
        async for path, result in self.client.segment_many(paths, concurrency=8, with_source=True):
            if isinstance(result, SegmentationError):
                log.warning("%s: %s", path, result)
            else:
                yield path, result.fractions

    async def stop(self) -> None:
        """Close the connections."""
        await self.client.close()


@dataclass(frozen=True)
class Found:
    """The record that a worker stores for one picture."""

    top_class: str | None
    people: NDArray[np.bool_]
    mask: NDArray[np.uint8]
    confidence: NDArray[np.uint8] | None
    outlines: list[NDArray[np.float64]]
    preview: Image.Image


def described(result: Segmentation, image: ImageLike) -> Found:
    """Return the record of a result."""
    people = result["person"] if "person" in result else result.mask_of("__background__")
    outlines = [polygon.simplify(1.0).exterior for polygon in result.to_polygons("person")]
    preview = result.overlay(image, alpha=0.4, legend=True)
    return Found(result.top_class, people, result.mask, result.confidence, outlines, preview)


class Worker:
    """The jobs of a queue, each in a thread of its own."""

    def __init__(self, url: str, transport: Transport | None = None) -> None:
        tls = TLS(ca_file="ca.pem") if url.startswith(("grpcs://", "https://")) else None
        self.client = SegmentationClient(url, timeout=30.0, tls=tls, retries=2, transport=transport)

    def run(self, image: ImageLike) -> Found:
        """Segment one picture; a ConnectionError puts the job back into the queue."""
        return described(self.client.segment(image, confidence=True), image)

    def large(self, image: ImageLike) -> Found:
        """Segment a picture that is too large for one request."""
        return described(self.client.segment_tiles(image, tile=1040, overlap=0.25, timeout=600.0), image)

    def annotate(self, images: Iterable[bytes]) -> Iterator[CocoAnnotation]:
        """Yield the annotations of a data set; the first picture that fails ends it."""
        number = 0
        for image_id, result in enumerate(self.client.segment_many(images, raise_errors=True)):
            categories: list[CocoCategory] = result.coco_categories()
            known = {category["id"] for category in categories}
            for annotation in result.to_coco(image_id=image_id, first_id=number, components=True, min_area=20):
                number += 1
                if annotation["category_id"] in known and annotation.get("score", 1.0) > 0:
                    yield annotation


def a_test_of_the_service(mask: NDArray[np.uint8]) -> None:
    """Run both with fakes, as the README shows."""

    def answer(request: ReceivedRequest) -> NDArray[np.uint8]:
        if request.picture.width != mask.shape[1]:
            raise InvalidImageError("another picture")
        return mask

    fake = FakeTransport(answer)
    worker = Worker("grpc://fake", fake)
    found = worker.run("cow.jpg")
    assert found.top_class == "cow", fake.requests[0].request_id
    service = Service(AsyncFakeTransport(answers=[ServerUnavailableError("gone"), mask]))
    asyncio.run(service.start())
