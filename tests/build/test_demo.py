"""What demo.py builds and where, without building it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import build_models
import demo
from deeplabv3.embedded.launch import LaunchError

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("available", [True, False])
def test_untrained_models_change_no_file_of_the_checkout(
    given: bool,  # noqa: FBT001  a parameter of the test
    available: bool,  # noqa: FBT001  likewise
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built: list[tuple[str, bool]] = []

    def build(arguments: list[str]) -> int:
        options = build_models.parse_arguments(arguments)
        built.append((str(options.model_repository), options.weights == "none"))
        return 0 if available or options.weights == "none" else build_models.EXIT_WEIGHTS_UNAVAILABLE

    def serve(repository: Path, *, log: Path) -> None:
        raise LaunchError(f"served {repository} with the log {log}")

    monkeypatch.setattr(build_models, "main", build)
    monkeypatch.setattr(demo, "RunningServer", serve)
    mine, output = tmp_path / "mine", tmp_path / "my dir ü"
    options = ["--model-repository", str(mine)] if given else []
    assert demo.main([*options, "--output", str(output)]) == 1
    trained = mine if given else ROOT / "model_repository"
    untrained = mine if given else output / "model_repository"
    assert built == [(str(trained), False)] + ([] if available else [(str(untrained), True)])


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
