"""The commands of the checkout where what they need is not installed: one line that says what to do."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import tomli

from deeplabv3 import environment
from deeplabv3.embedded import checks, interpreter
from deeplabv3.embedded.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
# The interpreter behind the environment; with -S it finds no installed package.
BARE = [str(Path(sys.executable).resolve()), "-S"]
COMMANDS = [
    ["serve.py"],
    ["build_models.py"],
    ["demo.py"],
    ["-m", "deeplabv3.evaluation"],
    ["-m", "load_tests.laptop"],
    ["-m", "load_tests.capacity"],
    ["-m", "load_tests.tuning"],
    ["-m", "benchmarks.model"],
    ["-m", "benchmarks.scaling"],
    ["-m", "benchmarks.pipeline"],
    ["-m", "benchmarks.client"],
    ["-m", "benchmarks.peers"],
    ["-m", "benchmarks.gpu"],
]


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout in a folder with a name that a shell would take apart, without an environment."""
    root = tmp_path_factory.mktemp("checkouts") / "my dir ü"
    for folder in ("deeplabv3", "load_tests", "benchmarks"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for script in ("serve.py", "build_models.py", "demo.py"):
        shutil.copy(ROOT / script, root)
    return root


@pytest.fixture
def checkout(code: Path) -> Path:
    shutil.rmtree(code / ".venv", ignore_errors=True)
    (code / "joblib.py").unlink(missing_ok=True)
    return code


def run(
    command: Sequence[str], folder: Path, *, python: Sequence[str] = BARE, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", **variables}
    return subprocess.run(
        [*python, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_missing_package_is_one_line_with_the_remedy(checkout: Path, command: list[str]) -> None:
    done = run(command, checkout)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"{command[-1].split('/')[-1]}: ")
    assert line.endswith(f" is not installed; run `make demo` once, then .venv/bin/python {' '.join(command)}")


@pytest.mark.parametrize("script", ["serve.py", "build_models.py", "demo.py"])
def test_scripts_find_the_checkout_on_a_safe_path(checkout: Path, script: str) -> None:
    done = run([script], checkout, PYTHONSAFEPATH="1")
    assert done.returncode == 2
    assert " is not installed; run `make demo` once" in done.stderr


def test_a_script_runs_on_a_safe_path() -> None:
    done = run(["serve.py", "--help"], ROOT, python=[sys.executable], PYTHONSAFEPATH="1")
    assert done.returncode == 0, done.stderr


def test_the_remedy_fits_what_is_there(checkout: Path) -> None:
    (checkout / ".venv").mkdir()
    assert "run `make demo` once" in run(["serve.py"], checkout).stderr, "nothing finished it"
    subprocess.run([BARE[0], "-m", "venv", "--without-pip", checkout / ".venv"], check=True)
    (checkout / ".venv" / "installed").touch()
    assert "joblib is not installed; run .venv/bin/python serve.py\n" in run(["serve.py"], checkout).stderr
    inside = [str(checkout / ".venv" / "bin" / "python")]
    done = run(["serve.py"], checkout, python=inside)
    assert "joblib is not installed; run `rm -r .venv`, then `make demo`\n" in done.stderr
    done = run(["-m", "benchmarks.model"], checkout, python=inside)
    assert "torch is not installed; run `make .venv/bench` once\n" in done.stderr


def test_from_another_folder_the_remedy_has_the_whole_path(checkout: Path, tmp_path: Path) -> None:
    script = checkout / "serve.py"
    (line,) = run([str(script)], tmp_path).stderr.splitlines()
    assert line.startswith("serve.py: joblib is not installed; ")
    assert f"`make -C '{checkout}' demo`" in line
    assert line.endswith(f"then '{checkout}/.venv/bin/python' '{script}'")


@pytest.mark.parametrize("script", ["serve.py", "build_models.py", "demo.py"])
def test_a_python_that_is_too_old_is_one_line(checkout: Path, script: str) -> None:
    code = (
        "import sys, runpy; sys.version_info = (3, 9, 18, 'final', 0); "
        f"sys.argv = [{script!r}]; runpy.run_path({script!r}, run_name='__main__')"
    )
    done = run(["-c", code], checkout)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == (
        f"{script}: this is Python 3.9, but Python 3.10 to 3.12 is required; "
        f"run `make demo` once, then .venv/bin/python {script}"
    )


@pytest.mark.parametrize("script", ["serve.py", "build_models.py", "demo.py", "deeplabv3/evaluation/__main__.py"])
def test_the_scripts_parse_on_old_pythons(script: str) -> None:
    for file in (script, "deeplabv3/__init__.py", "deeplabv3/environment.py"):
        ast.parse((ROOT / file).read_text(), file, feature_version=(3, 8))


def test_ctrl_c_during_the_imports_is_one_line(checkout: Path) -> None:
    (checkout / "joblib.py").write_text("raise KeyboardInterrupt\n")
    done = run(["serve.py"], checkout)
    assert (done.returncode, done.stderr) == (130, "serve.py: interrupted\n")


def test_other_errors_keep_their_traceback(checkout: Path) -> None:
    for fault in ("raise ValueError('a bug')", "import deeplabv3.embedded.nothing"):
        (checkout / "joblib.py").write_text(fault)
        done = run(["serve.py"], checkout)
        assert done.returncode == 1
        assert done.stderr.startswith("Traceback")


def test_the_versions_are_those_of_the_project() -> None:
    (major, oldest), (_, newest) = environment.OLDEST, environment.NEWEST
    project = tomli.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={major}.{oldest},<{major}.{newest + 1}"


def test_a_python_that_can_make_the_environment_is_usable() -> None:
    """Without any package, as `make` asks it."""
    assert run(["deeplabv3/embedded/interpreter.py"], ROOT).stdout == "usable\n"


def test_what_a_python_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_library() -> None:
        raise StartError("libpython3.11.so.1.0 was not found")

    with monkeypatch.context() as patch:
        patch.setattr(checks, "libpython_folder", no_library)
        assert interpreter.fault() == "libpython3.11.so.1.0 was not found"
    with monkeypatch.context() as patch:  # as Debian's python3 without python3-venv
        patch.setitem(sys.modules, "ensurepip", None)
        assert "no module ensurepip; on Debian and Ubuntu, run apt-get install python3." in interpreter.fault()
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    assert interpreter.fault() == "this is Python 3.13, but Python 3.10 to 3.12 is required"
