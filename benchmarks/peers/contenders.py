"""The servers that Triton is compared with, their settings, and the setups that were tried for each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from benchmarks import servers
from benchmarks.harness import ROOT
from benchmarks.load import Wire
from benchmarks.peers.service import Service, free_port
from deeplabv3.building.steps import STEPS
from deeplabv3.embedded.layout import TUNING
from deeplabv3.models.names import VARIANTS, core_name, ensemble_name
from deeplabv3.repository.config import read_config

if TYPE_CHECKING:
    import argparse
    from collections.abc import Generator, Mapping, Sequence

    from benchmarks.load import Picture
    from benchmarks.servers import Server

CoreName = Literal["model", "stand-in"]
TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Setup:
    """How a server uses the machine; `Service` has the meaning of each field."""

    workers: int
    threads: int
    batch: int = 1
    batch_wait: float = 0.0
    stages: bool = False

    def __str__(self) -> str:
        processes = f"{self.workers} + 1 + {self.workers} stages" if self.stages else f"{self.workers} x {self.threads}"
        return f"{processes}, batch {self.batch}"


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that Triton is compared with.

    Attributes:
        name: in the results.
        package: the distribution that must be installed.
        module: benchmarks.peers.MODULE starts the server and documents its setup.
        setups: the setups that were tried with each core, the best first.
        path: of the URL that takes pictures.
        programs: further programs that must be on PATH.
    """

    name: str
    package: str
    module: str
    setups: Mapping[CoreName, tuple[Setup, ...]]
    path: str = "/segment"
    programs: tuple[str, ...] = ()

    def missing(self, versions: Mapping[str, str]) -> str:
        """Return what is missing and how to install it; empty if the server can run."""
        if self.package not in versions:
            return "not installed: make bench-peers"
        absent = [program for program in self.programs if shutil.which(program) is None]
        return f"not installed: {', '.join(absent)}" if absent else ""

    @contextlib.contextmanager
    def start(
        self, settings: Service, repository: Path, pictures: Sequence[Picture], python: Path
    ) -> Generator[Server]:
        """Start the server with the steps of a model repository, in the Python environment that has it.

        Raises:
            LaunchError: the server ends, or does not answer with a mask.
        """
        # A short path, because Ray puts sockets there. The server may write anything into it.
        with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder:
            paths = [ROOT, *(repository / step / "1" for step in ("preprocess", "postprocess"))]
            environment = {
                **settings.write(Path(folder, "service.json")),
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "PATH": os.pathsep.join([str(python.absolute().parent), os.environ.get("PATH", "")]),
                "OMP_NUM_THREADS": str(settings.threads),
                **TUNING,
                "HOME": folder,
                "TMPDIR": folder,
            }
            command = [str(python.absolute()), "-m", f"benchmarks.peers.{self.module}"]
            wire = Wire(f"http://127.0.0.1:{settings.port}{self.path}")
            with servers.started(
                self.name, command, wire, pictures, environment=environment, folder=Path(folder)
            ) as server:
                yield server


ONE_WIDE, TWO_NARROW = Setup(1, 2), Setup(2, 1)
ONE_BATCHED, TWO_BATCHED = (Setup(*each, batch=8, batch_wait=0.005) for each in ((1, 2), (2, 1)))
# Separate processes for decoding and for masks, as in Triton's repository.
STAGES = Setup(2, 2, batch=8, batch_wait=0.001, stages=True)
SETUPS: Mapping[CoreName, tuple[Setup, ...]] = {
    "model": (ONE_WIDE, TWO_NARROW, ONE_BATCHED),
    "stand-in": (TWO_NARROW, ONE_WIDE, TWO_BATCHED),
}
PEERS = (
    Peer("LitServe", "litserve", "on_litserve", SETUPS),
    Peer("BentoML", "bentoml", "on_bentoml", {core: tried[:2] for core, tried in SETUPS.items()}),
    Peer("Ray Serve", "ray", "on_ray", SETUPS),
    Peer("mosec", "mosec", "on_mosec", {core: (*tried, STAGES) for core, tried in SETUPS.items()}),
    Peer("TorchServe", "torchserve", "on_torchserve", SETUPS, "/predictions/segment", ("java",)),
)


def service(repository: Path, model: str, setup: Setup, *, queue: int = 64) -> Service:
    """Return the settings of a peer that serves a model of a repository."""
    preprocess = read_config(repository / "preprocess" / "config.pbtxt")
    postprocess = read_config(repository / "postprocess" / "config.pbtxt")
    return Service(
        model=str((repository / model / "1" / "model.pt").resolve()),
        preprocess={name: value.string_value for name, value in preprocess.parameters.items()},
        class_count=next(tensor.dims[0] for tensor in postprocess.input if tensor.name == "LOGITS"),
        max_pixels=int(postprocess.parameters["max_pixels"].string_value),
        port=free_port(),
        workers=setup.workers,
        threads=setup.threads,
        batch=setup.batch,
        batch_wait=setup.batch_wait,
        stages=setup.stages,
        queue=queue,
        timeout=TIMEOUT_SECONDS,
    )


def link_models(repository: Path, folder: Path, variant: str) -> Path:
    """Make a repository with only one variant and its steps, because the other would use memory."""
    folder.mkdir()
    for model in (*STEPS, core_name(variant), ensemble_name(variant)):
        (folder / model).symlink_to(repository.resolve() / model)
    return folder


def installed(python: Path) -> dict[str, str]:
    """Return the version of each distribution in an environment; empty if the environment does not exist."""
    if not python.is_file():
        return {}
    code = (
        "import json, importlib.metadata as m; "
        "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
    )
    done = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True)  # noqa: S603 - ours
    return json.loads(done.stdout)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options for the real model and for the environment of the peers."""
    parser.add_argument("--variant", choices=VARIANTS, default="resnet50", help="the real model (default: %(default)s)")
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=ROOT / "model_repository",
        metavar="DIR",
        help="with the real model (default: model_repository)",
    )
    parser.add_argument(
        "--peers-python",
        type=Path,
        default=ROOT / ".venv-peers" / "bin" / "python",
        metavar="FILE",
        help="Python of the environment with the other servers (default: .venv-peers/bin/python)",
    )


def check_model(parser: argparse.ArgumentParser, options: argparse.Namespace, *, otherwise: str) -> None:
    """Exit with an error if the model is not built."""
    model = options.model_repository / core_name(options.variant) / "1" / "model.pt"
    if not model.is_file():
        build = f"python build_models.py --variant {options.variant} --weights none --model-repository DIR"
        parser.error(f"{model} does not exist; run `{build}` and pass --model-repository DIR, or {otherwise}")
