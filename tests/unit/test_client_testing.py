"""The fakes that users test with instead of a server."""

from __future__ import annotations

import asyncio
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from deeplab_client import (
    DeadlineExceededError,
    InvalidImageError,
    MismatchedReplyError,
    ModelNotFoundError,
    RetryAttempt,
    RetryPolicy,
    SegmentationClient,
    SegmentationError,
    ServerOverloadedError,
)
from deeplab_client._deadline import Deadline
from deeplab_client._transport import Request
from deeplab_client.testing import AsyncFakeTransport, FakeTransport, ReceivedRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deeplab_client._transport import Transport

pytestmark = pytest.mark.unit

IMAGE = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
MASK = np.array([[0, 8, 8, 8], [0, 0, 0, 12]], np.uint8)


def client(transport: Transport, **options: Any) -> SegmentationClient:  # noqa: ANN401 - as in the client
    return SegmentationClient("grpc://fake", transport=transport, **options)


def test_a_mask_is_the_answer_to_every_image() -> None:
    fake = FakeTransport(mask=MASK, weights=None, model_version="3")
    results = [client(fake).segment(IMAGE) for _ in range(2)]
    for result in results:
        assert (result.mask == MASK).all()
        assert result.pixel_counts == {"__background__": 4, "cat": 3, "dog": 1}
        assert (result.model_version, result.weights) == ("3", None)
    results[0].mask[:] = 0
    assert MASK.any(), "the test's own mask is left alone"


def test_without_arguments_all_is_background_and_a_broken_image_is_refused() -> None:
    fake = client(FakeTransport())
    assert fake.segment(IMAGE).pixel_counts == {"__background__": 8}
    with pytest.raises(InvalidImageError, match=r"it is not in JPEG, PNG, .* or HEIC format$"):
        fake.segment(b"no image")


def test_a_function_sees_the_picture_and_decides() -> None:
    def bright(request: ReceivedRequest) -> NDArray[np.uint8]:
        pixels = np.asarray(request.picture)
        if pixels.max() == 0:
            raise InvalidImageError("too dark")
        return (pixels[:, :, 0] > 10).astype(np.uint8)

    fake = client(FakeTransport(bright, class_names=["background", "bright"]))
    assert fake.segment(IMAGE).mask.tolist() == [[0, 0, 0, 0], [1, 1, 1, 1]]
    with pytest.raises(InvalidImageError, match="too dark") as caught:
        fake.segment(np.zeros_like(IMAGE))
    assert caught.value.model == "segment_resnet50"
    assert caught.value.request_id


def test_answers_come_in_turn_before_the_mask() -> None:
    first = np.full((2, 4), 15, np.uint8)
    error = InvalidImageError("no")
    fake = client(FakeTransport(MASK, answers=[first, error]))
    assert fake.segment(IMAGE).top_class == "person"
    with pytest.raises(InvalidImageError, match="no") as caught:
        fake.segment(IMAGE)
    assert caught.value is not error
    assert error.__traceback__ is None, "the test's own error is left alone"
    assert [fake.segment(IMAGE).top_class for _ in range(2)] == ["cat", "cat"]


def test_a_fake_can_answer_with_the_reply_to_another_request() -> None:
    swapped = MismatchedReplyError("the reply to another request")
    seen: list[RetryAttempt] = []
    fake = FakeTransport(MASK, answers=[swapped, swapped])
    at_once = RetryPolicy(first_delay=0)
    assert (client(fake, retries=at_once, on_retry=seen.append).segment(IMAGE).mask == MASK).all()
    assert [type(attempt.error) for attempt in seen] == [MismatchedReplyError] * 2
    with pytest.raises(MismatchedReplyError, match="its mask has 2 x 4 pixels, but the image has 4 x 2"):
        client(FakeTransport(MASK.T.copy()), retries=0).segment(IMAGE)


@pytest.mark.parametrize("error", [ServerOverloadedError, DeadlineExceededError])
def test_errors_without_end(error: type[SegmentationError]) -> None:
    def fail(request: ReceivedRequest) -> NDArray[np.uint8]:
        raise error(f"not {request.model}")

    with pytest.raises(error, match="not mine"):
        client(FakeTransport(fail)).segment(IMAGE, model="mine", timeout=1)


def test_a_deadline_that_is_over_is_an_error_of_the_call() -> None:
    fake = FakeTransport(MASK)
    over = Deadline(1e-9)
    with pytest.raises(DeadlineExceededError, match="1e-09 s") as caught:
        fake.infer(Request("m", b"image", "id", ("MASK",)), deadline=over)
    assert (caught.value.model, caught.value.request_id) == ("m", "id")
    assert not fake.requests


def test_requests_are_remembered() -> None:
    fake = FakeTransport(MASK)
    client(fake).segment(b"encoded", model="segment_resnet101", timeout=7)
    client(fake).segment(IMAGE)
    first, second = fake.requests
    assert (first.image, first.model) == (b"encoded", "segment_resnet101")
    assert 0 < first.seconds_left <= 7
    assert (np.asarray(second.picture) == IMAGE).all()
    assert first.request_id != second.request_id
    assert len(repr(second)) < 100


def test_readiness_models_and_the_end() -> None:
    fake = FakeTransport(models=["segment_resnet50"])
    with client(fake) as connected:
        assert connected.is_ready()
        assert not connected.is_ready(model="other")
        with pytest.raises(ModelNotFoundError, match="'other'"):
            connected.segment(IMAGE, model="other")
        fake.ready = False
        assert not connected.is_ready()
        assert not fake.closed
    assert fake.closed
    assert client(fake).segment(IMAGE).model_name == "segment_resnet50", "another client may use it"


@pytest.mark.parametrize(
    ("mask", "error", "words"),
    [
        (MASK.astype(np.int64), ValueError, "int64"),
        (MASK[np.newaxis], ValueError, r"\(1, 2, 4\)"),
        (MASK[:0], ValueError, "at least one pixel"),
        (np.full((2, 2), 21, np.uint8), ValueError, "class id 21, but there are 21"),
        ([[0, 1]], TypeError, "list"),
    ],
)
def test_invalid_masks_are_errors_of_the_test(mask: Any, error: type[Exception], words: str) -> None:  # noqa: ANN401 - also wrong types
    for make in (lambda: FakeTransport(mask), lambda: FakeTransport(answers=[mask])):
        with pytest.raises(error, match=words):
            make()
    with pytest.raises(error, match=words) as caught:
        client(FakeTransport(lambda _: mask)).segment(IMAGE)
    assert not isinstance(caught.value, SegmentationError)


def test_threads_take_each_answer_once() -> None:
    answers = [np.full((1, 1), i % 21, np.uint8) for i in range(210)]
    fake = FakeTransport(answers=answers)
    shared, barrier = client(fake), threading.Barrier(8)

    def work(count: int) -> list[int]:
        barrier.wait(10)
        return [int(shared.segment(b"x").mask[0, 0]) for _ in range(count)]

    with ThreadPoolExecutor(8) as pool:
        seen = sorted(i for ids in pool.map(work, [27, 27, 26, 26, 26, 26, 26, 26]) for i in ids)
    assert seen == sorted(i % 21 for i in range(210))
    assert len(fake.requests) == 210


def test_the_async_client_gives_the_same_message() -> None:
    async def ask() -> None:
        fake = AsyncFakeTransport(MASK, answers=[ServerOverloadedError("busy")], weights="none")
        request, deadline = Request("m", b"image", "id", ("MASK",)), Deadline(5)
        with pytest.raises(ServerOverloadedError, match="busy"):
            await fake.infer(request, deadline=deadline)
        reply = await fake.infer(request, deadline=deadline)
        assert reply.outputs["IMAGE_ID"].tolist() == [[zlib.crc32(b"image")]]
        assert (reply.outputs["MASK"][0] == MASK).all()
        assert (reply.model_name, reply.model_version) == ("m", "1")
        assert (await fake.model_config("m", deadline=deadline)).parameters["weights"] == "none"
        assert await fake.is_ready("m", deadline=deadline)
        await fake.close()
        assert fake.closed
        assert [received.image for received in fake.requests] == [b"image"] * 2

    asyncio.run(ask())
