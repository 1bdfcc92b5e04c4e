"""serve.py with configs that need GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deeplabv3.embedded import gpus
from deeplabv3.embedded.errors import StartError

pytestmark = pytest.mark.unit

pb: Any = model_config_pb2


def configs(**kinds: str) -> dict[str, Any]:
    return {
        name: text_format.Parse(f"instance_group {{ kind: {kind} }}", pb.ModelConfig()) for name, kind in kinds.items()
    }


def test_nothing_is_asked_of_a_machine_whose_models_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "count_gpus", lambda: pytest.fail("nobody needs one"))
    assert gpus.gpu_options(configs(core="KIND_CPU", step="KIND_AUTO") | {"ensemble": pb.ModelConfig()}) == []


def test_each_gpu_gets_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "count_gpus", lambda: (2, ""))
    assert gpus.gpu_options(configs(core="KIND_GPU", step="KIND_CPU")) == [
        "--cuda-memory-pool-byte-size=0:1073741824",
        "--cuda-memory-pool-byte-size=1:1073741824",
        "--pinned-memory-pool-byte-size=1073741824",
    ]


def test_a_model_for_a_gpu_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "count_gpus", lambda: (0, "no device is visible"))
    with pytest.raises(
        StartError,
        match=r"^a, b: config.pbtxt asks for a GPU .*no device is visible\); build for the CPU with .*--device cpu$",
    ):
        gpus.gpu_options(configs(a="KIND_GPU", b="KIND_GPU", c="KIND_CPU"))


def test_a_machine_without_a_driver_has_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_name: str) -> None:
        raise OSError

    monkeypatch.setattr(gpus.ctypes, "CDLL", absent)
    assert gpus.count_gpus() == (0, "no driver (libcuda.so.1) is installed")
