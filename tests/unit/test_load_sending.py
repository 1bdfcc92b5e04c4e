"""What one process of a load test sends and counts, with a client instead of the server."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from load_arguments import parse

from deeplab_client import DeadlineExceededError, MismatchedReplyError
from load_tests import sending
from load_tests.pictures import Picture
from load_tests.sending import LABELS, Sending

if TYPE_CHECKING:
    from collections.abc import Callable

    Begin = Callable[[Callable[[], "Reply"], Any], Sending]

pytestmark = pytest.mark.unit

PICTURES = [Picture(f"{kind}{number}", kind, b"", 3, 2) for kind in ("web", "large") for number in range(2)]
URL = "grpc://there"


class Reply:
    """A right one."""

    mask = np.zeros((2, 3), np.uint8)
    model_version, weights, untrained = "1", "none", True


class Client:
    def __init__(self, answer: Callable[[], Reply]) -> None:
        self._answer = answer

    def segment(self, data: bytes, *, model: str) -> Reply:
        del data, model
        return self._answer()


class Events:
    """Locust's environment, its events, and the one of them that counts."""

    def __init__(self) -> None:
        self.counted: list[dict[str, Any]] = []
        self.runner = None

    @property
    def events(self) -> Events:
        return self

    @property
    def request(self) -> Events:
        return self

    def fire(self, **request: Any) -> None:  # noqa: ANN401 - Locust's own
        self.counted.append(request)


@pytest.fixture
def begin(monkeypatch: pytest.MonkeyPatch) -> Begin:
    def begin(answer: Callable[[], Reply], environment: Any) -> Sending:  # noqa: ANN401 - stands for Locust's
        def client_for(*_: object) -> Client:
            return Client(answer)

        monkeypatch.setattr(sending, "client_for", client_for)
        kinds = {"web": 3.0, "large": 1.0}
        return Sending(environment, options=parse(), pictures=PICTURES, kinds=kinds)

    return begin


def test_pictures_and_variants_are_drawn_by_weight(begin: Begin) -> None:
    found = begin(Reply, Events())
    source = random.Random(1)  # noqa: S311 - draws load, not secrets
    draws = Counter((picture.kind, variant) for picture, variant in (found.draw(source) for _ in range(16_000)))
    assert draws["web", "resnet50"] == pytest.approx(9000, rel=0.05)
    assert draws["large", "resnet50"] == pytest.approx(3000, rel=0.05)
    assert draws["web", "resnet101"] == pytest.approx(3000, rel=0.05)
    assert draws["large", "resnet101"] == pytest.approx(1000, rel=0.1)


@pytest.mark.parametrize(
    ("error", "label"),
    [
        (DeadlineExceededError("late"), LABELS[DeadlineExceededError]),
        (
            MismatchedReplyError("theirs"),
            "wrong mask: the client rejected the reply, because it belongs to another request",
        ),
        (ZeroDivisionError("ours"), "error of the load test itself: ZeroDivisionError"),
    ],
)
def test_whatever_goes_wrong_is_a_failed_request(begin: Begin, error: Exception, label: str) -> None:
    def fail() -> Reply:
        raise error

    environment = Events()
    assert begin(fail, environment).ask(URL, PICTURES[0], "resnet50", since=0.0) is False
    (counted,) = environment.counted
    assert counted["exception"] == label


def test_replies_that_were_waited_for_at_the_end_are_no_throughput(begin: Begin) -> None:
    environment = Events()
    found = begin(Reply, environment)
    for end in (lambda: None, found.end):
        end()
        assert found.ask(URL, PICTURES[0], "resnet50", since=0.0)
    assert len(environment.counted) == 2
    assert found.report()["answered"] == 1
