"""Build, embedded server and container refuse a precision that the CPU does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from deeplabv3.cpus import NEEDED, missing_for
from deeplabv3.embedded.checks import check_precisions
from deeplabv3.embedded.errors import StartError
from deeplabv3.repository.config import parse_config

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit


def cpuinfo(folder: Path, *flags: str) -> Path:
    file = folder / "cpuinfo"
    file.write_text(f"processor: 0\nflags\t\t: fpu sse4_2 avx2 {' '.join(flags)}\n")
    return file


@pytest.mark.parametrize(
    ("precision", "sufficient", "insufficient"),
    [
        ("int8", ["avx_vnni"], ["avx512f"]),
        ("bf16", ["avx512bw", "avx512dq", "avx512vl"], ["avx512bw", "avx512dq"]),
        ("fp16", ["avx512_fp16"], ["avx512bw", "avx512dq", "avx512vl", "amx_bf16"]),
    ],
)
def test_each_precision_needs_its_flags(
    tmp_path: Path, precision: str, sufficient: list[str], insufficient: list[str]
) -> None:
    assert missing_for(precision, cpuinfo(tmp_path, *sufficient)) is None
    for file in (cpuinfo(tmp_path, *insufficient), tmp_path / "missing"):
        assert f"{precision} needs a CPU with " in (missing_for(precision, file) or "")
    assert missing_for("fp32", cpuinfo(tmp_path)) is None


@pytest.mark.parametrize("precision", NEEDED)
def test_the_embedded_server_refuses_a_precision_that_the_cpu_does_not_have(tmp_path: Path, precision: str) -> None:
    def model(name: str, kind: str = "KIND_CPU") -> Any:  # noqa: ANN401 - a protobuf message
        parameter = f'parameters {{ key: "precision" value {{ string_value: "{name}" }} }}'
        return parse_config(f"{parameter} instance_group [{{ kind: {kind} }}]")

    others = {"fp32": model("fp32"), "step": parse_config(""), "on_gpu": model(precision, "KIND_GPU")}
    older = cpuinfo(tmp_path)
    check_precisions(others, older)
    with pytest.raises(StartError, match=f"^core: {precision} needs a CPU with .*--precision fp32"):
        check_precisions(others | {"core": model(precision)}, older)
    check_precisions(others | {"core": model(precision)}, cpuinfo(tmp_path, *NEEDED[precision][0]))
