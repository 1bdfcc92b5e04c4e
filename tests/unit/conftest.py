"""What the client's tests are run with: both protocols and both clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

import command_line
import pytest
from script_servers import GrpcServer, HttpServer, Script, Server

from deeplab_client.testing import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from drivers import Kind


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> Kind:
    return request.param


@pytest.fixture(params=[GrpcServer, HttpServer], ids=["grpc", "http"])
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    server: Server = request.param(Script())
    yield server
    server.stop()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeTransport:
    return command_line.reach(FakeTransport(command_line.cats), monkeypatch)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder
