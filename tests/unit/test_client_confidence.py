"""The confidence of a result: requesting, checking and using it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from drivers import Kind, connected
from results import segmentation

from deeplab_client import ModelError, Segmentation, SegmentationClient, UnsupportedError
from deeplab_client._transport import Reply
from deeplab_client.testing import AsyncFakeTransport, FakeTransport, ReceivedRequest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from deeplab_client._deadline import Deadline
    from deeplab_client._transport import Request

pytestmark = pytest.mark.unit

IMAGE = np.zeros((2, 4, 3), np.uint8)
MASK = np.array([[0, 8, 8, 8], [0, 0, 12, 12]], np.uint8)
CONFIDENCE = np.array([[255, 204, 203, 102], [51, 0, 255, 153]], np.uint8)


def test_a_result_has_a_confidence_only_if_it_was_asked_for(kind: Kind) -> None:
    make = FakeTransport if kind == "sync" else AsyncFakeTransport
    with connected(kind, "fake", transport=make(MASK, confidence=CONFIDENCE)) as client:
        assert client.segment(IMAGE).confidence is None
        result = client.segment(IMAGE, confidence=True)
        many = list(client.segment_many([IMAGE] * 2, confidence=True))
    for each in (result, *many):
        assert isinstance(each, Segmentation)
        assert each.confidence is not None
        assert each.confidence.dtype == np.uint8
        assert (each.confidence == CONFIDENCE).all()
        assert each.confidence.flags.writeable


def test_fakes_have_full_confidence_by_default() -> None:
    result = SegmentationClient("fake", transport=FakeTransport(MASK)).segment(IMAGE, confidence=True)
    assert result.confidence is not None
    assert (result.confidence == 255).all()

    def half(request: ReceivedRequest) -> NDArray[np.uint8]:
        return np.full((request.picture.height, request.picture.width), 128, np.uint8)

    result = SegmentationClient("fake", transport=FakeTransport(MASK, confidence=half)).segment(IMAGE, confidence=True)
    assert result.confidence is not None
    assert (result.confidence == 128).all()
    wrong = FakeTransport(MASK, confidence=CONFIDENCE.T.copy())
    with pytest.raises(ValueError, match=r"\(2, 4\), got uint8 \(4, 2\)"):
        SegmentationClient("fake", transport=wrong).segment(IMAGE, confidence=True)


class Changed(FakeTransport):
    """Replies with another tensor as CONFIDENCE, or without it for None."""

    def __init__(self, tensor: NDArray[Any] | None) -> None:
        super().__init__(MASK)
        self.tensor = tensor

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        reply = super().infer(request, deadline=deadline)
        others = {name: tensor for name, tensor in reply.outputs.items() if name != "CONFIDENCE"}
        outputs = others if self.tensor is None else {**others, "CONFIDENCE": self.tensor}
        return Reply(outputs, reply.model_name, reply.model_version)


@pytest.mark.parametrize(
    ("tensor", "error"),
    [
        (None, UnsupportedError),
        (np.zeros((1, 2, 4), np.float32), ModelError),
        (np.zeros((2, 4), np.uint8), ModelError),
        (np.zeros((1, 4, 2), np.uint8), ModelError),
        (np.zeros((1, 0, 4), np.uint8), ModelError),
    ],
)
def test_a_confidence_that_does_not_fit_is_an_error(tensor: NDArray[Any] | None, error: type[Exception]) -> None:
    with pytest.raises(error, match="CONFIDENCE"):
        SegmentationClient("fake", transport=Changed(tensor)).segment(IMAGE, confidence=True)


@pytest.mark.parametrize(
    ("threshold", "mask"),
    [
        (0, [[0, 8, 8, 8], [0, 0, 12, 12]]),
        (0.4, [[0, 8, 8, 8], [0, 0, 12, 12]]),
        (0.8, [[0, 8, 0, 0], [0, 0, 12, 0]]),
        (0.8001, [[0, 0, 0, 0], [0, 0, 12, 0]]),
        (1, [[0, 0, 0, 0], [0, 0, 12, 0]]),
    ],
)
def test_less_certain_pixels_become_background(threshold: float, mask: list[list[int]]) -> None:
    result = segmentation(MASK.copy(), confidence=CONFIDENCE)
    kept = result.at_least(threshold)
    assert kept.mask.dtype == np.uint8
    assert kept.mask.tolist() == mask
    assert sum(kept.pixel_counts.values()) == 8
    kept.mask[:] = 1
    assert (result.mask == MASK).all()


def test_a_threshold_needs_a_range_a_confidence_and_a_background() -> None:
    result = segmentation(MASK, confidence=CONFIDENCE)
    for wrong in (-0.1, 1.1, 80, float("nan")):
        with pytest.raises(ValueError, match="0 to 1"):
            result.at_least(wrong)
    with pytest.raises(ValueError, match=r"segment\(\.\.\., confidence=True\)"):
        segmentation(MASK).at_least(0.8)
    with pytest.raises(ValueError, match=r"with a background, but class 0 of .* is '__background__'"):
        segmentation(MASK, confidence=CONFIDENCE, background=False).at_least(0.8)


@pytest.mark.filterwarnings("ignore:OpenCV:UserWarning")
def test_scores_are_means_over_the_pixels() -> None:
    result = segmentation(MASK, confidence=CONFIDENCE)
    means = [(204 + 203 + 102) / 3 / 255, (255 + 153) / 2 / 255]
    assert [annotation.get("score") for annotation in result.to_coco(image_id=1)] == pytest.approx(means)
    detections: Any = result.to_supervision()
    assert detections.confidence.tolist() == pytest.approx(means)
    assert len(detections.with_nms(threshold=0.5)) == 2
    found = {each["name"]: each["confidence"] for each in result.to_dict()["classes"]}
    assert [found["cat"], found["dog"]] == pytest.approx(means)
    assert result.to_dict()["mean_confidence"] == pytest.approx(CONFIDENCE.mean() / 255)
    plain = segmentation(MASK)
    assert "score" not in plain.to_coco(image_id=1)[0]
    assert plain.to_supervision().confidence is None
    assert result != plain
    assert result == segmentation(MASK, confidence=CONFIDENCE.copy())
