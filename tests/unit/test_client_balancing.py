"""Requests over gRPC go in turn to every address that the server's name has, as with a headless service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from drivers import Kind, connected
from name_server import NameServer
from script_servers import GrpcServer, Script

from deeplab_client import _grpc_messages

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit

ADDRESSES = ("127.0.0.1", "127.0.0.2")


@pytest.fixture
def pods() -> Iterator[tuple[GrpcServer, GrpcServer]]:
    first = GrpcServer(Script(), host=ADDRESSES[0])
    second = GrpcServer(Script(), first.port, host=ADDRESSES[1])
    yield first, second
    first.stop()
    second.stop()


def test_requests_go_to_all_addresses_in_turn_and_past_one_that_is_gone(
    pods: tuple[GrpcServer, GrpcServer], kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = pods
    with NameServer(ADDRESSES) as names:
        # The system's resolver cannot be given a name here; gRPC takes a name server in the target.
        target = f"dns://127.0.0.1:{names.port}/seg.test:{first.port}"

        def at_our_name_server(_: object) -> str:
            return target

        monkeypatch.setattr(_grpc_messages, "target_of", at_our_name_server)
        with connected(kind, f"grpc://seg.test:{first.port}", timeout=20) as client:
            for width in range(1, 41):
                assert client.segment(bytes([width])).mask.shape == (3, width)
            counts = [len(pod.script.requests) for pod in pods]
            assert sum(counts) == 40
            assert min(counts) >= 15
            first.stop()
            for width in range(1, 21):
                assert client.segment(bytes([width])).mask.shape == (3, width)
            assert len(second.script.requests) == counts[1] + 20
