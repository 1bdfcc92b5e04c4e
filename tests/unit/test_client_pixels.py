"""Pictures with more pixels than the model accepts are refused before they are sent."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from drivers import Awaited, Kind, connected
from PIL import Image

from deeplab_client import (
    AccessDeniedError,
    InvalidImageError,
    ServerUnavailableError,
    UnsupportedError,
)
from deeplab_client._transport import EnsembleStep, ModelConfig
from deeplab_client.testing import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers import Driver

    from deeplab_client import SegmentationError
    from deeplab_client._deadline import Deadline
    from deeplab_client._transport import Reply, Request

pytestmark = pytest.mark.unit

WIDTH, HEIGHT = 4000, 3001
LARGE = np.zeros((HEIGHT, WIDTH), np.uint8)
LIMIT = 12_000_000
REFUSAL = (
    r"^the image has 4000 x 3001 = 12004000 pixels, but 'segment_resnet50' takes at most 12000000: use segment_tiles"
)


class Server(FakeTransport):
    """An ensemble whose first step has the limit, as Triton serves it; set the attributes to script it."""

    def __init__(self) -> None:
        super().__init__()
        self.limit: str | None = str(LIMIT)
        self.step_error: SegmentationError | None = None
        self.infer_error: SegmentationError | None = None
        self.asked: list[str] = []

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        if self.infer_error is not None:
            raise self.infer_error
        return super().infer(request, deadline=deadline)

    def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        del deadline
        self.asked.append(model)
        if model != "preprocess":
            step = EnsembleStep("preprocess", frozenset({"IMAGE"}), frozenset({"PIXELS"}))
            other = EnsembleStep("core", frozenset({"PIXELS"}), frozenset({"MASK"}))
            return ModelConfig({"weights": "w"}, frozenset({"IMAGE"}), frozenset({"MASK"}), (other, step))
        if self.step_error is not None:
            raise self.step_error
        return ModelConfig({} if self.limit is None else {"max_pixels": self.limit})


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def client(server: Server, kind: Kind) -> Iterator[Driver]:
    with connected(kind, "host", transport=server if kind == "sync" else Awaited(server), retries=0) as client:
        yield client


def encoded(form: str, **options: Any) -> bytes:  # noqa: ANN401 - Pillow's
    buffer = BytesIO()
    Image.fromarray(LARGE).save(buffer, form, **options)
    return buffer.getvalue().ljust(1_000_001, b"\0")  # large files are checked


@pytest.mark.parametrize("form", ["array", "PIL", "JPEG", "PNG", "BMP", "PPM", "GIF", "TIFF"])
def test_a_picture_above_the_limit_is_not_sent(client: Driver, server: Server, form: str) -> None:
    pictures: dict[str, Any] = {"array": LARGE, "PIL": Image.fromarray(LARGE)}
    picture = pictures[form] if form in pictures else encoded(form)
    with pytest.raises(InvalidImageError, match=REFUSAL) as caught:
        client.segment(picture)
    assert (caught.value.model, caught.value.retryable) == ("segment_resnet50", False)
    assert not server.requests
    server.limit = None
    with connected("sync", "host", transport=server) as other:
        other.segment(picture)
    assert server.requests


def test_a_picture_at_the_limit_is_sent(client: Driver, server: Server) -> None:
    server.limit = str(HEIGHT * WIDTH)
    client.segment(LARGE)
    assert len(server.requests) == 1


def test_one_huge_picture_is_measured_without_its_pixels(client: Driver, server: Server) -> None:
    """Pillow's own limit does not apply, and the pixels are not decoded."""
    header = b"P6 100000 100000 255\n"
    with pytest.raises(InvalidImageError, match=r"^the image has 100000 x 100000 = 10000000000 pixels"):
        client.segment(header.ljust(1_000_001, b"\0"))
    assert not server.requests


def test_the_limit_is_requested_before_each_refusal_and_once_for_accepted_pictures(
    client: Driver, server: Server
) -> None:
    client.segment(LARGE[:2500])
    assert server.asked == ["segment_resnet50"]
    for _ in range(2):
        with pytest.raises(InvalidImageError):
            client.segment(LARGE)
        client.segment(LARGE[:3000])
    assert server.asked.count("preprocess") == 2
    results = list(client.segment_many([LARGE, LARGE[:3000]], concurrency=1))
    assert [isinstance(result, InvalidImageError) for result in results] == [True, False]
    assert server.asked.count("preprocess") == 3


def test_a_server_that_is_built_with_a_higher_limit_gets_the_pictures(client: Driver, server: Server) -> None:
    with pytest.raises(InvalidImageError):
        client.segment(LARGE)
    server.limit = str(HEIGHT * WIDTH)
    client.segment(LARGE)


def test_the_limit_is_asked_for_again_after_a_lost_connection(client: Driver, server: Server) -> None:
    client.segment(LARGE[:3000])
    server.limit, server.infer_error = str(HEIGHT * WIDTH), ServerUnavailableError("gone")
    with pytest.raises(ServerUnavailableError):
        client.segment(LARGE[:3000])
    server.infer_error = None
    client.segment(LARGE)


@pytest.mark.parametrize("refusal", [AccessDeniedError, UnsupportedError, None])
def test_the_server_decides_if_it_does_not_report_its_limit(
    client: Driver, server: Server, refusal: type[SegmentationError] | None
) -> None:
    server.step_error, server.limit = refusal and refusal("no"), "many"
    for _ in range(2):
        client.segment(LARGE)
    assert len(server.requests) == 2
    assert server.asked.count("preprocess") == 1


def test_tiles_of_a_picture_above_the_limit_are_sent(client: Driver, server: Server) -> None:
    assert client.segment_tiles(LARGE, tile=2000, overlap=0).mask.shape == LARGE.shape
    assert "preprocess" not in server.asked
