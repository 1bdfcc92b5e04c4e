"""Retries: which failures, when, and how they end."""

from __future__ import annotations

import asyncio
import pickle
import threading
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

import grpc
import pytest
from drivers import Kind, connected
from script_servers import GrpcServer, HttpServer, Script, Server, url

from deeplab_client import (
    DeadlineExceededError,
    MismatchedReplyError,
    ModelError,
    RetryAttempt,
    RetryPolicy,
    SegmentationClient,
    SegmentationError,
    ServerOverloadedError,
    ServerUnavailableError,
)
from deeplab_client._deadline import Deadline
from deeplab_client._retry import Attempts, seconds_of_pushback, seconds_of_retry_after

pytestmark = pytest.mark.unit

S = grpc.StatusCode
AT_ONCE = RetryPolicy(2, first_delay=0.01, longest_delay=0.01)
NOW = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


def fail(
    server: Server, code: grpc.StatusCode, status: int, *, times: int = 1_000_000, wait: str | None = None
) -> None:
    server.script.failures["infer"] = (code if isinstance(server, GrpcServer) else status, "for now")
    server.script.failing, server.script.wait = times, wait


@pytest.mark.parametrize(
    ("code", "status"),
    [(S.UNAVAILABLE, 502), (S.UNAVAILABLE, 503), (S.UNAVAILABLE, 504), (S.RESOURCE_EXHAUSTED, 429)],
)
def test_temporary_failures_are_retried(server: Server, kind: Kind, code: grpc.StatusCode, status: int) -> None:
    fail(server, code, status, times=2)
    seen: list[RetryAttempt] = []
    with connected(kind, url(server), retries=AT_ONCE, on_retry=seen.append) as client:
        assert client.segment(b"\x05").mask.shape == (3, 5)
    assert [attempt.number for attempt in seen] == [1, 2]
    assert all(0 <= attempt.delay <= 0.01 for attempt in seen)
    assert {attempt.error.model for attempt in seen} == {"segment_resnet50"}
    # A call has the same id for all attempts.
    assert {attempt.error.request_id for attempt in seen} == {server.script.requests[0]["id"]}


def test_a_reply_to_another_request_is_tried_again(server: Server, kind: Kind) -> None:
    seen: list[RetryAttempt] = []
    with connected(kind, url(server), retries=AT_ONCE, on_retry=seen.append) as client:
        server.script.others, server.script.other_ids = [b"\x09", b"\x05"], ["", "theirs"]
        result = client.segment(b"\x05")
        server.script.others = [b"\x09"] * 9
        with pytest.raises(MismatchedReplyError):
            client.segment(b"\x05")
    assert result.mask.shape == (3, 5)
    assert result.timings is not None
    assert min(result.timings.encode, result.timings.wait, result.timings.decode) > 0
    assert [type(attempt.error) for attempt in seen] == [MismatchedReplyError] * 4
    assert len(server.script.requests) == 6


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (S.INVALID_ARGUMENT, 400),
        (S.INTERNAL, 500),
        (S.UNKNOWN, 418),
        (S.NOT_FOUND, 404),
        (S.PERMISSION_DENIED, 403),
        (S.UNAUTHENTICATED, 401),
        (S.UNIMPLEMENTED, 501),
        (S.DEADLINE_EXCEEDED, 500),
    ],
)
def test_permanent_failures_are_not_retried(server: Server, kind: Kind, code: grpc.StatusCode, status: int) -> None:
    fail(server, code, status)
    with connected(kind, url(server), retries=AT_ONCE) as client, pytest.raises(SegmentationError):
        client.segment(b"\x05")
    assert server.script.failing == 999_999


def test_retries_end(server: Server, kind: Kind) -> None:
    fail(server, S.UNAVAILABLE, 503)
    for retries, asked in ((AT_ONCE, 3), (0, 1), (RetryPolicy(4, first_delay=0), 5)):
        server.script.failing = 100
        with connected(kind, url(server), retries=retries) as client, pytest.raises(ServerUnavailableError):
            client.segment(b"\x05")
        assert 100 - server.script.failing == asked


def test_a_pause_never_goes_past_the_deadline(server: Server, kind: Kind) -> None:
    fail(server, S.RESOURCE_EXHAUSTED, 429, wait="60000" if isinstance(server, GrpcServer) else "60")
    start = time.monotonic()
    with connected(kind, url(server), timeout=20) as client, pytest.raises(ServerOverloadedError) as caught:
        client.segment(b"\x05")
    assert time.monotonic() - start < 15
    assert (caught.value.retry_after, caught.value.retryable) == (60, True)
    assert server.script.failing == 999_999


def test_the_pause_that_the_server_asks_for_is_kept(server: Server, kind: Kind) -> None:
    fail(server, S.UNAVAILABLE, 503, times=1, wait="2000" if isinstance(server, GrpcServer) else "2")
    seen: list[RetryAttempt] = []

    def end(attempt: RetryAttempt) -> None:
        seen.append(attempt)
        raise KeyError("before the pause")

    with connected(kind, url(server), retries=AT_ONCE, on_retry=end) as client, pytest.raises(KeyError, match="pause"):
        client.segment(b"\x05")
    assert [attempt.delay for attempt in seen] == [2.0]


def test_a_grpc_server_can_forbid_retries(kind: Kind) -> None:
    server = GrpcServer(Script())
    fail(server, S.UNAVAILABLE, 503, wait="-1")
    with connected(kind, url(server), retries=AT_ONCE) as client, pytest.raises(ServerUnavailableError) as caught:
        client.segment(b"\x05")
    assert server.script.failing == 999_999
    assert (caught.value.retry_after, caught.value.retryable) == (None, False)
    assert not pickle.loads(pickle.dumps(caught.value)).retryable  # noqa: S301 - made here
    server.stop()


def test_the_question_for_the_weights_is_tried_again_too(server: Server, kind: Kind) -> None:
    server.script.failures["config"] = (S.UNAVAILABLE if isinstance(server, GrpcServer) else 503, "for now")
    server.script.failing, server.script.weights = 2, "none"
    with connected(kind, url(server), retries=AT_ONCE) as client:
        assert client.segment(b"\x05").untrained


def test_a_deadline_in_a_later_attempt_names_the_earlier_failure(kind: Kind) -> None:
    server = HttpServer(Script(failures={"infer": (503, "first")}, failing=1))

    def hold(_: RetryAttempt) -> None:
        server.script.hold = threading.Event()

    with (
        connected(kind, url(server), timeout=1, retries=AT_ONCE, on_retry=hold) as client,
        pytest.raises(DeadlineExceededError, match=r"within 1 s; .*; attempt 1 had failed: .*first"),
    ):
        client.segment(b"\x05")
    assert server.script.hold is not None
    server.script.hold.set()
    server.stop()


def test_no_pause_after_a_slow_hook_goes_past_the_deadline(kind: Kind) -> None:
    server = GrpcServer(Script())
    fail(server, S.UNAVAILABLE, 503, wait="1500")

    async def dawdle(_: RetryAttempt) -> None:
        await asyncio.sleep(1.5)

    def block(_: RetryAttempt) -> None:
        time.sleep(1.5)

    with connected(kind, url(server), timeout=2, on_retry=dawdle if kind == "async" else block) as client:
        start = time.monotonic()
        with pytest.raises(DeadlineExceededError, match="within 2 s"):
            client.segment(b"\x05")
        assert time.monotonic() - start < 2.5
    server.stop()


def test_pauses_double_up_to_a_bound_and_are_spread() -> None:
    policy = RetryPolicy(20)
    longest = [max(policy.delay(attempt) for _ in range(2000)) for attempt in range(1, 9)]
    assert longest == pytest.approx([0.5, 1, 2, 4, 8, 8, 8, 8], rel=0.05)
    drawn = [policy.delay(1) for _ in range(2000)]
    assert min(drawn) < 0.05
    assert sum(drawn) / len(drawn) == pytest.approx(0.25, rel=0.1)
    assert policy.delay(10_000) <= 8


def test_the_default_is_two_retries() -> None:
    attempts = Attempts(RetryPolicy(), Deadline(1000))
    followed = [attempts.after(ServerUnavailableError("x")) for _ in range(3)]
    assert [attempt is not None for attempt in followed] == [True, True, False]
    assert Attempts(RetryPolicy(), Deadline(1000)).after(ModelError("x")) is None


@pytest.mark.parametrize("retries", [-1, RetryPolicy])
def test_invalid_retries_are_refused(retries: Any) -> None:  # noqa: ANN401 - also wrong types
    with pytest.raises((ValueError, TypeError), match="retries"):
        SegmentationClient("host", retries=retries)
    for delays in ((-1, 1), (2, 1), (0, float("inf"))):
        with pytest.raises(ValueError, match="delay"):
            RetryPolicy(1, *delays)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7),
        (" 0 ", 0),
        (format_datetime(NOW + timedelta(seconds=90), usegmt=True), 90),
        (format_datetime(NOW - timedelta(seconds=90), usegmt=True), 0),
        ("soon", None),
        ("-1", None),
        ("9" * 400, float("inf")),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert seconds_of_retry_after(value, now=NOW) == seconds


@pytest.mark.parametrize(("value", "seconds"), [("250", 0.25), (b"250", 0.25), ("-1", None), ("x", None)])
def test_pushback(value: str | bytes, seconds: float | None) -> None:
    assert seconds_of_pushback(value) == seconds
