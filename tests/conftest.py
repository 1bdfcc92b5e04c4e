"""Fixtures of several tiers: untrained models, built once and kept under out/, two kinds of toy models, and servers."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from triton_process import TritonProcess
from xdist.scheduler import LoadScopeScheduling

from deeplabv3.repository.paths import model_file

if TYPE_CHECKING:
    from collections.abc import Iterator

    from triton_process import Serving
    from xdist.remote import Producer

# A shell lets its background jobs ignore SIGINT, and what the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# SIGTERM ends pytest as Ctrl-C does: the fixtures stop their servers.
signal.signal(signal.SIGTERM, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


# These start their own servers; the other files of tests/server share servers.
_OWN_SERVERS = ("custom_classes", "evaluate", "gpu_benchmark", "notebook", "own_model", "pipeline_benchmark", "serve")


class _ByFile(LoadScopeScheduling):
    """One worker of xdist runs all tests that share servers or the built models; the other files stay whole."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        own = file.removeprefix("tests/server/test_").removesuffix(".py") in _OWN_SERVERS
        shares = (file.startswith("tests/server/") and not own) or file == "tests/build/test_build_models.py"
        return "server" if shares else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    return _ByFile(config, log)


def pytest_runtest_setup() -> None:
    """Set it again: a command that a test called in this process may have changed it."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@pytest.fixture(scope="session")
def model_repository() -> Path:
    """A complete model repository with untrained weights; build_models.py rebuilds what is not up to date."""
    repository = ROOT / "out" / "test" / "model_repository"
    command = [sys.executable, "build_models.py", "--weights", "none", "--model-repository", str(repository)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=500)
    return repository


@pytest.fixture(scope="session")
def server(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """The one server of the real network; where its arithmetic does not matter, color_server answers at once."""
    with TritonProcess(model_repository, log=tmp_path_factory.mktemp("server") / "serve.log") as process:
        yield process


@pytest.fixture(scope="session")
def color_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of `build_models.py --weights none`, but with core models that tell classes by color."""
    from benchmarks import toy  # noqa: PLC0415 - torch
    from deeplabv3 import VARIANTS, WeightsSource  # noqa: PLC0415 - torch
    from deeplabv3.building import assembly, tracing  # noqa: PLC0415 - torch
    from deeplabv3.building.model_file import record_of  # noqa: PLC0415 - torch
    from deeplabv3.building.plan import Plan  # noqa: PLC0415 - torch

    repository = tmp_path_factory.mktemp("color") / "models"
    plans = [Plan(variant, WeightsSource("none")) for variant in VARIANTS]
    assembly.build(repository, plans, configs_only=True)
    core = toy.traced(toy.ByColor())
    for plan in plans:
        for name in plan.models:  # those for direct callers are never read, because no test calls them
            file = model_file(repository, name)
            file.parent.mkdir()
            tracing.save(core, file, record_of(plan).as_extra_files())
    return repository


@pytest.fixture(scope="session")
def color_server(color_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """The one server of it: the default settings, 520 x 520, and both ensembles, whose masks are equal."""
    with TritonProcess(color_repository, log=tmp_path_factory.mktemp("color-server") / "serve.log") as process:
        yield process


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    with contextlib.ExitStack() as stack:
        numbers = iter(range(100))

        def start(model_repository: Path, *options: str) -> TritonProcess:
            log = tmp_path / f"serve-{next(numbers)}.log"
            return stack.enter_context(TritonProcess(model_repository, log=log, options=options))

        yield start


@pytest.fixture(scope="session")
def toy_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose core model answers at once and whose masks are known."""
    from benchmarks import toy  # noqa: PLC0415 - torch, which the unit tests do without

    return toy.build(tmp_path_factory.mktemp("toy") / "models")


@pytest.fixture(scope="session")
def toy_server(toy_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """The one server of it that all tests share."""
    with TritonProcess(toy_repository, log=tmp_path_factory.mktemp("toy-server") / "serve.log") as process:
        yield process
