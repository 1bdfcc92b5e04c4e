"""deploy/Dockerfile: its pins are the project's, what it copies exists, and none of it is of the embedded server.

No image was built: there was no container engine.
"""

from __future__ import annotations

import ast
import fnmatch
import re
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import tomli
from packaging.requirements import Requirement
from packaging.version import Version

pytestmark = pytest.mark.deploy

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
# Instructions with their continuations on one line, comments left out.
INSTRUCTIONS = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
STAGES = {
    stage.split()[3]: stage.splitlines()
    for stage in re.split(r"^(?=FROM )", "\n".join(INSTRUCTIONS), flags=re.MULTILINE)[1:]
}
PROJECT: dict[str, Any] = tomli.loads((ROOT / "pyproject.toml").read_text())
EMBEDDED = ("pytriton", "nvidia-pytriton", "serve.py", "backends/", "embedded")


def group(name: str) -> list[Requirement]:
    found: list[Requirement] = []
    for each in PROJECT["dependency-groups"][name]:
        found += group(each["include-group"]) if isinstance(each, dict) else [Requirement(each)]
    return found


def pins() -> dict[str, Version]:
    """Return what constraints.txt has for the container: Linux and its Python."""
    environment = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux"}
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        requirement = Requirement(line.split("#")[0].strip())
        if requirement.marker is None or requirement.marker.evaluate({**environment, "platform_machine": "x86_64"}):
            found[requirement.name] = Version(str(requirement.specifier).removeprefix("=="))
    return found


def copied(stage: str) -> list[str]:
    sources: list[str] = []
    for line in STAGES[stage]:
        if line.startswith("COPY "):
            sources += [word for word in line.split()[1:-1] if not word.startswith("--")]
    return sources


def test_there_are_two_images_and_the_server_is_the_default() -> None:
    assert list(STAGES) == ["client", "triton"]


@pytest.mark.parametrize("stage", ["client", "triton"])
def test_everything_is_installed_under_the_projects_constraints(stage: str) -> None:
    """So there is no second list of versions that could differ."""
    installs = re.findall(r"pip (?:--python \S+ )?install ([^&]+)", "\n".join(STAGES[stage]))
    assert installs
    for arguments in installs:
        words = arguments.split()
        assert words[:2] == ["--constraint", "constraints.txt"]
        assert not [word for word in words[2:] if re.search(r"[=<>]\d", word)], words
        for option, name in pairwise(words):
            if option == "--group":
                assert name in PROJECT["dependency-groups"]
    assert "constraints.txt" in copied(stage)


def test_the_server_gets_what_its_steps_import_at_the_projects_versions() -> None:
    (line,) = [line for line in STAGES["triton"] if "--group build" in line]
    assert "--group steps" in line
    needed = [*group("steps"), *group("build")]
    assert {"torch", "pillow", "numpy", "torchvision"} <= {each.name for each in needed}
    for requirement in needed:
        name = requirement.name
        assert requirement.specifier.contains(pins()[name]), name
    assert pins()["numpy"] < Version("2")
    assert pins()["torch"] == Version("2.12.1")
    # What is not in the container's groups is the embedded server's alone.
    assert not {each.name for each in needed} & {"nvidia-pytriton", "joblib"}


def test_what_the_steps_import_is_installed() -> None:
    """A package that only the embedded server's environment has would be missed in the container at the first start."""
    names = {"torch": "torch", "PIL": "pillow", "numpy": "numpy", "triton_python_backend_utils": ""}
    files = list((ROOT / "model_repository").glob("*/1/*.py"))
    own = {path.stem for path in files}
    imported: set[str] = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {each.name.partition(".")[0] for each in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - own
    installed = {each.name for each in group("steps")} | {""}
    assert {names[each] for each in foreign} <= installed


@pytest.mark.parametrize("stage", ["client", "triton"])
def test_what_is_copied_exists_and_reaches_the_build(stage: str) -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    for source in copied(stage):
        assert (ROOT / source).exists(), source
        assert any(source == each or source.startswith(f"{each}/") for each in kept), source
    assert not [each for each in kept if not any(fnmatch.fnmatch(each, f"{source}*") for source in sources())]


def sources() -> list[str]:
    return [*copied("client"), *copied("triton")]


@pytest.mark.parametrize("stage", ["client", "triton"])
def test_nobody_is_root(stage: str) -> None:
    users = [line.split()[1] for line in STAGES[stage] if line.startswith("USER ")]
    assert users == ["1000:1000"]
    assert STAGES[stage].index("USER 1000:1000") > max(
        number for number, line in enumerate(STAGES[stage]) if line.startswith(("RUN", "COPY"))
    )


def test_the_base_can_be_changed_and_is_pinned() -> None:
    assert re.search(r"^ARG TRITON_IMAGE=nvcr\.io/nvidia/tritonserver:26\.08-py3$", DOCKERFILE, re.MULTILINE)
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.12\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)


def test_nothing_of_the_embedded_server_is_in_the_image() -> None:
    for source in copied("triton"):
        assert not any(each in source for each in EMBEDDED)
    needed = "\n".join(STAGES["triton"])
    assert not any(each in needed for each in EMBEDDED)


def test_the_model_repository_refers_to_nothing_of_the_embedded_server() -> None:
    """The container serves it with NVIDIA's own backend, byte for byte the same files."""
    read = 0
    for path in (ROOT / "model_repository").rglob("*"):
        if path.suffix in {".py", ".pbtxt"}:
            text = path.read_text()
            assert not re.search(r"pytriton|\bembedded\b|backends/|serve\.py", text), path
            read += 1
    assert read >= 12
    for config in (ROOT / "model_repository").glob("deeplabv3_*/config.pbtxt"):
        assert re.search(r'^platform: "pytorch_libtorch"$', config.read_text(), re.MULTILINE)


def test_the_builder_imports_nothing_that_is_not_copied() -> None:
    packages = {"deeplabv3"}
    for path in [ROOT / "build_models.py", *(ROOT / "deeplabv3").glob("*.py")]:
        for found in re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE):
            assert found not in {"embedded", "serve", "demo", "evaluate", "benchmarks", "backends"}, path
            if (ROOT / found).is_dir() and (ROOT / found / "__init__.py").exists():
                assert found in packages
