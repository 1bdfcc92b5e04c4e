"""The content of the client's wheel, and the test example of its README."""

from __future__ import annotations

import ast
import email
import os
import re
import subprocess
import sys
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import deeplab_client
import deeplab_client.testing

if TYPE_CHECKING:
    from email.message import Message

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "client" / "src"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT / "client", check=True, capture_output=True)
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_the_wheel_holds_every_module_and_the_mark_of_types(wheel: zipfile.ZipFile) -> None:
    packed = {name for name in wheel.namelist() if name.startswith("deeplab_client/")}
    modules = {str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py")}
    assert packed == {*modules, "deeplab_client/py.typed"}
    assert len({name.split("/")[0] for name in wheel.namelist()}) == 2, "nothing but the package and its metadata"


def test_the_wheel_needs_no_torch_and_names_its_extras(metadata: Message) -> None:
    needed = metadata.get_all("Requires-Dist", [])
    plain = {re.split(r"[\[<>=]", requirement)[0] for requirement in needed if "extra ==" not in requirement}
    assert plain == {"aiohttp", "numpy", "pillow", "tritonclient"}
    assert metadata.get_all("Provides-Extra") == ["cli", "components", "heic", "page", "polygons", "supervision"]
    assert not [requirement for requirement in needed if "torch" in requirement]


def test_the_wheel_carries_the_license_of_the_repository(wheel: zipfile.ZipFile, metadata: Message) -> None:
    (text,) = (name for name in wheel.namelist() if name.endswith("/licenses/LICENSE"))
    assert wheel.read(text) == (ROOT / "LICENSE").read_bytes()
    assert metadata.get_all("License-File") == ["LICENSE"]


def test_the_package_has_its_version(metadata: Message) -> None:
    assert deeplab_client.__version__ == metadata["Version"]


def test_the_site_lists_every_public_name() -> None:
    """A name that is gone fails the build of the site; one that nobody lists would not."""
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    listed = re.findall(r"^\.\. (?:auto\w+|py:type):: (?:deeplab_client\.)?(\w+)", pages, re.MULTILINE)
    public = {*deeplab_client.__all__, *deeplab_client.testing.__all__, "CLASS_NAMES", "PALETTE"}
    assert public - set(listed) == set()


def test_the_wheel_works_from_another_place(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    wheel.extractall(tmp_path)
    (script,) = (path for path in tmp_path.rglob("entry_points.txt"))
    assert "deeplab = deeplab_client.__main__:main" in script.read_text()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONVERBOSE": "1"}
    command = [sys.executable, "-m", "deeplab_client", "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert f"{tmp_path}/deeplab_client/__main__.py" in done.stderr
    for word in ("segment", "classes", "ping"):
        assert word in done.stdout


def test_importing_the_package_and_making_a_client_load_only_what_every_call_needs() -> None:
    code = (
        "import sys, deeplab_client as d, deeplab_client.testing; d.SegmentationClient('h'); d.SegmentationClient('http://h');"
        "files = {name.split('.')[0] for name, module in sys.modules.items() if getattr(module, '__file__', None)};"
        "print(sorted(files - set(sys.stdlib_module_names)))"
    )
    # Without site: an editable install may load modules of its own at the start.
    path = os.pathsep.join([str(SOURCES), *(entry for entry in sys.path if entry.endswith("site-packages"))])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['deeplab_client', 'numpy']"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports for types and in functions count too, but not those of the package itself."""
    paths = {".".join(path.relative_to(SOURCES).with_suffix("").parts): path for path in SOURCES.rglob("*.py")}
    graph: dict[str, set[str]] = {}
    for module, path in paths.items():
        froms = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        named = {name for node in froms for name in (node.module, *(f"{node.module}.{x.name}" for x in node.names))}
        graph[module] = {name for name in named if name in paths}
    assert len(graph["deeplab_client._client"]) > 5
    TopologicalSorter(graph).prepare()


def test_the_readmes_examples_of_tests_pass(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / "client/README.md").read_text(), re.MULTILINE | re.DOTALL)
    (example,) = (block for block in blocks if "deeplab_client.testing" in block)
    file = tmp_path / "test_example.py"
    file.write_text(example)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(file)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
