"""`with_options`: other options for some calls, over the same connections."""

from __future__ import annotations

import asyncio
import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc
import numpy as np
import pytest
from drivers import Awaited, Kind, connected, python
from script_servers import GrpcServer, Server, url

from deeplab_client import (
    AsyncSegmentationClient,
    ClientClosedError,
    DeadlineExceededError,
    MismatchedReplyError,
    RetryPolicy,
    SegmentationClient,
    SegmentationError,
    ServerUnavailableError,
)
from deeplab_client.testing import FakeTransport

if TYPE_CHECKING:
    from deeplab_client import ResponseInfo

pytestmark = pytest.mark.unit

SECRET = "k3y-of-one-tenant"  # noqa: S105 - a made up one
AT_ONCE = RetryPolicy(3, first_delay=0.001, longest_delay=0.001)


def ids(server: Server) -> list[str]:
    return [request["id"] for request in server.script.requests]


def test_a_view_adds_headers_and_shares_connections_and_facts(server: Server, kind: Kind) -> None:
    with connected(kind, url(server), headers={"X-Team": "maps", "x-tier": "free"}, token="token") as client:  # noqa: S106 - made up
        view = client.with_options(headers={"x-team": "roads"}).with_options(headers={"x-tenant": "a"})
        view.segment(b"\x05")
        client.segment(b"\x05")
    config, first, second = server.script.headers
    assert config.items() >= {"x-team": "roads", "x-tier": "free", "x-tenant": "a"}.items()
    assert first.items() >= {"x-team": "roads", "x-tenant": "a", "authorization": "Bearer token"}.items()
    assert second.items() >= {"x-team": "maps", "x-tier": "free", "authorization": "Bearer token"}.items()
    assert "x-tenant" not in second
    assert len(server.connections) == 1


def test_streams_and_questions_have_the_headers_too(server: Server, kind: Kind) -> None:
    with connected(kind, url(server)) as client:
        view = client.with_options(headers={"x-tenant": "a"})
        view.is_ready()
        list(view.segment_many([b"\x05", b"\x06"]))
        view.segment_tiles(np.zeros((64, 128), np.uint8), tile=64, overlap=0)
    assert {headers["x-tenant"] for headers in server.script.headers} == {"a"}


def test_a_token_function_may_use_another_client(server: Server) -> None:
    """Requests of the token function do not have the headers of the call that needs the token."""
    other = SegmentationClient(url(server))

    def token() -> str:
        other.is_ready()
        return "token"

    with other, SegmentationClient(url(server), token=token) as client:
        client.with_options(headers={"x-tenant": "a"}).segment(b"\x05")
    carried = [("authorization" in headers, "x-tenant" in headers) for headers in server.script.headers]
    assert set(carried) == {(True, True), (False, False)}


def test_headers_of_a_view_are_checked_without_showing_them(server: Server, kind: Kind) -> None:
    with connected(kind, url(server), token="token", retries=0) as client:  # noqa: S106 - made up
        for wrong in ({"Host": "elsewhere"}, {"x-key": "line\nbreak"}, {"Authorization": "Basic x"}):
            with pytest.raises(ValueError, match="header"):
                client.with_options(headers=wrong)
        failure = (grpc.StatusCode.UNAVAILABLE if isinstance(server, GrpcServer) else 503, f"you sent {SECRET}")
        server.script.failures["infer"] = failure
        with pytest.raises(ServerUnavailableError) as caught:
            client.with_options(headers={"x-key": SECRET}).segment(b"\x05")
    assert "you sent ***" in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_view_has_its_own_retries_and_timeout(server: Server, kind: Kind) -> None:
    server.script.failures["infer"] = (grpc.StatusCode.UNAVAILABLE if isinstance(server, GrpcServer) else 503, "no")
    with connected(kind, url(server), retries=0) as client:
        for driver, attempts in ((client, 1), (client.with_options(retries=AT_ONCE), 4)):
            server.script.failing = 100
            with pytest.raises(ServerUnavailableError):
                driver.segment(b"\x05")
            assert 100 - server.script.failing == attempts
        server.script.failing, server.script.hold = 0, threading.Event()
        with pytest.raises(DeadlineExceededError, match=r"within 0\.3 s"):
            client.with_options(timeout=0.3).segment(b"\x05")
        server.script.hold.set()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("retries", -1),
        ("timeout", 0),
        ("timeout", "3"),
        *(("request_id", value) for value in ("", "two words", "line\nbreak", "ünïcode", "x" * 129, 5, b"bytes")),
    ],
)
def test_options_are_checked_at_once(option: str, value: Any) -> None:  # noqa: ANN401 - wrong ones
    for client in (SegmentationClient("host"), AsyncSegmentationClient("host")):
        with pytest.raises((ValueError, TypeError), match=option):
            client.with_options(**{option: value})


def test_a_request_id_is_the_logs_and_the_results_retries_included(server: Server, kind: Kind) -> None:
    server.script.other_ids.append("of-another-request")
    with connected(kind, url(server), retries=AT_ONCE) as client:
        view = client.with_options(request_id="req_1/a")
        results = [view.segment(b"\x05"), view.segment(b"\x06")]
        assert client.segment(b"\x05").request_id not in {"", "req_1/a"}
    assert ids(server)[:3] == ["req_1/a"] * 3  # the first had the reply to another request
    assert [result.request_id for result in results] == ["req_1/a"] * 2


def test_the_id_is_in_errors(server: Server, kind: Kind) -> None:
    server.script.failures["infer"] = (grpc.StatusCode.INTERNAL if isinstance(server, GrpcServer) else 500, "broken")
    with connected(kind, url(server)) as client, pytest.raises(SegmentationError) as caught:
        client.with_options(request_id="r").segment(b"\x05")
    assert caught.value.request_id == "r"


def test_many_requests_have_the_id_and_their_number(server: Server, kind: Kind) -> None:
    with connected(kind, url(server)) as client:
        view = client.with_options(request_id="r")
        results = view.segment_many([bytes([width]) for width in range(1, 6)], concurrency=3)
        told = [None if isinstance(result, SegmentationError) else result.request_id for result in results]
        assert told == ["r-1", "r-2", "r-3", "r-4", "r-5"]
        tiled = view.segment_tiles(np.zeros((64, 128), np.uint8), tile=64, overlap=0)
    by_width = {request["image"][0]: request["id"] for request in server.script.requests[:5]}
    assert by_width == {width: f"r-{width}" for width in range(1, 6)}
    assert tiled.request_id == "r"
    assert sorted(ids(server)[5:]) == ["r-1", "r-2"]


def test_requests_under_way_never_share_an_id(server: Server, kind: Kind) -> None:
    """Replies are matched by id, so two requests with one id could get each other's."""
    server.script.hold = threading.Event()
    with connected(kind, url(server)) as client:
        first, second = (client.with_options(request_id="r") for _ in range(2))
        with ThreadPoolExecutor(3) as pool:
            calls = [pool.submit(view.segment, b"\x05") for view in (first, second, first)]
            while len(server.script.requests) < 3:
                assert not any(call.done() for call in calls)
            server.script.hold.set()
            told = [call.result().request_id for call in calls]
        assert sorted(told) == sorted(ids(server)) == ["r", "r-2", "r-3"]
        assert second.segment(b"\x05").request_id == "r"


def test_a_call_that_failed_gives_its_id_back(kind: Kind) -> None:
    def broken(_: object) -> Any:  # noqa: ANN401 - never returns
        raise ZeroDivisionError

    def hook(info: ResponseInfo) -> None:
        if isinstance(info.error, ServerUnavailableError):
            raise KeyError

    mask = np.zeros((2, 2), np.uint8)
    fake = FakeTransport(mask, answers=[MismatchedReplyError("another"), broken, ServerUnavailableError("gone")])
    transport = fake if kind == "sync" else Awaited(fake)
    with connected(kind, "fake", transport=transport, retries=0, on_response=hook) as client:
        view = client.with_options(request_id="r")
        kept: list[BaseException] = []
        for error in (MismatchedReplyError, ZeroDivisionError, KeyError):
            with pytest.raises(error) as caught:
                view.segment(b"1")
            kept.append(caught.value)  # with the frames of the call
        assert view.segment(b"1").request_id == "r"


def test_the_reply_to_another_request_is_refused_with_any_id(server: Server, kind: Kind) -> None:
    server.script.others.append(b"\x09")  # the same id, another picture
    with connected(kind, url(server), retries=0) as client, pytest.raises(MismatchedReplyError):
        client.with_options(request_id="r").segment(b"\x05")


def test_closing_a_view_ends_the_view_alone(server: Server, kind: Kind) -> None:
    with connected(kind, url(server)) as client:
        views = [client.with_options() for _ in range(3)]
        views[0].segment(b"\x05")
        views[0].close()
        with pytest.raises(ClientClosedError):
            views[0].segment(b"\x05")
        with pytest.raises(ClientClosedError):
            views[0].with_options()
        assert views[1].segment(b"\x05").width == 5
        assert client.segment(b"\x05").width == 5
        client.close()
        for driver in (client, *views):
            with pytest.raises(ClientClosedError):
                driver.segment(b"\x05")
    assert len(server.connections) == 1


def test_leaving_a_views_block_leaves_the_client_open() -> None:
    fake = FakeTransport(np.zeros((2, 2), np.uint8))
    with SegmentationClient("fake", transport=fake) as client:
        with client.with_options(timeout=5) as view:
            view.segment(b"1")
        assert "closed" in repr(view)
        assert "closed" not in repr(client)
        client.segment(b"1")
        assert not fake.closed
    assert fake.closed


class Own(SegmentationClient):
    """A user's subclass with additional arguments and state."""

    def __init__(self, url: str, *, region: str = "eu", **options: Any) -> None:  # noqa: ANN401 - ours
        super().__init__(url, **options)
        self.region = region


def test_a_view_is_of_the_clients_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAB_URL", "host")
    view = Own.from_env().with_options(timeout=5)
    assert (type(view), view.region) == (Own, "eu")


def test_a_pickled_view_is_a_client_by_itself(server: Server, kind: Kind) -> None:
    with connected(kind, url(server)) as client:
        view: Any = client.with_options(headers={"x-tenant": "a"}, request_id="r")
        source = view if kind == "sync" else view.client
        for clone in (pickle.loads(pickle.dumps(source)), copy.copy(source)):  # noqa: S301 - made here
            if kind == "sync":
                with clone:
                    assert clone.segment(b"\x05").request_id == "r"
            else:
                assert asyncio.run(use(clone)) == "r"
            assert server.script.headers[-1]["x-tenant"] == "a"
        assert client.segment(b"\x05").width == 5


async def use(client: AsyncSegmentationClient) -> str:
    async with client:
        return (await client.segment(b"\x05")).request_id


FORK = """
    import multiprocessing, sys
    from deeplab_client import SegmentationClient

    def child(view):
        assert view.segment(b"\\x05", timeout=20).request_id == "r"

    with SegmentationClient(sys.argv[1]) as client:
        view = client.with_options(request_id="r")
        child(view)
        process = multiprocessing.get_context("fork").Process(target=child, args=(view,))
        process.start()
        process.join(60)
        assert process.exitcode == 0
        child(view)
    print("done")
"""


def test_a_view_works_on_both_sides_of_a_fork(server: Server) -> None:
    run = python(FORK, url(server), flags=["-W", "ignore"])
    assert run.stdout == "done\n", run.stderr
