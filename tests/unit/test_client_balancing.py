"""Requests over gRPC go in turn to every address that the server's name has, as with a headless service."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from dnslib import QTYPE, RR, A
from dnslib.server import BaseResolver, DNSLogger, DNSServer
from drivers import Kind, connected
from script_servers import GrpcServer, Script

from deeplab_client import _grpc_messages

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

pytestmark = pytest.mark.unit

ADDRESSES = ("127.0.0.1", "127.0.0.2")


class Pods(BaseResolver):
    """Every name has both addresses."""

    def resolve(self, request: Any, handler: object) -> Any:  # noqa: ANN401, ARG002  dnslib is untyped
        reply = request.reply()
        if request.q.qtype == QTYPE.A:
            for address in ADDRESSES:
                reply.add_answer(RR(request.q.qname, QTYPE.A, rdata=A(address), ttl=1))
        return reply


def quiet(_: str) -> None:
    """Log nothing: a line to stdout for every question is dnslib's default."""


@contextmanager
def name_server() -> Generator[int]:
    server = DNSServer(Pods(), address="127.0.0.1", port=0, logger=DNSLogger(logf=quiet))
    server.start_thread()
    try:
        yield server.server.server_address[1]
    finally:
        server.stop()
        server.server.server_close()


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
    with name_server() as port:
        # The system's resolver cannot be told of a name here; gRPC takes a name server in the target.
        target = f"dns://127.0.0.1:{port}/seg.test:{first.port}"

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
