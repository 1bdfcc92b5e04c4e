"""Servers for tests. `serving` starts one for a single test; wrap TritonProcess in a wider fixture to share one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest
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
