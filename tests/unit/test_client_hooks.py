"""Request and response hooks: their arguments, when they are called, and their exceptions."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from drivers import Kind, connected
from script_servers import GrpcServer, Server, url

import deeplab_client
from deeplab_client import (
    AsyncSegmentationClient,
    DeadlineExceededError,
    InvalidImageError,
    MismatchedReplyError,
    RetryPolicy,
    SegmentationClient,
    ServerUnavailableError,
)
from deeplab_client.testing import AsyncFakeTransport

if TYPE_CHECKING:
    from deeplab_client import RequestInfo, ResponseInfo, RetryAttempt

pytestmark = pytest.mark.unit

AT_ONCE = RetryPolicy(2, first_delay=0.001, longest_delay=0.001)
MASK = np.zeros((2, 2), np.uint8)


class Log:
    """Hooks that record their arguments in order."""

    def __init__(self) -> None:
        self.told: list[RequestInfo | ResponseInfo | RetryAttempt] = []

    def options(self, kind: Kind) -> dict[str, Any]:
        """Return the hooks as arguments: coroutine functions for the client that takes them."""

        async def awaited(info: Any) -> None:  # noqa: ANN401 - any hook's
            await asyncio.sleep(0)
            self.told.append(info)

        hook = self.told.append if kind == "sync" else awaited
        return {"on_request": hook, "on_response": hook, "on_retry": hook}

    @property
    def names(self) -> list[str]:
        return [type(info).__name__ for info in self.told]


def fail(server: Server, call: str, times: int) -> None:
    code = grpc.StatusCode.UNAVAILABLE if isinstance(server, GrpcServer) else 503
    server.script.failures[call] = (code, "for now")
    server.script.failing = times


def test_hooks_are_called_for_each_attempt(server: Server, kind: Kind) -> None:
    fail(server, "infer", 1)
    log = Log()
    with connected(kind, url(server), retries=AT_ONCE, **log.options(kind)) as client:
        result = client.with_options(timeout=20).segment(b"\x05\x00")
    assert log.names == ["RequestInfo", "ResponseInfo", "RetryAttempt", "RequestInfo", "ResponseInfo"]
    first, failed, retry, second, done = log.told
    assert first == deeplab_client.RequestInfo("segment_resnet50", result.request_id, attempt=1, image_bytes=2)
    assert second == deeplab_client.RequestInfo("segment_resnet50", result.request_id, attempt=2, image_bytes=2)
    assert isinstance(failed, deeplab_client.ResponseInfo)
    assert isinstance(retry, deeplab_client.RetryAttempt)
    assert failed.request == first
    assert isinstance(failed.error, ServerUnavailableError)
    assert failed.error.status == ("UNAVAILABLE" if isinstance(server, GrpcServer) else 503)
    assert (retry.error, retry.number) == (failed.error, 1)
    assert isinstance(done, deeplab_client.ResponseInfo)
    assert (done.request, done.error) == (second, None)
    assert 0 < done.seconds < 20


def test_a_server_that_is_gone_is_an_attempt_that_failed(kind: Kind) -> None:
    """Although the client requests the model's config first, and never sends the inference."""
    log = Log()
    address = "http://127.0.0.1:1"
    with connected(kind, address, retries=0, **log.options(kind)) as client, pytest.raises(ServerUnavailableError):
        client.segment(b"\x05")
    assert log.names == ["RequestInfo", "ResponseInfo"]


def test_a_reply_to_another_request_is_an_attempt_that_failed(server: Server, kind: Kind) -> None:
    server.script.others.append(b"\x09")
    log = Log()
    with connected(kind, url(server), retries=AT_ONCE, **log.options(kind)) as client:
        client.segment(b"\x05")
    errors = [info.error for info in log.told if isinstance(info, deeplab_client.ResponseInfo)]
    assert [type(error) for error in errors] == [MismatchedReplyError, type(None)]


def test_hooks_are_not_called_if_nothing_is_sent(server: Server, kind: Kind) -> None:
    log = Log()
    with connected(kind, url(server), **log.options(kind)) as client:
        client.is_ready()
        with pytest.raises(InvalidImageError):
            client.segment("no such file")
    assert log.told == []


def test_streams_and_tiles_call_hooks_for_each_request(server: Server, kind: Kind) -> None:
    log = Log()
    with connected(kind, url(server), **log.options(kind)) as client:
        list(client.segment_many([b"\x05", b"\x06"]))
        client.segment_tiles(np.zeros((64, 128), np.uint8), tile=64, overlap=0)
    assert sorted(log.names) == ["RequestInfo"] * 4 + ["ResponseInfo"] * 4


@pytest.mark.parametrize("hook", ["on_request", "on_response", "on_retry"])
@pytest.mark.parametrize("error", [KeyError("of the hook"), ServerUnavailableError("of the hook")])
def test_an_exception_of_a_hook_ends_the_call(server: Server, kind: Kind, hook: str, error: Exception) -> None:
    """Even an error that would be retried if it came from the server."""
    fail(server, "infer", 1)
    calls: list[object] = []

    def broken(info: object) -> None:
        calls.append(info)
        raise error

    with connected(kind, url(server), retries=AT_ONCE, **{hook: broken}) as client:
        view = client.with_options(request_id="r")
        with pytest.raises(type(error), match="of the hook"):
            view.segment(b"\x05")
        assert len(calls) == 1
        assert len(server.script.requests) == 0


def test_a_hook_is_awaited_within_the_deadline() -> None:
    async def never(_: object) -> None:
        await asyncio.Event().wait()

    async def use() -> None:
        for hook in ("on_request", "on_response"):
            options: dict[str, Any] = {hook: never}
            client = AsyncSegmentationClient("fake", transport=AsyncFakeTransport(MASK), **options)
            with pytest.raises(DeadlineExceededError):
                await client.segment(b"1", timeout=0.2)

    asyncio.run(use())


def test_hooks_run_where_the_call_was_made() -> None:
    """In the task, so that context variables and the current span are the caller's."""
    tasks: list[object] = []

    async def use() -> None:
        client = AsyncSegmentationClient(
            "fake", transport=AsyncFakeTransport(MASK), on_request=lambda _: tasks.append(asyncio.current_task())
        )
        await client.segment(b"1")
        assert tasks == [asyncio.current_task()]

    asyncio.run(use())


def test_a_client_is_freed_at_once_after_its_hook_got_an_error() -> None:
    def drop(_: object) -> None:
        """Record nothing."""

    gc.collect()
    gc.disable()
    try:
        client = SegmentationClient("http://127.0.0.1:1", retries=AT_ONCE, on_response=drop, on_retry=drop)
        with pytest.raises(ServerUnavailableError):
            client.segment(b"\x05")
        gone = weakref.ref(client)
        del client
        assert gone() is None
    finally:
        gc.enable()


def test_a_plain_segment_sends_one_request_and_one_question_for_the_model(server: Server, kind: Kind) -> None:
    with connected(kind, url(server), **Log().options(kind)) as client:
        for _ in range(3):
            client.segment(b"\x05")
    assert len(server.script.headers) == 4
    assert len(server.script.requests) == 3
