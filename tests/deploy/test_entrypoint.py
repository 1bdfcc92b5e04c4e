"""The container's entry point: what it asks of tritonserver, without one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from wheel import on_path

import serve
from embedded import gpus

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
ENTRYPOINT = ROOT / "deploy" / "entrypoint.sh"
CLOSED = "shared-memory,model-repository,trace,logging"


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH with a tritonserver that shows what it was started with, and no nvidia-smi."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "tritonserver", 'env; echo; printf "%s\\n" "$@"')
    program(folder, "nvidia-smi", "exit 9")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> Path:
    config = tmp_path / "models" / "some" / "config.pbtxt"
    config.parent.mkdir(parents=True)
    config.touch()
    return tmp_path / "models"


def start(
    programs: Path, repository: Path, *arguments: str, script: Path = ENTRYPOINT, **variables: str
) -> tuple[dict[str, str], list[str]]:
    """Return the environment and the arguments that tritonserver got."""
    environment = on_path(programs) | {"DEEPLAB_MODEL_REPOSITORY": str(repository)} | variables
    shown = subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=True).stdout
    before, _, after = shown.partition("\n\n")
    return dict(line.split("=", 1) for line in before.splitlines() if "=" in line), after.splitlines()


def test_the_policy_comes_first_and_the_deployments_own_options_last(programs: Path, models: Path) -> None:
    _, arguments = start(programs, models, "--exit-timeout-secs=30", "--log-verbose=1")
    assert arguments[:2] == [f"--model-repository={models}", "--model-control-mode=none"]
    assert arguments[-2:] == ["--exit-timeout-secs=30", "--log-verbose=1"]
    restricted = [argument.split(":deeplab-key=") for argument in arguments if "deeplab-key" in argument]
    assert [option for option, _ in restricted] == [
        f"--http-restricted-api={CLOSED}",
        f"--grpc-restricted-protocol={CLOSED}",
    ]
    assert all(re.fullmatch("[0-9a-f]{64}", key) for _, key in restricted)
    assert len(arguments) == 6


def test_every_start_has_a_key_of_its_own(programs: Path, models: Path) -> None:
    first, second = start(programs, models)[1], start(programs, models)[1]
    assert first != second


def test_the_variables_are_those_of_the_embedded_server(programs: Path, models: Path) -> None:
    environment, _ = start(programs, models)
    assert {name: environment[name] for name in serve.TUNING} == serve.TUNING
    environment, _ = start(programs, models, OMP_WAIT_POLICY="ACTIVE", OMP_NUM_THREADS="3")
    assert (environment["OMP_WAIT_POLICY"], environment["OMP_NUM_THREADS"]) == ("ACTIVE", "3")


@pytest.mark.parametrize(("quota", "threads"), [("150000 100000", "2"), ("max 100000", None)])
def test_openmp_gets_the_cores_of_the_quota(
    programs: Path, models: Path, tmp_path: Path, quota: str, threads: str | None
) -> None:
    cgroup = tmp_path / "cpu.max"
    cgroup.write_text(f"{quota}\n")
    there = tmp_path / "entrypoint.sh"
    there.write_text(ENTRYPOINT.read_text().replace("/sys/fs/cgroup/cpu.max", str(cgroup)))
    there.chmod(0o755)
    environment, _ = start(programs, models, script=there)
    assert environment.get("OMP_NUM_THREADS") == threads
    environment, _ = start(programs, models, script=there, OMP_NUM_THREADS="7")
    assert environment["OMP_NUM_THREADS"] == "7"


def test_each_gpu_gets_a_pool(programs: Path, models: Path) -> None:
    listed = (
        "GPU 0: NVIDIA A100 (UUID: GPU-1)\\n  MIG 3g.20gb Device 0: (UUID: MIG-1)\\nGPU 1: NVIDIA A100 (UUID: GPU-2)"
    )
    program(programs, "nvidia-smi", f"[ $1 = --list-gpus ] && echo -e '{listed}'")
    _, arguments = start(programs, models)
    assert [argument for argument in arguments if "pool-byte-size" in argument] == [
        f"--cuda-memory-pool-byte-size=0:{gpus.POOL_BYTES}",
        f"--cuda-memory-pool-byte-size=1:{gpus.POOL_BYTES}",
        f"--pinned-memory-pool-byte-size={gpus.POOL_BYTES}",
    ]


def test_an_empty_repository_is_refused(programs: Path, tmp_path: Path) -> None:
    environment = on_path(programs) | {"DEEPLAB_MODEL_REPOSITORY": str(tmp_path)}
    ended = subprocess.run([ENTRYPOINT], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert re.fullmatch(f"entrypoint.sh: error: {tmp_path} has no models; .*build_models.py.*\n", ended.stderr)


def test_a_remote_repository_is_left_to_triton(programs: Path) -> None:
    _, arguments = start(programs, Path("s3:"), DEEPLAB_MODEL_REPOSITORY="s3://bucket/models")
    assert "--model-repository=s3://bucket/models" in arguments
