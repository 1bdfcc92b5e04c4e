"""The types of deeplab_client from the view of callers; checked by basedpyright, never run."""

# pyright: reportUnnecessaryTypeIgnoreComment=error

from __future__ import annotations

import io
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pycocotools.mask import decode
from supervision import Detections
from typing_extensions import assert_type

from deeplab_client import (
    AsyncSegmentationClient,
    AsyncTransport,
    CocoAnnotation,
    CocoCategory,
    CocoRle,
    ImageLike,
    Polygon,
    RequestInfo,
    ResponseInfo,
    ResultDict,
    RetryAttempt,
    RetryPolicy,
    Rle,
    Segmentation,
    SegmentationClient,
    SegmentationError,
    ServerInfo,
    Timings,
    Transport,
    voc,
)
from deeplab_client.testing import (
    AsyncFakeTransport,
    Deadline,
    EnsembleStep,
    FakeTransport,
    ModelConfig,
    ReceivedRequest,
    Reply,
    Request,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from numpy.typing import NDArray


def the_result(result: Segmentation) -> None:
    assert_type(result.mask, "NDArray[np.uint8]")
    assert_type(result.class_names, tuple[str, ...])
    assert_type(result.pixel_counts, dict[str, int])
    assert_type(result.fractions, dict[str, float])
    assert_type((result.width, result.height), tuple[int, int])
    assert_type(result.background, bool)
    assert_type(result.confidence, "NDArray[np.uint8] | None")
    assert_type(result.request_id, str)
    assert_type(result.at_least(0.8), Segmentation)
    assert_type(result.mask_of("cow"), "NDArray[np.bool_]")
    assert_type(result.to_dict(rle=True), ResultDict)
    assert_type(result.to_dict()["classes"][0]["rle"], CocoRle | None)
    assert_type(result.fraction("cow"), float)
    assert_type(result.top_class, str | None)
    assert_type(result["cow"], "NDArray[np.bool_]")
    assert_type("cow" in result, bool)
    assert_type(result.untrained, bool)
    assert_type(result.weights, str | None)
    assert_type(result.timings, Timings | None)
    assert_type(result.overlay("cow.jpg", alpha=0.4, legend=True), Image.Image)
    assert_type(result.colorize(), Image.Image)
    assert_type(result.to_png(), bytes)
    assert_type(result.to_rle("cow"), Rle)
    assert_type(decode(result.to_rle("cow")), "NDArray[np.uint8]")
    assert_type(result.to_polygons("cow"), list[Polygon])
    assert_type(result.to_polygons("cow")[0].exterior, "NDArray[np.float64]")
    assert_type(result.to_polygons("cow")[0].simplify(1.5), Polygon)
    assert_type(result.to_coco(image_id=1), list[CocoAnnotation])
    annotation = result.to_coco(image_id=1, components=True, min_area=9)[0]
    assert_type(annotation["bbox"], list[float])
    assert_type(annotation["segmentation"]["counts"], str)
    assert_type(result.coco_categories(), list[CocoCategory])
    assert_type(result.to_supervision(), Detections)
    assert_type(voc.PALETTE, "NDArray[np.uint8]")


def a_result_is_frozen(result: Segmentation, timings: Timings) -> None:
    result.weights = "none"  # pyright: ignore[reportAttributeAccessIssue]
    timings.wait = 0.0  # pyright: ignore[reportAttributeAccessIssue]
    for _ in result:  # pyright: ignore[reportGeneralTypeIssues]
        pass
    assert_type({result: 1}, dict[Segmentation, int])  # pyright: ignore[reportUnhashable]


def images(client: SegmentationClient, file: IO[bytes], tensor: torch.Tensor, pixels: NDArray[np.float32]) -> None:
    for image in ("cow.jpg", Path("cow.jpg"), b"", bytearray(), memoryview(b""), io.BytesIO(), file, tensor, pixels):
        assert_type(client.segment(image), Segmentation)
    with Path("cow.jpg").open("rb") as opened:
        client.segment(opened, model="segment_resnet101", timeout=5, confidence=True)
    client.segment(Image.new("RGB", (1, 1)))
    client.segment(np.zeros((1, 1), np.uint8))


def no_images(client: SegmentationClient) -> None:
    client.segment(None)  # pyright: ignore[reportArgumentType]
    client.segment(7)  # pyright: ignore[reportArgumentType]
    client.segment([[1, 2]])  # pyright: ignore[reportArgumentType]
    client.segment(io.StringIO("text"))  # pyright: ignore[reportArgumentType]
    client.segment(open("cow.jpg"))  # pyright: ignore[reportArgumentType]  # noqa: PTH123, SIM115 - the most usual mistake
    client.segment("cow.jpg", "segment_resnet101")  # pyright: ignore[reportCallIssue]


def many(client: SegmentationClient, paths: list[Path]) -> None:
    for result in client.segment_many(paths):
        assert_type(result, Segmentation | SegmentationError)
    for result in client.segment_many(paths, raise_errors=True):
        assert_type(result, Segmentation)
    for pair in client.segment_many(paths, with_source=True):
        assert_type(pair, tuple[Path, Segmentation | SegmentationError])
    for pair in client.segment_many(paths, with_source=True, raise_errors=True):
        assert_type(pair, tuple[Path, Segmentation])


async def many_at_once(client: AsyncSegmentationClient, paths: list[Path]) -> None:
    async for result in client.segment_many(paths, raise_errors=True):
        assert_type(result, Segmentation)
    async for pair in client.segment_many(paths, with_source=True):
        assert_type(pair, tuple[Path, Segmentation | SegmentationError])


async def tiles(client: SegmentationClient, other: AsyncSegmentationClient, image: ImageLike) -> None:
    assert_type(client.segment_tiles(image), Segmentation)
    assert_type(
        client.segment_tiles("map.tif", tile=2080, overlap=0.5, model="a", timeout=60, confidence=True, concurrency=2),
        Segmentation,
    )
    assert_type(await other.segment_tiles(image, tile=520), Segmentation)
    client.segment_tiles(image, 520)  # pyright: ignore[reportCallIssue]
    client.segment_tiles([image])  # pyright: ignore[reportArgumentType]
    client.segment_tiles(image, tile=0.5)  # pyright: ignore[reportArgumentType]


def a_service(image: ImageLike, transport: Transport, other: AsyncTransport) -> None:
    client = SegmentationClient.from_env(timeout=3, token=lambda: "secret", transport=transport)
    assert_type(client, SegmentationClient)
    client.segment(image)
    AsyncSegmentationClient.from_env(transport=other)
    AsyncSegmentationClient.from_env(url="https://seg.example.com/seg", proxy="env")
    SegmentationClient("https://seg.example.com", proxy="http://proxy:3128")
    SegmentationClient("https://seg.example.com", proxy=True)  # pyright: ignore[reportArgumentType]
    SegmentationClient.from_env(timout=3)  # pyright: ignore[reportCallIssue]
    SegmentationClient.from_env(timeout="3")  # pyright: ignore[reportArgumentType]
    SegmentationClient.from_env(transport=other)  # pyright: ignore[reportArgumentType]
    AsyncSegmentationClient.from_env(timout=3)  # pyright: ignore[reportCallIssue]


class OwnClient(SegmentationClient):
    """A user's own class."""


def views(client: SegmentationClient, other: AsyncSegmentationClient, own: OwnClient) -> None:
    view = client.with_options(headers={"x-tenant": "a"}, retries=RetryPolicy(3), timeout=2.5, request_id="r")
    assert_type(view, SegmentationClient)
    assert_type(other.with_options(retries=0), AsyncSegmentationClient)
    with own.with_options(timeout=5) as narrower:
        assert_type(narrower, OwnClient)
    client.with_options({"x-tenant": "a"})  # pyright: ignore[reportCallIssue]
    client.with_options(timout=5)  # pyright: ignore[reportCallIssue]
    client.with_options(retries="3")  # pyright: ignore[reportArgumentType]
    client.with_options(headers={"x-tenant": 5})  # pyright: ignore[reportArgumentType]
    other.with_options(request_id=7)  # pyright: ignore[reportArgumentType]


def hooks() -> None:
    def before(info: RequestInfo) -> None:
        assert_type((info.model, info.request_id, info.attempt, info.image_bytes), tuple[str, str, int, int])
        info.attempt = 2  # pyright: ignore[reportAttributeAccessIssue]

    def after(info: ResponseInfo) -> None:
        assert_type(info.request, RequestInfo)
        assert_type((info.seconds, info.error), tuple[float, SegmentationError | None])

    def again(attempt: RetryAttempt) -> None:
        assert_type(attempt.error, SegmentationError)

    async def awaited(info: ResponseInfo) -> None:
        """Ignore the argument."""

    SegmentationClient("host", on_request=before, on_response=after, on_retry=again)
    SegmentationClient.from_env(on_request=before, on_response=lambda info: info.seconds)
    AsyncSegmentationClient("host", on_request=before, on_response=awaited)
    SegmentationClient("host", on_request=after)  # pyright: ignore[reportArgumentType]
    AsyncSegmentationClient.from_env(on_response=before)  # pyright: ignore[reportArgumentType]


def an_error(error: SegmentationError) -> None:
    assert_type(error.status, int | str | None)
    assert_type(error.retryable, bool)
    assert_type(error.retry_after, float | None)


def a_fake_is_a_transport(mask: NDArray[np.uint8]) -> None:
    def answer(request: ReceivedRequest) -> NDArray[np.uint8]:
        assert_type(request.picture, Image.Image)
        return mask

    fake = FakeTransport(answer, answers=[mask])
    assert_type(fake.requests, list[ReceivedRequest])
    SegmentationClient("fake", transport=fake)
    SegmentationClient("fake", transport=AsyncFakeTransport(mask))  # pyright: ignore[reportArgumentType]
    options: dict[str, Any] = {"class_names": ["a"]}
    FakeTransport(**options)


class Recorder:
    """A user's transport, which calls another one and records its replies."""

    def __init__(self, asked: Transport) -> None:
        self.asked = asked
        self.replies: dict[str, Reply] = {}

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        assert_type((request.model, request.image, request.request_id), tuple[str, bytes, str])
        assert_type((deadline.seconds, deadline.remaining()), tuple[float, float])
        asked = Request(request.model, request.image, request.request_id, request.outputs)
        reply = self.asked.infer(asked, deadline=Deadline(deadline.remaining()))
        self.replies[request.request_id] = reply
        return Reply(reply.outputs, reply.model_name, model_version="1")

    def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        config = self.asked.model_config(model, deadline=deadline)
        step = EnsembleStep("preprocess", inputs=frozenset({"IMAGE"}), outputs=frozenset({"PIXELS"}))
        return ModelConfig(config.parameters, config.inputs, config.outputs, steps=(step,))

    def model_versions(self, *, deadline: Deadline) -> Mapping[str, str]:
        return self.asked.model_versions(deadline=deadline)

    def server_info(self, *, deadline: Deadline) -> ServerInfo:
        return self.asked.server_info(deadline=deadline)

    def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        return self.asked.is_ready(model, deadline=deadline)

    def close(self) -> None:
        self.asked.close()


class Lacking:
    """A transport without its other methods."""

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        raise NotImplementedError


def a_transport_of_ones_own(other: AsyncTransport) -> None:
    SegmentationClient("fake", transport=Recorder(FakeTransport()))
    SegmentationClient("fake", transport=Lacking())  # pyright: ignore[reportArgumentType]
    AsyncSegmentationClient("fake", transport=Recorder(FakeTransport()))  # pyright: ignore[reportArgumentType]
    Recorder(other)  # pyright: ignore[reportArgumentType]
