"""Fixtures of the tests of the load tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from locust_run import Locust

from deeplabv3.embedded.checks import free_ports

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def locust(tmp_path: Path) -> Locust:
    return Locust(tmp_path)


@pytest.fixture
def unused_port() -> int:
    return next(free_ports("127.0.0.1", set()))
