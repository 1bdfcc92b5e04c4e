"""`make` with environments that were not finished, were moved, or need another Python; `make clean`.

A shell script stands for Python, its venv and its pip: it notes what it is asked for, and fails or dies on request.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]

PYTHON = r"""#!/bin/sh
echo "$*" >>"$ASKED"
fail() {
    case "$FAULT" in
    "$1 fails") exit 1 ;;
    "$1 is killed") kill -9 $$ ;;
    "$1 is interrupted") trap 'exit 1' INT; touch "$ASKED.waits"; while :; do sleep 0.02; done ;;
    esac
}
case "$*" in
-V) echo "${VERSION:-Python 3.11.7}" ;;
deeplabv3/embedded/interpreter.py) echo usable ;;
"-m venv --clear "*)
    rm -rf "$4"
    mkdir -p "$4/bin"
    fail venv
    cp "$0" "$4/bin/python"
    ;;
"-m pip install "*)
    packages="$(dirname "$0")/../lib/python3.11/site-packages"
    mkdir -p "$packages"
    echo "$PWD/client/src" >"$packages/_editable_impl_deeplab_client.pth"
    fail pip
    ;;
*) exit 9 ;;
esac
"""


@dataclass
class Checkout:
    """A checkout in which only make runs."""

    folder: Path
    python: Path

    def start(
        self, *arguments: str, fault: str = "", version: str = "", python: str | None = None
    ) -> subprocess.Popen[str]:
        asked = self.python.with_name("asked")
        asked.write_text("")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
        return subprocess.Popen(
            ["/usr/bin/env", "make", f"PYTHON={self.python if python is None else python}", *arguments],
            cwd=self.folder,
            env=inherited | {"ASKED": str(asked), "FAULT": fault, "VERSION": version},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def make(self, *arguments: str, **options: str) -> tuple[int, list[str], str]:
        """Return the exit code, what was asked of Python that changes anything, and stderr."""
        process = self.start(*arguments, **options)
        _, error = process.communicate(timeout=60)
        return process.returncode, self.asked(), error

    def asked(self) -> list[str]:
        lines = self.python.with_name("asked").read_text().splitlines()
        return [line.removeprefix("-m ") for line in lines if line.startswith("-m ")]

    def age(self) -> None:
        """Let what pyproject.toml says be newer than what is installed."""
        now = time.time()
        for stamp in self.folder.glob(".venv*/installed"):
            os.utime(stamp, (now - 60, now - 60))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder = tmp_path / "my dir ü"
    shutil.copytree(
        ROOT / "model_repository", folder / "model_repository", ignore=shutil.ignore_patterns("*.pt", "*.pyc")
    )
    for name in (
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
        "client/pyproject.toml",
        "benchmarks/peers/constraints.txt",
        "deploy/batch/constraints.txt",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    python = tmp_path / "python of mine" / "python"
    python.parent.mkdir()
    python.write_text(PYTHON)
    python.chmod(0o755)
    return Checkout(folder, python)


def created_again(asked: list[str]) -> bool:
    return [line.split()[0] for line in asked][:3] == ["venv", "pip", "pip"] and asked[0] == "venv --clear .venv"


def test_a_finished_environment_is_left_alone(checkout: Checkout) -> None:
    code, asked, error = checkout.make(".venv/installed")
    assert (code, error) == (0, "")
    assert created_again(asked)
    assert checkout.make(".venv/installed")[:2] == (0, [])
    checkout.age()
    code, asked, _ = checkout.make(".venv/installed")
    assert code == 0
    assert [line.split()[0] for line in asked] == ["pip", "pip"], (
        "another version of pyproject.toml: what differs is installed"
    )


def test_an_environment_of_an_older_version_is_left_alone(checkout: Checkout) -> None:
    checkout.make(".venv/installed")
    (checkout.folder / ".venv" / "installed").write_text("")
    assert checkout.make(".venv/installed")[:2] == (0, [])


@pytest.mark.parametrize("fault", ["venv fails", "venv is killed", "pip fails", "pip is killed"])
def test_what_was_not_finished_is_created_again(checkout: Checkout, fault: str) -> None:
    assert checkout.make(".venv/installed", fault=fault)[0] != 0
    code, asked, _ = checkout.make(".venv/installed")
    assert code == 0
    assert created_again(asked)


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
@pytest.mark.parametrize("target", [".venv/installed", ".venv/deploy", ".venv-peers/installed"])
def test_what_was_interrupted_is_created_again(checkout: Checkout, target: str, shell: str) -> None:
    """Ctrl-C reaches make and pip; pip ends in order and says that it failed."""
    if target == ".venv/deploy":
        checkout.make(".venv/installed")
    process = checkout.start(target, f"SHELL={shell}", fault="pip is interrupted")
    deadline = time.monotonic() + 30
    while not checkout.python.with_name("asked.waits").exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    environment = target.partition("/")[0]
    code, asked, _ = checkout.make(f"{environment}/installed")
    assert code == 0
    assert asked[0] == f"venv --clear {environment}"


@pytest.mark.parametrize("target", [".venv/bench", ".venv/deploy", ".venv/docs", ".venv/page", ".venv/installed"])
def test_an_environment_survives_a_pip_that_fails_but_not_one_that_is_killed(checkout: Checkout, target: str) -> None:
    checkout.make(".venv/installed")
    if target == ".venv/installed":
        checkout.age()
    assert checkout.make(target, fault="pip fails")[0] != 0
    code, asked, _ = checkout.make(target)
    assert code == 0
    assert {line.split()[0] for line in asked} == {"pip"}
    (checkout.folder / ".venv" / target.partition("/")[2]).touch()
    if target == ".venv/installed":
        checkout.age()
    else:
        (checkout.folder / target).unlink()
    assert checkout.make(target, fault="pip is killed")[0] != 0
    assert created_again(checkout.make(target)[1])


def test_a_moved_checkout_gets_an_environment_of_its_own(checkout: Checkout, tmp_path: Path) -> None:
    """The client is installed by its path: a copy would run the other checkout's code."""
    for target in (".venv/deploy", ".venv-peers/installed"):
        assert checkout.make(target)[0] == 0
    shutil.copytree(checkout.folder, tmp_path / "copy")
    assert checkout.make(".venv/deploy", ".venv-peers/installed")[1] == []
    copy = Checkout(tmp_path / "copy", checkout.python)
    code, asked, _ = copy.make(".venv/deploy", ".venv-peers/installed")
    assert code == 0
    assert [line for line in asked if line.startswith("venv")] == ["venv --clear .venv", "venv --clear .venv-peers"]
    assert any("--group deploy" in line for line in asked)
    assert copy.make(".venv/deploy", ".venv-peers/installed")[1] == []


def test_the_client_is_found_in_any_locale(checkout: Checkout) -> None:
    """Python starts in no locale that cannot decode its *.pth files, and this checkout's path is not ASCII."""
    checkout.make(".venv/installed")
    (file,) = (checkout.folder / ".venv").rglob("*.pth")
    line = file.read_text(encoding="ascii").strip()
    assert (file.parent / line).resolve() == (checkout.folder / "client" / "src").resolve()


def test_an_environment_whose_python_is_gone_is_created_again(checkout: Checkout) -> None:
    checkout.make(".venv/installed")
    (checkout.folder / ".venv" / "bin" / "python").unlink()
    (checkout.folder / ".venv" / "bin" / "python").symlink_to("/usr/bin/python3.5")
    assert created_again(checkout.make(".venv/installed")[1])


def test_another_python_makes_another_environment(checkout: Checkout) -> None:
    checkout.make(".venv/installed")
    python = checkout.folder / ".venv" / "bin" / "python"
    python.write_text(PYTHON.replace("3.11.7", "3.12.1"))
    code, asked, _ = checkout.make(".venv/installed")
    assert code == 0
    assert created_again(asked)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "not found"),
        ("#!/bin/sh\n", "-V prints ''"),
        (
            '#!/bin/sh\nif [ "$1" = -V ]; then echo Python 2.7.18 >&2; else echo SyntaxError >&2; exit 1; fi',
            "'Python 2.7.18'",
        ),
        ("#!/bin/sh\necho this is Python 3.13, but Python 3.10 to 3.12 is required", ": this is Python 3.13, but "),
    ],
    ids=["absent", "no Python", "2.7", "3.13"],
)
@pytest.mark.parametrize("finished", [False, True])
def test_a_python_that_will_not_do_is_one_line(
    checkout: Checkout,
    text: str | None,
    words: str,
    finished: bool,  # noqa: FBT001 - a parameter of the test
) -> None:
    if finished:
        checkout.make(".venv/installed")
    before = sorted(checkout.folder.rglob("*"))
    python = checkout.folder.parent / "bad python"
    if text is not None:
        python.write_text(text)
        python.chmod(0o755)
    code, _, error = checkout.make("demo", python=str(python))
    assert code == 2
    line, of_make = error.splitlines()
    assert line.startswith(f"make: {python}: ")
    assert words in line
    assert "3.10 to 3.12" in line
    assert line.endswith("; use another one with make PYTHON=/path/to/python")
    assert of_make.startswith("make: *** ")
    assert sorted(checkout.folder.rglob("*")) == before


def test_clean_removes_what_make_has_made_and_nothing_else(checkout: Checkout) -> None:
    """Without Python and without git: a tarball has neither."""
    folder = checkout.folder
    source = {path: path.read_bytes() for path in (folder / "model_repository").rglob("*") if path.is_file()}
    for place in ("bench", "demo", "docs", "load", "test", "tools", "mine", "evaluate"):
        (folder / "out" / place).mkdir(parents=True)
        (folder / "out" / place / "model.pt").touch()
    for environment in (".venv", ".venv-peers", ".venv-batch"):
        (folder / environment / "bin").mkdir(parents=True)
    for variant in ("resnet50", "resnet101"):
        version = folder / "model_repository" / f"core_{variant}" / "1"
        version.mkdir(exist_ok=True)
        (version / "model.pt").touch()
        (version / ".model.pt.partial").touch()
    code, asked, error = checkout.make("clean", python="")
    assert (code, asked, error) == (0, [], "")
    left = {str(path.relative_to(folder)) for path in folder.rglob("*.pt*") if path.suffix != ".pbtxt"}
    assert left == {"out/mine/model.pt", "out/evaluate/model.pt"}
    assert not list(folder.glob(".venv*"))
    assert {path: path.read_bytes() for path in (folder / "model_repository").rglob("*") if path.is_file()} == source
