"""How serve.py raises and reports the limits of its process: stacks, open files, space in /dev/shm."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deeplabv3.embedded import limits
from deeplabv3.repository.config import read_config

pytestmark = pytest.mark.unit
pb: Any = model_config_pb2

ROOT = Path(__file__).resolve().parents[2]
MIB = 1 << 20
UNLIMITED = resource.RLIM_INFINITY
RAISE = """
import json, resource
from deeplabv3.embedded.limits import raise_limits
warnings = list(raise_limits())
print(json.dumps([warnings, resource.getrlimit(resource.RLIMIT_STACK), resource.getrlimit(resource.RLIMIT_NOFILE)]))
"""


def raised(kind: int, soft: int, hard: int) -> tuple[list[str], list[int], list[int]]:
    """Return the warnings and the limits of stack and files of a process that starts under one limit."""

    def limit() -> None:
        resource.setrlimit(kind, (soft, hard))

    command = [sys.executable, "-c", RAISE]
    done = subprocess.run(command, cwd=ROOT, preexec_fn=limit, capture_output=True, text=True, check=True)
    warnings, stack, files = json.loads(done.stdout)
    return warnings, stack, files


@pytest.mark.parametrize("soft", [8 * MIB, UNLIMITED], ids=["as usual", "unlimited, which is 2 MiB for a thread"])
def test_stacks_hold_the_largest_request(soft: int) -> None:
    warnings, stack, _ = raised(resource.RLIMIT_STACK, soft, UNLIMITED)
    assert warnings == []
    assert stack == [limits.STACK_BYTES, UNLIMITED]
    assert stack[0] >= 2 * 160 * MIB


def test_a_larger_stack_stays() -> None:
    warnings, stack, _ = raised(resource.RLIMIT_STACK, 2 * limits.STACK_BYTES, UNLIMITED)
    assert warnings == []
    assert stack == [2 * limits.STACK_BYTES, UNLIMITED]


def test_a_hard_limit_of_the_stack_is_used_up_and_named() -> None:
    warnings, stack, _ = raised(resource.RLIMIT_STACK, 8 * MIB, 64 * MIB)
    assert stack == [64 * MIB, 64 * MIB]
    (warning,) = warnings
    assert "limited to 67 MB, so one form-encoded request of 34 MB would crash the server" in warning
    assert "raise `ulimit -Hs` to 1966080" in warning


def test_stacks_stay_where_address_space_counts() -> None:
    warnings, stack, _ = raised(resource.RLIMIT_AS, 1 << 40, 1 << 40)
    assert stack == list(resource.getrlimit(resource.RLIMIT_STACK))
    (warning,) = warnings
    assert "remove the limit on the address space (`ulimit -v`)" in warning


def test_the_server_may_open_as_many_files_as_it_is_allowed() -> None:
    assert raised(resource.RLIMIT_NOFILE, 128, 2000)[::2] == ([], [2000, 2000])
    warnings, _, files = raised(resource.RLIMIT_NOFILE, 64, 128)
    assert files == [128, 128]
    (warning,) = warnings
    assert "only 128 files may be open" in warning


@pytest.fixture
def committed() -> dict[str, Any]:
    """The configs of the default build."""
    return {path.parent.name: read_config(path) for path in (ROOT / "model_repository").glob("*/config.pbtxt")}


def test_dockers_shared_memory_is_too_small_for_the_largest_picture(
    monkeypatch: pytest.MonkeyPatch, committed: dict[str, Any]
) -> None:
    room(monkeypatch, 64 * MIB)
    (warning,) = limits.check_shared_memory(committed)
    # Ten instances, two of preprocess and of postprocess: 10 * 3.1 MB, and 2 * 3 + 2 * 2 + 1 + 1 bytes a pixel.
    assert "/dev/shm has 67 MB free, but the models need 631 MB for pictures of 50 megapixels" in warning  # noqa: S108
    assert "pictures above 3.0 megapixels fail" in warning
    assert "--shm-size" in warning


def test_a_limit_that_is_no_number_is_left_to_its_model(
    monkeypatch: pytest.MonkeyPatch, committed: dict[str, Any]
) -> None:
    committed["preprocess"].parameters["max_pixels"].string_value = "many"
    room(monkeypatch, 64 * MIB)
    (warning,) = limits.check_shared_memory(committed)
    assert "for pictures of 50 megapixels" in warning


def test_enough_shared_memory_passes(monkeypatch: pytest.MonkeyPatch, committed: dict[str, Any]) -> None:
    room(monkeypatch, 650_000_000)
    assert list(limits.check_shared_memory(committed)) == []


def test_other_models_need_what_they_start_with(monkeypatch: pytest.MonkeyPatch) -> None:
    config: Any = text_format.Parse("instance_group [{ count: 22 }]", pb.ModelConfig())
    room(monkeypatch, 64 * MIB)
    (warning,) = limits.check_shared_memory({"other": config})
    assert "need 69 MB" in warning
    assert "requests fail" in warning


def room(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let every file system have so much free."""

    def answer(_path: object) -> os.statvfs_result:
        return os.statvfs_result((4096, 4096, 0, 0, free // 4096, 0, 0, 0, 0, 255))

    monkeypatch.setattr(os, "statvfs", answer)
