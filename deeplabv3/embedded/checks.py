"""Checks before the embedded server starts: platform, packages, model repository, ports."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import platform
import random
import shlex
import socket
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deeplabv3.cpus import missing_for
from deeplabv3.embedded.builds import check_builds, is_core, parameter_of
from deeplabv3.embedded.errors import StartError
from deeplabv3.embedded.gpus import runs_on_gpu
from deeplabv3.errors import RepositoryError
from deeplabv3.repository.paths import model_file

if TYPE_CHECKING:
    from collections.abc import Iterator

STUB = "triton_python_backend_stub"


@dataclass(frozen=True, slots=True)
class Address:
    """The host and the ports on which the three services listen."""

    host: str
    http: int
    grpc: int
    metrics: int

    @property
    def local(self) -> str:
        """The host to which a client on this machine connects."""
        return "127.0.0.1" if self.host == "0.0.0.0" else self.host  # noqa: S104 - compared, not bound

    def ready_line(self) -> str:
        """Return the line that announces the addresses of the services."""
        host = self.local
        return f"READY grpc://{host}:{self.grpc} http://{host}:{self.http} http://{host}:{self.metrics}/metrics"


def check_environment() -> Path:
    """Return the wheel's tritonserver folder; raise StartError if the machine or the environment cannot run it."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        raise StartError(
            f"the embedded server runs on Linux x86_64 only, not on {platform.system()} {platform.machine()}; "
            "use the Triton container there"
        )
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise StartError(
            "nvidia-pytriton is not installed in this environment; use .venv/bin/python, which `make demo` sets up, "
            "or run: pip install nvidia-pytriton==0.7.0"
        )
    try:
        numpy_version = importlib.metadata.version("numpy")
    except importlib.metadata.PackageNotFoundError:
        raise StartError("numpy is not installed in this environment; run: pip install 'numpy<2'") from None
    if int(numpy_version.split(".")[0]) >= 2:  # noqa: PLR2004 - the stub was not built for this major version
        raise StartError(
            f"numpy {numpy_version} corrupts tensors in this server's Python backend; run: pip install 'numpy<2'"
        )
    server = Path(spec.origin).parent / "tritonserver"
    if not stub_of(server).is_file():
        have = ", ".join(sorted(path.parent.name for path in server.glob(f"python_backend_stubs/*/{STUB}")))
        raise StartError(
            f"nvidia-pytriton does not support Python {sysconfig.get_python_version()}; use one of: {have}"
        )
    return server


def check_temporary_folder() -> None:
    """Raise StartError if the shell that starts the stubs would split the name of the temporary folder."""
    folder = tempfile.gettempdir()
    if shlex.quote(folder) != folder:
        raise StartError(
            f"the temporary folder {folder!r} has characters that a shell interprets; set TMPDIR to another folder"
        )


def stub_of(server: Path) -> Path:
    """Return the path of the wheel's stub for the running Python version."""
    return server / "python_backend_stubs" / sysconfig.get_python_version() / STUB


def libpython_folder() -> Path:
    """Return the folder of libpython, which the stub embeds; raise StartError if it was not found."""
    name = f"libpython{sysconfig.get_python_version()}.so.1.0"
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    for folder in (sysconfig.get_config_var("LIBDIR"), f"{sys.base_prefix}/lib", f"/usr/lib/{multiarch}"):
        if folder and (Path(folder) / name).is_file():
            return Path(folder)
    raise StartError(
        f"{name} was not found; use a Python that was built with --enable-shared, or install your "
        "distribution's libpython package"
    )


def check_repository(repository: Path) -> dict[str, Any]:
    """Return the configs by model; raise StartError for models that Triton would refuse or serve under a wrong name."""
    from deeplabv3.repository.config import read_config  # noqa: PLC0415 - needs protobuf, a dependency of the wheel

    if not repository.is_dir():
        state = "is not a directory" if repository.exists() else "does not exist"
        raise StartError(f"the model repository {repository} {state}; give one with --model-repository")
    folders = sorted(path for path in repository.iterdir() if path.is_dir())
    if not folders:
        raise StartError(f"the model repository {repository} has no models; give another with --model-repository")
    for folder in folders:
        if not (folder / "config.pbtxt").is_file():
            raise StartError(
                f"{folder} has no config.pbtxt, without which Triton exits; add the file or remove the folder"
            )
    try:
        configs = {folder.name: read_config(folder / "config.pbtxt") for folder in folders}
    except RepositoryError as error:
        raise StartError(str(error)) from error
    for name, config in configs.items():
        script = config.default_model_filename or "model.py"
        # 2.51 neither loads such a model nor exits; after 200 s it had done neither.
        if config.backend == "python" and not any((repository / name).glob(f"[0-9]*/{script}")):
            raise StartError(f"{repository / name / '1' / script} is missing; restore it or remove {repository / name}")
        if is_core(config) and not model_file(repository, name).is_file():
            raise StartError(
                f"{model_file(repository, name)} is missing; run .venv/bin/python build_models.py --model-repository "
                f"{shlex.quote(str(repository))}, with the options of earlier builds if there were any, or serve what "
                "`make demo` builds without a network: --model-repository out/demo/model_repository"
            )
    check_queues(configs)
    check_precisions(configs)
    check_builds(repository, configs)
    return configs


def check_queues(configs: dict[str, Any]) -> None:
    """Raise StartError if a model's queue has a size or time limit, with which the throughput of 2.51 falls to zero.

    triton-inference-server/server#8870. Before 26.03, a step that rejects a request also leaves the ensemble's request
    without an answer, triton-inference-server/core#466.
    """
    for name, config in configs.items():
        batching = config.dynamic_batching
        if any(
            policy.ByteSize() for policy in (batching.default_queue_policy, *batching.priority_queue_policy.values())
        ):
            raise StartError(
                f"{name}: config.pbtxt limits the queue, and tritonserver 2.51 loses requests and stalls with such a "
                "limit; run build_models.py without --max-queue-size, or use the Triton container"
            )


def check_precisions(configs: dict[str, Any], cpuinfo: Path = Path("/proc/cpuinfo")) -> None:
    """Raise StartError if this CPU cannot compute in the precision of a model, or would silently return wrong masks."""
    for name, config in configs.items():
        precision = parameter_of("precision", config) or ""
        if not runs_on_gpu(config) and (missing := missing_for(precision, cpuinfo)):
            raise StartError(
                f"{name}: {missing}; run build_models.py with --precision fp32, or serve on another machine"
            )


def choose_address(host: str, *, http: int, grpc: int, metrics: int) -> Address:
    """Return the address with a free port for each 0; raise StartError if a port is not available."""
    check_free(host, 0, "--host")
    ports = {"--http-port": http, "--grpc-port": grpc, "--metrics-port": metrics}
    for option, port in ports.items():
        same = next((other for other in ports if other != option and ports[other] == port != 0), None)
        if same:
            raise StartError(f"{option} and {same} are both {port}; give each its own port")
        if port:
            check_free(host, port, option)
    taken = {port for port in ports.values() if port}
    free = free_ports(host, taken)
    return Address(host, *(port or next(free) for port in ports.values()))


def check_free(host: str, port: int, option: str) -> None:
    """Raise StartError if a port is not available; the option is for the message."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen()
        except OSError as error:
            raise StartError(f"cannot listen on {host}:{port} ({error.strerror}); give another {option}") from error


def free_ports(host: str, taken: set[int]) -> Iterator[int]:
    """Yield ports that are free now, below the range that the kernel uses for outgoing connections."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text(encoding="ascii").split()[0])
    for port in random.SystemRandom().sample(range(10_000, max(low, 20_000)), 10_000):
        if port not in taken:
            with contextlib.suppress(StartError):
                check_free(host, port, "")
                yield port
    raise StartError(f"no free port found on {host}; give --http-port, --grpc-port and --metrics-port")
