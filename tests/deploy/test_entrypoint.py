"""The container's entry point: the options and the environment that it gives to a fake tritonserver."""

from __future__ import annotations

import re
import resource
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from wheel import on_path

from deeplabv3.cpus import NEEDED
from deeplabv3.embedded import gpus, layout, limits
from deeplabv3.repository.config import config_text, pb

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
ENTRYPOINT = ROOT / "deploy" / "entrypoint.sh"
UNLIMITED = resource.RLIM_INFINITY
CLOSED = "shared-memory,model-repository,trace,logging"


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n", encoding="utf-8")
    path.chmod(0o755)


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder for PATH with a tritonserver that prints its arguments and environment, and without nvidia-smi."""
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


@pytest.fixture
def shared_memory(tmp_path: Path) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    return folder


@pytest.fixture
def script(tmp_path: Path, shared_memory: Path) -> Path:
    """The entry point with a folder of the test instead of /dev/shm."""
    copy = tmp_path / "entrypoint.sh"
    copy.write_text(ENTRYPOINT.read_text().replace("/dev/shm/", f"{shared_memory}/"))  # noqa: S108 - what it replaces
    copy.chmod(0o755)
    return copy


def start(
    script: Path, programs: Path, repository: Path, *arguments: str, **variables: str
) -> tuple[dict[str, str], list[str]]:
    """Return the environment and the arguments that tritonserver got."""
    environment = on_path(programs) | {"DEEPLAB_MODEL_REPOSITORY": str(repository)} | variables
    shown = subprocess.run([script, *arguments], env=environment, capture_output=True, text=True, check=True).stdout
    before, _, after = shown.partition("\n\n")
    return dict(line.split("=", 1) for line in before.splitlines() if "=" in line), after.splitlines()


def test_the_policy_comes_first_and_the_deployments_own_options_last(
    script: Path, programs: Path, models: Path
) -> None:
    _, arguments = start(script, programs, models, "--exit-timeout-secs=30", "--log-verbose=1")
    assert arguments[:2] == [f"--model-repository={models}", "--model-control-mode=none"]
    assert arguments[-2:] == ["--exit-timeout-secs=30", "--log-verbose=1"]
    restricted = [argument.split(":deeplab-key=") for argument in arguments if "deeplab-key" in argument]
    assert [option for option, _ in restricted] == [
        f"--http-restricted-api={CLOSED}",
        f"--grpc-restricted-protocol={CLOSED}",
    ]
    assert all(re.fullmatch("[0-9a-f]{64}", key) for _, key in restricted)
    assert len(arguments) == 7


def test_every_start_has_a_key_of_its_own(script: Path, programs: Path, models: Path) -> None:
    found = [start(script, programs, models)[1] for _ in range(2)]
    first, second = ([argument for argument in arguments if "deeplab-key" in argument] for arguments in found)
    assert not set(first) & set(second)


def test_the_variables_are_those_of_the_embedded_server(script: Path, programs: Path, models: Path) -> None:
    environment, _ = start(script, programs, models)
    assert {name: environment[name] for name in layout.TUNING} == layout.TUNING
    environment, _ = start(script, programs, models, OMP_WAIT_POLICY="ACTIVE", OMP_NUM_THREADS="3")
    assert (environment["OMP_WAIT_POLICY"], environment["OMP_NUM_THREADS"]) == ("ACTIVE", "3")
    assert "BASH_ENV" not in start(script, programs, models, BASH_ENV="/dev/null")[0]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((8 << 20, UNLIMITED), limits.STACK_BYTES),
        ((UNLIMITED, UNLIMITED), limits.STACK_BYTES),
        ((8 << 20, 64 << 20), 64 << 20),
        ((2 * limits.STACK_BYTES, UNLIMITED), 2 * limits.STACK_BYTES),
    ],
    ids=["as usual", "unlimited", "hard limit", "larger"],
)
def test_stacks_are_those_of_the_embedded_server(
    script: Path, programs: Path, models: Path, before: tuple[int, int], after: int
) -> None:
    program(programs, "tritonserver", "ulimit -Ss")
    done = limited(script, programs, models, resource.RLIMIT_STACK, before)
    assert int(done.stdout) << 10 == after
    assert ("the stack of a thread is limited to 65536 KiB" in done.stderr) == (after < limits.STACK_BYTES)


def test_stacks_stay_where_address_space_counts(script: Path, programs: Path, models: Path) -> None:
    program(programs, "tritonserver", "ulimit -Ss")
    done = limited(script, programs, models, resource.RLIMIT_AS, (1 << 40, 1 << 40))
    assert int(done.stdout) << 10 == resource.getrlimit(resource.RLIMIT_STACK)[0]
    assert "no 'ulimit -v'" in done.stderr


def test_the_server_may_open_as_many_files_as_it_is_allowed(script: Path, programs: Path, models: Path) -> None:
    program(programs, "tritonserver", "ulimit -Sn")
    assert limited(script, programs, models, resource.RLIMIT_NOFILE, (128, 2000)).stdout == "2000\n"


def limited(
    script: Path, programs: Path, models: Path, kind: int, limit: tuple[int, int]
) -> subprocess.CompletedProcess[str]:
    """Return the output of the entry point and its child under a limit."""
    return subprocess.run(
        [script],
        env=on_path(programs) | {"DEEPLAB_MODEL_REPOSITORY": str(models)},
        preexec_fn=lambda: resource.setrlimit(kind, limit),
        capture_output=True,
        text=True,
        check=True,
    )


@pytest.mark.parametrize(
    ("files", "threads"),
    [
        ({"cpu.max": "150000 100000"}, "2"),
        ({"cpu.max": "max 100000"}, None),
        # cgroup v1
        ({"cpu/cpu.cfs_quota_us": "250000", "cpu/cpu.cfs_period_us": "100000"}, "3"),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_openmp_gets_the_cores_of_the_quota(
    script: Path, programs: Path, models: Path, files: dict[str, str], threads: str | None
) -> None:
    cgroup = script.with_name("cgroup")
    (cgroup / "cpu").mkdir(parents=True)
    for name, content in files.items():
        (cgroup / name).write_text(f"{content}\n")
    script.write_text(script.read_text().replace("/sys/fs/cgroup", str(cgroup)))
    environment, _ = start(script, programs, models)
    assert environment.get("OMP_NUM_THREADS") == threads
    environment, _ = start(script, programs, models, OMP_NUM_THREADS="7")
    assert environment["OMP_NUM_THREADS"] == "7"


def test_a_driver_that_hangs_does_not_hang_the_start(script: Path, programs: Path, models: Path) -> None:
    program(programs, "nvidia-smi", "exec sleep 600")
    assert " 30 nvidia-smi" in script.read_text()
    script.write_text(script.read_text().replace(" 30 nvidia-smi", " 0.2 nvidia-smi"))
    environment = on_path(programs) | {"DEEPLAB_MODEL_REPOSITORY": str(models)}
    started = subprocess.run([script], env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert "pool-byte-size" not in started.stdout
    assert "--model-control-mode=none" in started.stdout
    assert re.match(r"entrypoint\.sh: warning: nvidia-smi did not answer within 30 s", started.stderr)


def test_what_a_killed_server_left_in_shared_memory_goes_and_what_a_running_one_uses_stays(
    script: Path, programs: Path, models: Path, shared_memory: Path
) -> None:
    find = "for option; do [[ $option == *,shm-region-prefix-name=* ]] && region=${option##*=}; done"
    # It ends without removing its file, as if it were killed.
    program(programs, "tritonserver", f'{find}\ntouch "{shared_memory}/${{region}}0"\necho started\nread -r')
    environment = on_path(programs) | {"DEEPLAB_MODEL_REPOSITORY": str(models)}

    def files() -> set[str]:
        return {path.name for path in shared_memory.iterdir()}

    def start_and_end() -> set[str]:
        before = files()
        subprocess.run([script], env=environment, input=b"\n", stdout=subprocess.DEVNULL, check=True)
        return files() - before

    (shared_memory / "of-others").touch()
    with subprocess.Popen([script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == b"started\n"
        its = files() - {"of-others"}
        first = start_and_end()
        second = start_and_end()
        assert (len(its), len(first), len(second)) == (2, 2, 2)
        assert files() == {"of-others"} | its | second
        running.communicate(b"\n")
    third = start_and_end()
    assert files() == {"of-others"} | third


def test_each_gpu_gets_a_pool(script: Path, programs: Path, models: Path) -> None:
    listed = (
        "GPU 0: NVIDIA A100 (UUID: GPU-1)\\n  MIG 3g.20gb Device 0: (UUID: MIG-1)\\nGPU 1: NVIDIA A100 (UUID: GPU-2)"
    )
    program(programs, "nvidia-smi", f"[ $1 = --list-gpus ] && echo -e '{listed}'")
    _, arguments = start(script, programs, models)
    assert [argument for argument in arguments if "pool-byte-size" in argument] == [
        f"--cuda-memory-pool-byte-size=0:{gpus.POOL_BYTES}",
        f"--cuda-memory-pool-byte-size=1:{gpus.POOL_BYTES}",
        f"--pinned-memory-pool-byte-size={gpus.POOL_BYTES}",
    ]


def test_traces_go_to_the_address_of_a_variable(script: Path, programs: Path, models: Path) -> None:
    def traced(**variables: str) -> list[str]:
        _, arguments = start(script, programs, models, **variables)
        return [argument for argument in arguments if argument.startswith("--trace")]

    assert traced() == traced(DEEPLAB_TRACE_URL="", DEEPLAB_TRACE_RATE="5") == []
    url = "http://collector:4318/v1/traces"
    given = {"DEEPLAB_TRACE_URL": url, "HOSTNAME": "vision-7d9c5bb6f4-x2x9p"}
    options = [
        "mode=opentelemetry",
        "level=TIMESTAMPS",
        "rate=1",
        f"opentelemetry,url={url}",
        "opentelemetry,resource=service.name=deeplab-triton",
        "opentelemetry,resource=service.instance.id=vision-7d9c5bb6f4-x2x9p",
    ]
    assert traced(**given) == [f"--trace-config={option}" for option in options]
    changed = traced(**given, DEEPLAB_TRACE_RATE="100", OTEL_SERVICE_NAME="vision")
    assert {"--trace-config=rate=100", "--trace-config=opentelemetry,resource=service.name=vision"} <= set(changed)
    # Compose also passes on empty variables of .env.
    assert traced(**given, DEEPLAB_TRACE_RATE="", OTEL_SERVICE_NAME="") == traced(**given)


def test_an_empty_repository_is_refused(programs: Path, tmp_path: Path) -> None:
    environment = on_path(programs) | {"DEEPLAB_MODEL_REPOSITORY": str(tmp_path)}
    ended = subprocess.run([ENTRYPOINT], env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert re.fullmatch(f"entrypoint.sh: error: {tmp_path} has no models; .*build_models.py.*\n", ended.stderr)


def test_a_precision_is_refused_on_a_cpu_that_does_not_have_it(script: Path, programs: Path, models: Path) -> None:
    cpuinfo = script.with_name("cpuinfo")
    script.write_text(script.read_text().replace("/proc/cpuinfo", str(cpuinfo)))
    environment = on_path(programs) | {"DEEPLAB_MODEL_REPOSITORY": str(models)}

    def start(flags: Sequence[str], precision: str, kind: str = "KIND_CPU") -> subprocess.CompletedProcess[str]:
        cpuinfo.write_text(f"flags\t\t: fpu {' '.join(flags)}\n" * 2)  # of each core
        config = pb.ModelConfig()
        config.instance_group.add(kind=kind)
        config.parameters["precision"].string_value = precision
        (models / "some" / "config.pbtxt").write_text(config_text(config))
        return subprocess.run([script], env=environment, capture_output=True, text=True, check=False)

    assert start([], "fp32").returncode == 0
    for precision, groups in NEEDED.items():
        for flags in groups:
            assert start(flags, precision).returncode == 0
            lacking = start([*flags[1:], f"{flags[0]}x", "avx512f"], precision)
            assert lacking.returncode == 2
            assert f"some/config.pbtxt: {precision} needs a CPU with " in lacking.stderr
        assert start([], precision, "KIND_GPU").returncode == 0


def test_a_remote_repository_is_left_to_triton(script: Path, programs: Path) -> None:
    _, arguments = start(script, programs, Path("s3:"), DEEPLAB_MODEL_REPOSITORY="s3://bucket/models")
    assert "--model-repository=s3://bucket/models" in arguments
