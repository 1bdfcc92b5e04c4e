"""Marks for tests that compute in a precision, which not every CPU has."""

from __future__ import annotations

import pytest

from deeplabv3.cpus import NEEDED, missing_for

NEEDS = {
    precision: pytest.mark.skipif(missing_for(precision) is not None, reason=str(missing_for(precision)))
    for precision in NEEDED
}
