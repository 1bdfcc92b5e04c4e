"""Servers for tests. `serving` starts one for a single test; wrap TritonProcess in a wider fixture to share one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
import toy
from triton_process import TritonProcess

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from triton_process import Serving


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    with contextlib.ExitStack() as stack:
        numbers = iter(range(100))

        def start(model_repository: Path, *options: str) -> TritonProcess:
            log = tmp_path / f"serve-{next(numbers)}.log"
            return stack.enter_context(TritonProcess(model_repository, log=log, options=options))

        yield start


@pytest.fixture(scope="session")
def toy_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose core model answers at once and whose masks are known."""
    return toy.build(tmp_path_factory.mktemp("toy") / "models")


@pytest.fixture(scope="session")
def toy_server(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """The one server of it that all tests share."""
    with TritonProcess(toy_repository, log=tmp_path_factory.mktemp("toy-server") / "serve.log") as process:
        yield process
