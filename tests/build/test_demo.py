"""Which models demo.py builds, and where, without building them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import demo
from deeplabv3 import PRETRAINED, UNTRAINED, WeightsUnavailableError
from deeplabv3.embedded.launch import LaunchError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deeplabv3.building.plan import Plan

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("available", [True, False])
def test_untrained_models_change_no_file_of_the_checkout(
    given: bool,  # noqa: FBT001 - a parameter of the test
    available: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[tuple[Path, set[str]]] = []

    def build(repository: Path, plans: Sequence[Plan]) -> None:
        weights = {plan.source.label for plan in plans}
        built.append((repository, weights))
        assert [plan.variant for plan in plans] == ["resnet50", "resnet101"]
        if weights == {PRETRAINED} and not available:
            raise WeightsUnavailableError("no route to the weights")

    def serve(repository: Path, *, log: Path) -> None:
        raise LaunchError(f"served {repository} with the log {log}")

    monkeypatch.setattr(demo, "build", build)
    monkeypatch.setattr(demo, "RunningServer", serve)
    mine, output = tmp_path / "mine", tmp_path / "my dir ü"
    options = ["--model-repository", str(mine)] if given else []
    assert demo.main([*options, "--output", str(output)]) == 1
    trained = mine if given else ROOT / "model_repository"
    untrained = mine if given else output / "model_repository"
    assert built == [(trained, {PRETRAINED})] + ([] if available else [(untrained, {UNTRAINED})])


class Served:
    """Stands for a server that is ready; the process gets SIGTERM as soon as it is asked for."""

    stopped = False

    def __init__(self, repository: Path, *, log: Path) -> None:
        del repository, log

    def __enter__(self) -> Served:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        Served.stopped = True

    @property
    def grpc_url(self) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return ""


def test_sigterm_stops_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(_: Path, __: Sequence[Plan]) -> None:
        pass

    monkeypatch.setattr(demo, "build", build)
    monkeypatch.setattr(demo, "RunningServer", Served)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            demo.main(["--output", str(tmp_path)])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert Served.stopped


def test_an_output_that_cannot_be_written_to_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert demo.main(["--output", str(tmp_path / "file")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("demo.py: ")
    assert str(tmp_path / "file") in line


@pytest.mark.parametrize("script", ["build_models.py", "demo.py"])
def test_scripts_run_on_a_safe_path(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / script), "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
