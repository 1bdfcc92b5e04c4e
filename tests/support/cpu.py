"""Marks for tests that compute in a precision, which not every CPU has."""

from __future__ import annotations

import pytest

from deeplabv3.building.tracing import missing_on_this_cpu
from deeplabv3.cpus import NEEDED

NEEDS = {
    precision: pytest.mark.skipif(
        missing_on_this_cpu(precision) is not None, reason=str(missing_on_this_cpu(precision))
    )
    for precision in NEEDED
}
