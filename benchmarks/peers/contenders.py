"""The servers that are compared: how each is started, and the setups that were tried for it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from benchmarks.peers.wire import Wire
from deeplabv3.embedded.layout import TUNING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from benchmarks.peers.service import Service

ROOT = Path(__file__).resolve().parents[2]
MODULES = "benchmarks.peers"
CoreName = Literal["model", "stand-in"]
NONE: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Setup:
    """How a server uses the machine; see Service."""

    workers: int
    threads: int
    batch: int = 1
    batch_wait: float = 0.0
    stages: bool = False

    def __str__(self) -> str:
        kind = "stages" if self.stages else f"{self.workers} worker{'s' * (self.workers > 1)}"
        return f"{kind} x {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}"


@dataclass(frozen=True, slots=True)
class Place:
    """What a server is started with.

    Attributes:
        python: of the environment that has the peers.
        folder: for whatever the server writes; short, for Ray puts sockets into it.
        repository: the model repository.
        ensemble: the model in it that Triton is asked for.
        service: what the peers are told.
    """

    python: Path
    folder: Path
    repository: Path
    ensemble: str
    service: Service


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started and asked."""

    command: list[str]
    wire: Wire
    environment: Mapping[str, str]
    stop: signal.Signals = signal.SIGTERM


@dataclass(frozen=True, slots=True)
class Contender:
    """A server.

    Attributes:
        name: as shown.
        package: the distribution whose version is shown; it must be installed.
        programs: what must be on the PATH besides.
        setups: what was tried with each core, the best first.
        launch: makes the folder ready and tells how to start.
    """

    name: str
    package: str
    programs: tuple[str, ...]
    setups: Mapping[CoreName, tuple[Setup, ...]]
    launch: Callable[[Place], Launch]


def free_ports(count: int) -> list[int]:
    """Return so many ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [opened.getsockname()[1] for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def peer_environment(place: Place) -> dict[str, str]:
    """Return what all peers are given: where the code is, what serve.py sets, and a folder for all that they write."""
    folder = str(place.folder)
    paths = [ROOT, *(place.repository / step / "1" for step in ("preprocess", "postprocess"))]
    return {
        **place.service.write(place.folder / "service.json"),
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "PATH": os.pathsep.join([str(place.python.parent), os.environ.get("PATH", "")]),
        "OMP_NUM_THREADS": str(place.service.threads),
        **TUNING,
        "HOME": folder,
        "TMPDIR": folder,
    }


def launch_triton(place: Place) -> Launch:
    """Start the embedded server as the README does."""
    http, grpc, metrics = place.service.port, *free_ports(2)
    ports = [f"--http-port={http}", f"--grpc-port={grpc}", f"--metrics-port={metrics}"]
    return Launch(
        [sys.executable, str(ROOT / "serve.py"), "--model-repository", str(place.repository), *ports],
        Wire(f"http://127.0.0.1:{http}/v2/models/{place.ensemble}/infer", tensors=True),
        {"TMPDIR": str(place.folder)},
    )


def launch_module(
    module: str, *, variables: Mapping[str, str] = NONE, stop: signal.Signals = signal.SIGTERM
) -> Callable[[Place], Launch]:
    """Return how to start a peer that is a Python program of its own."""

    def launch(place: Place) -> Launch:
        return Launch(
            [str(place.python), "-m", f"{MODULES}.{module}"],
            Wire(f"http://127.0.0.1:{place.service.port}/segment"),
            peer_environment(place) | dict(variables),
            stop,
        )

    return launch


def launch_bentoml(place: Place) -> Launch:
    """Start `bentoml serve`."""
    port = str(place.service.port)
    target = f"{MODULES}.bentoml_app:Segmenter"
    return Launch(
        [str(place.python), "-m", "bentoml", "serve", target, "--host", "127.0.0.1", "--port", port],
        Wire(f"http://127.0.0.1:{port}/segment"),
        peer_environment(place) | {"BENTOML_HOME": str(place.folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"},
    )


def launch_torchserve(place: Place) -> Launch:
    """Package the handler, then start `torchserve`."""
    service, folder, scripts = place.service, place.folder, place.python.parent
    environment = peer_environment(place) | {"LOG_LOCATION": str(folder), "METRICS_LOCATION": str(folder)}
    (folder / "store").mkdir()
    (folder / "model-config.yaml").write_text(
        f"minWorkers: {service.workers}\n"
        f"maxWorkers: {service.workers}\n"
        f"batchSize: {service.batch}\n"
        f"maxBatchDelay: {max(1, round(service.batch_wait * 1000))}\n"
        f"responseTimeout: {round(service.timeout)}\n",
        encoding="utf-8",
    )
    management, metrics, grpc, grpc_management = free_ports(4)
    (folder / "config.properties").write_text(
        f"inference_address=http://127.0.0.1:{service.port}\n"
        f"management_address=http://127.0.0.1:{management}\n"
        f"metrics_address=http://127.0.0.1:{metrics}\n"
        f"grpc_inference_address=127.0.0.1\ngrpc_inference_port={grpc}\n"
        f"grpc_management_address=127.0.0.1\ngrpc_management_port={grpc_management}\n"
        f"job_queue_size={service.queue}\n"
        f"default_response_timeout={round(service.timeout)}\n"
        "disable_token_authorization=true\n",
        encoding="utf-8",
    )
    packaged = ["--model-name", "segment", "--version", "1.0", "--serialized-file", service.model]
    handler = ["--handler", str(Path(__file__).with_name("torchserve_handler.py"))]
    config = ["--config-file", str(folder / "model-config.yaml")]
    store = ["--export-path", str(folder / "store"), "--archive-format", "no-archive"]
    subprocess.run(  # noqa: S603  TorchServe's own program
        [str(scripts / "torch-model-archiver"), *packaged, *handler, *config, *store],
        env={**os.environ, **environment},
        check=True,
        capture_output=True,
    )
    options = ["--ts-config", str(folder / "config.properties"), "--model-store", str(folder / "store")]
    return Launch(
        [str(scripts / "torchserve"), "--start", "--foreground", "--ncs", *options, "--models", "segment=segment"],
        Wire(f"http://127.0.0.1:{service.port}/predictions/segment"),
        environment,
    )


RAY_VARIABLES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(),
}
ONE_WIDE, TWO_NARROW = Setup(1, 2), Setup(2, 1)
ONE_BATCHED = Setup(1, 2, batch=8, batch_wait=0.005)
TWO_BATCHED = Setup(2, 1, batch=8, batch_wait=0.005)
USUAL: Mapping[CoreName, tuple[Setup, ...]] = {
    "model": (ONE_WIDE, TWO_NARROW, ONE_BATCHED),
    "stand-in": (TWO_NARROW, ONE_WIDE, TWO_BATCHED),
}
# One more place to decode and one to make masks, as in Triton's repository.
STAGES = Setup(2, 2, batch=8, batch_wait=0.001, stages=True)
CONTENDERS = (
    # Its settings are those of model_repository, whatever the core.
    Contender(
        "Triton",
        "nvidia-pytriton",
        (),
        {"model": (Setup(2, 2, batch=8, stages=True),), "stand-in": (Setup(2, 2, batch=8, stages=True),)},
        launch_triton,
    ),
    Contender("LitServe", "litserve", (), USUAL, launch_module("litserve_app", stop=signal.SIGINT)),
    Contender("BentoML", "bentoml", (), {core: tried[:2] for core, tried in USUAL.items()}, launch_bentoml),
    Contender("Ray Serve", "ray", (), USUAL, launch_module("ray_app", variables=RAY_VARIABLES)),
    Contender(
        "mosec", "mosec", (), {core: (*tried, STAGES) for core, tried in USUAL.items()}, launch_module("mosec_app")
    ),
    Contender("TorchServe", "torchserve", ("java",), USUAL, launch_torchserve),
)


def installed(python: Path) -> dict[str, str]:
    """Return the version of each distribution in an environment; nothing where there is no such environment."""
    if not python.is_file():
        return {}
    code = (
        "import json, importlib.metadata as m; "
        "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
    )
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)  # noqa: S603
    return json.loads(done.stdout)


def missing(contender: Contender, versions: Mapping[str, str]) -> str:
    """Return what a contender lacks and how to get it; nothing where it can run."""
    if contender.package not in versions:
        return "not installed: make bench-peers"
    absent = [program for program in contender.programs if shutil.which(program) is None]
    return f"not installed: {', '.join(absent)}" if absent else ""
