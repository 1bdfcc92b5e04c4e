"""deploy/Dockerfile: its pins are those of the project, its sources exist, and none belongs to the embedded server.

tests/containers builds the images.
"""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
import tomli
import yaml
from chart import CHART, VARIANTS, objects
from dockerfile import (
    ROOT,
    STAGES,
    TEXT,
    contents,
    copied,
    environment,
    reaches_the_build,
    working_directory,
)
from packaging.requirements import Requirement
from packaging.version import Version

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.deploy

PROJECT: dict[str, Any] = tomli.loads((ROOT / "pyproject.toml").read_text())


def group(name: str) -> list[Requirement]:
    found: list[Requirement] = []
    for each in PROJECT["dependency-groups"][name]:
        found += group(each["include-group"]) if isinstance(each, dict) else [Requirement(each)]
    return found


def pins() -> dict[str, Version]:
    """Return the entries of constraints.txt for the container: Linux and its Python."""
    environment = {"python_version": "3.12", "python_full_version": "3.12.3", "sys_platform": "linux"}
    found: dict[str, Version] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        requirement = Requirement(line.split("#")[0].strip())
        if requirement.marker is None or requirement.marker.evaluate({**environment, "platform_machine": "x86_64"}):
            found[requirement.name] = Version(str(requirement.specifier).removeprefix("=="))
    return found


def test_there_are_two_images_and_the_server_is_the_default() -> None:
    assert list(STAGES) == ["client", "triton"]


@pytest.mark.parametrize("stage", ["client", "triton"])
def test_everything_is_installed_under_the_projects_constraints(stage: str) -> None:
    """There must be no second list of versions, because it could differ."""
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
    # Packages that are not in the container's groups belong only to the embedded server.
    assert not {each.name for each in needed} & {"nvidia-pytriton", "joblib"}


def test_what_the_steps_import_is_installed() -> None:
    """A package that only the environment of the embedded server has would be missing at the container's start."""
    names = {
        "torch": "torch",
        "PIL": "pillow",
        "pi_heif": "pi-heif",
        "numpy": "numpy",
        "triton_python_backend_utils": "",
    }
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
def test_what_is_copied_reaches_the_build_whole(stage: str) -> None:
    left_out = {"__pycache__", "model.pt", ".model.pt.partial", "embedded", "evaluation"}
    for source in copied(stage):
        path = ROOT / source
        wanted = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
        wanted = [
            file
            for file in wanted
            if not left_out & set(file.parts) and not any(part.endswith(".egg-info") for part in file.parts)
        ]
        assert wanted, source
        assert {str(file) for file in wanted} == {str(file) for file in wanted if reaches_the_build(relative(file))}


def relative(file: Path) -> str:
    return str(file.relative_to(ROOT))


@pytest.mark.parametrize(
    "path",
    [
        *(
            ".git/config",
            ".env",
            ".venv/bin/python",
            "out/report.html",
            "serve.py",
            "tests/conftest.py",
            "docs/serving.md",
            "deeplabv3/embedded/launch.py",
            "deeplabv3/evaluation/report.py",
        ),
        *("deploy/checkpoints/mine.pth", "deploy/helm/deeplab-triton/values.yaml"),
        *("model_repository/deeplabv3_resnet50/1/model.pt", "model_repository/deeplabv3_resnet50/1/.model.pt.partial"),
        *("deeplabv3/__pycache__/plan.pyc", "client/src/deeplab_client.egg-info/PKG-INFO"),
    ],
)
def test_nothing_else_reaches_the_build(path: str) -> None:
    assert not reaches_the_build(path)


@pytest.mark.parametrize("stage", ["client", "triton"])
def test_pip_finds_its_cache_where_it_is_mounted_and_leaves_none_in_a_layer(stage: str) -> None:
    installing = [line for line in STAGES[stage] if line.startswith("RUN ") and "install --constraint" in line]
    assert installing
    for line in installing:
        home = environment(stage, before=line).get("HOME", "/root")
        assert f"--mount=type=cache,target={home}/.cache/pip " in line
    # The base image has no home that is writable for every user.
    assert environment(stage)["HOME"] == "/tmp"  # noqa: S108 - the container's


@pytest.mark.parametrize("stage", ["client", "triton"])
def test_the_environment_is_first_on_path_from_its_first_use(stage: str) -> None:
    (made,) = [line for line in STAGES[stage] if " -m venv " in line]
    (folder,) = re.findall(r"-m venv (?:--without-pip )?(/\S+)", made)
    assert environment(stage, before=made)["PATH"] == f"{folder}/bin:$PATH"


@pytest.mark.parametrize("stage", ["client", "triton"])
def test_a_checkout_under_a_strict_umask_makes_an_image_that_works(stage: str, tmp_path: Path) -> None:
    """COPY keeps modes, so apply the stage's commands after its last COPY to files that only their owner can read."""
    for name, file in contents(stage).items():
        target = tmp_path / name.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
        target.chmod(target.stat().st_mode & 0o700)
    for folder in tmp_path.rglob("*"):
        if folder.is_dir():
            folder.chmod(0o700)
    last = max(number for number, line in enumerate(STAGES[stage]) if line.startswith("COPY "))
    for line in STAGES[stage][last + 1 :]:
        if line.startswith("RUN chmod "):
            subprocess.run(
                ["/bin/bash", "-c", line.removeprefix("RUN ").replace("/opt/", f"{tmp_path}/opt/")], check=True
            )
    for path in (tmp_path / "opt").rglob("*"):
        needed = 0o555 if path.is_dir() or path.suffix == ".sh" else 0o444
        assert path.stat().st_mode & needed == needed, path


def test_every_file_that_a_deployment_names_is_in_the_image() -> None:
    """In commands and probes of the chart and KServe: absolute paths, and scripts from the working directory."""
    kserve = [yaml.safe_load(path.read_text()) for path in (CHART.parents[1] / "kserve").glob("*.yaml")]
    named: set[tuple[str, str]] = set()
    started: set[tuple[str, str]] = set()
    for container in containers([*kserve, *map(objects, VARIANTS.values())]):
        stage = "client" if "client" in container["image"] else "triton"
        text = json.dumps(container)
        named |= {(stage, path) for path in re.findall(r"/opt/deeplab/[\w./-]+\w", text)}
        folder = container.get("workingDir", working_directory(stage))
        started |= {(stage, f"{folder}/{script}") for script in re.findall(r"[ \"](\w[\w/]*\.py)\b", text)}
    assert {("triton", "/opt/deeplab/deploy/alive.sh"), ("client", "/opt/deeplab/tests/assets/cat.png")} <= named
    assert ("triton", "/opt/deeplab/build_models.py") in started
    assert ("client", "/opt/deeplab/load_tests/locustfile.py") in started
    missing = {(stage, path) for stage, path in named | started if path not in contents(stage)}
    assert missing == set()


def containers(found: Any) -> list[dict[str, Any]]:  # noqa: ANN401 - YAML
    """Return everything with an image, anywhere in an object."""
    if isinstance(found, list):
        return [each for item in found for each in containers(item)]
    if not isinstance(found, dict):
        return []
    return [found] * ("image" in found) + [each for item in found.values() for each in containers(item)]


def test_the_entry_point_is_in_the_image() -> None:
    (line,) = [line for line in STAGES["triton"] if line.startswith("ENTRYPOINT ")]
    nvidias, ours = yaml.safe_load(line.removeprefix("ENTRYPOINT "))
    assert nvidias == "/opt/nvidia/nvidia_entrypoint.sh"
    assert contents("triton")[ours] == ROOT / "deploy" / "entrypoint.sh"


def test_the_builder_finds_what_it_copies() -> None:
    """build_models.py looks for model_repository and its own sources beside itself."""
    folder = working_directory("triton")
    for name in ("build_models.py", "deeplabv3/building/model_file.py", "model_repository/preprocess/1/model.py"):
        assert contents("triton")[str(folder / name)] == ROOT / name


def test_the_builder_imports_nothing_that_is_not_copied() -> None:
    left_out = r"deeplabv3(?:\.| import )(?:embedded|evaluation)|serve|demo|benchmarks|load_tests|tests"
    imports = re.compile(rf"^\s*(?:from|import) (?:{left_out})\b", re.MULTILINE)
    sources = [path for path in contents("triton").values() if path.suffix == ".py"]
    assert [path for path in sources if imports.search(path.read_text())] == []


def test_the_clients_image_has_what_its_commands_import_of_the_checkout(tmp_path: Path) -> None:
    """They fail because of a missing package, not because of a module that was not copied."""
    for name, file in contents("client").items():
        target = tmp_path / name.removeprefix("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    command = [sys.executable, "-S", "-m", "load_tests.capacity"]
    folder = tmp_path / str(working_directory("client")).removeprefix("/")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.stderr.startswith("load_tests.capacity: numpy is not installed; ")


@pytest.mark.parametrize("stage", ["client", "triton"])
def test_nobody_is_root(stage: str) -> None:
    users = [line.split()[1] for line in STAGES[stage] if line.startswith("USER ")]
    assert users == ["1000:1000"]
    assert STAGES[stage].index("USER 1000:1000") > max(
        number for number, line in enumerate(STAGES[stage]) if line.startswith(("RUN", "COPY"))
    )


def test_the_base_can_be_changed_and_is_pinned() -> None:
    assert re.search(r"^ARG TRITON_IMAGE=nvcr\.io/nvidia/tritonserver:26\.11-py3$", TEXT, re.MULTILINE)
    assert re.search(r"^ARG PYTHON_IMAGE=python:3\.12\.\d+-slim-\w+$", TEXT, re.MULTILINE)


def test_the_model_repository_refers_to_nothing_of_the_embedded_server() -> None:
    """The container serves the same files, byte for byte, with NVIDIA's own backend."""
    read = 0
    for path in (ROOT / "model_repository").rglob("*"):
        if path.suffix in {".py", ".pbtxt"}:
            text = path.read_text()
            assert not re.search(r"pytriton|\bembedded\b|pytorch_backend|serve\.py", text), path
            read += 1
    assert read >= 12
    for config in (ROOT / "model_repository").glob("[cd]*_resnet*/config.pbtxt"):
        assert re.search(r'^platform: "pytorch_libtorch"$', config.read_text(), re.MULTILINE)
