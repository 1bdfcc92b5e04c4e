"""What the client's tests are run with: both protocols and both clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from script_servers import GrpcServer, HttpServer, Script, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from drivers import Kind


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(params=[GrpcServer, HttpServer], ids=["grpc", "http"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server: Server = request.param(Script())
    yield server
    server.stop()
