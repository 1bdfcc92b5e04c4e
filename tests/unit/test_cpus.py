"""Build, embedded server and container refuse int8 on a CPU on which it overflows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from deeplabv3.cpus import missing_for_int8
from deeplabv3.embedded.checks import check_precisions
from deeplabv3.embedded.errors import StartError
from deeplabv3.repository.config import parse_config

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit


@pytest.fixture
def older(tmp_path: Path) -> Path:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\nflags\t\t: fpu sse4_2 avx2 avx512f\n")
    return cpuinfo


def test_int8_needs_vnni_or_amx(older: Path) -> None:
    for cpuinfo in (older, older.with_name("missing")):
        assert "needs a CPU with VNNI or AMX" in (missing_for_int8(cpuinfo) or "")
    older.write_text("flags\t\t: fpu avx_vnni\n")
    assert missing_for_int8(older) is None


def test_the_embedded_server_refuses_int8_on_another_cpu(older: Path) -> None:
    configs = {
        name: parse_config(f'parameters {{ key: "precision" value {{ string_value: "{name}" }} }}')
        for name in ("fp32", "int8")
    } | {"step": parse_config("")}
    with pytest.raises(StartError, match=r"^int8: int8 needs a CPU with VNNI or AMX, .*--precision fp32"):
        check_precisions(configs, older)
    older.write_text("flags\t\t: fpu amx_int8\n")
    check_precisions(configs, older)
