"""What several tiers share: the untrained models, built once and kept under out/ between runs, and a server of them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from triton_process import TritonProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

# A shell lets its background jobs ignore SIGINT, and what the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def model_repository() -> Path:
    """A complete model repository with untrained weights; build_models.py rebuilds what is not up to date."""
    repository = ROOT / "out" / "test" / "model_repository"
    for name in ("preprocess", "postprocess", "encode_mask"):  # A build keeps configs that differ from ours.
        shutil.rmtree(repository / name, ignore_errors=True)
    command = [sys.executable, "build_models.py", "--weights", "none", "--model-repository", str(repository)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=500)
    return repository


@pytest.fixture(scope="session")
def server(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """The one server that every test of the served models shares."""
    with TritonProcess(model_repository, log=tmp_path_factory.mktemp("server") / "serve.log") as process:
        yield process
