"""Run the commands and examples of the documents."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pictures
import pytest

import build_models
import deeplabv3.evaluation.__main__
import serve

if TYPE_CHECKING:
    from triton_process import TritonProcess

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    "README.md",
    "client/README.md",
    "CONTRIBUTING.md",
    "docs/accuracy.md",
    "docs/building.md",
    "docs/example.md",
    "docs/own-model.md",
    "docs/serving.md",
]


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)


def commands(document: str) -> list[list[str]]:
    """Return the words of each command of the shell blocks, without comments."""
    lines = "".join(blocks(document, "sh")).replace("\\\n", "").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("document", ["README.md", "client/README.md"])
def test_python_blocks_run(color_server: TritonProcess, document: str, tmp_path: Path) -> None:
    # The unit tests run the others, with a fake instead of the server.
    found = [block for block in blocks(document, "python") if "deeplab_client.testing" not in block]
    assert found
    (tmp_path / "out").mkdir()  # made by `make demo`
    for name in ("tests/assets/cat.png", "cat.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(pictures.small())
    told = ""
    for block in found:
        code = block.replace("localhost:8001", color_server.grpc_url).replace("timeout=30.0", "timeout=120.0")
        assert color_server.grpc_url in code
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        told += done.stdout
    assert "uint8" in told or "UNTRAINED WEIGHTS" in told, "the dtype of a mask, or a whole result"
    assert {path.name for path in tmp_path.rglob("o*.png")} == {
        "out.png" if document.startswith("client") else "overlay.png"
    }


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_shell_blocks_exist(document: str) -> None:
    """make and the scripts accept them; they are not run, because they build into the checkout or never end."""
    parsers = {"build_models.py": build_models.parse_arguments, "serve.py": serve.parse}
    for words in commands(document):
        if words[0].startswith("SOAK_REQUESTS="):
            del words[0]
        program, *arguments = words
        if program == "make":
            subprocess.run(["/usr/bin/env", "make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
        elif program == "pip":
            assert arguments[0] == "install"
            assert (ROOT / arguments[1].partition("[")[0] / "pyproject.toml").exists()
        elif "deeplab" in words:
            continue  # run below
        else:
            assert program == ".venv/bin/python"
            if arguments[:2] == ["-m", "deeplabv3.evaluation"]:
                deeplabv3.evaluation.__main__.parse(arguments[2:])
            elif arguments[0] != "-m":
                parsers[arguments[0]](arguments[1:])


def test_the_clients_commands_run(color_server: TritonProcess, tmp_path: Path) -> None:
    """Every line of the README, in a folder with the pictures that it names; tests/page runs the page."""
    for name in ("cat.png", "panorama.jpg", "photos/a.jpg", "photos/deeper/b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(pictures.small())
    lines = [line for line in "".join(blocks("client/README.md", "sh")).splitlines() if "deeplab " in line]
    lines = [line for line in lines if not line.startswith("deeplab page ")]
    commands = [line.rpartition("deeplab ")[2].split()[0] for line in lines]
    assert set(commands) == {"segment", "classes", "models", "ping"}
    program = f'deeplab() {{ {shlex.quote(sys.executable)} -W error -m deeplab_client "$@" --timeout 120; }}'
    for line, command in zip(lines, commands, strict=True):
        script = f"{program}\n{line.replace('localhost:8001', color_server.grpc_url)}"
        done = subprocess.run(["/bin/bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert command in {"ping", "models"} or "UNTRAINED WEIGHTS" in done.stderr
        if command == "classes":
            assert "15\tperson\n" in done.stdout
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    overlays = {f"{name}.overlay.png" for name in ("a.jpg", "deeper/b.jpg", "panorama.jpg")}
    assert written == {*overlays, "a.jpg.ids.png", "annotations.json"}
    assert json.loads((tmp_path / "cat.json").read_text())["untrained"]
    with pictures.opened(tmp_path / "out" / "a.jpg.overlay.png") as picture:
        assert picture.getpixel((2, 2)) == (200, 0, 0), "the banner"


def test_the_requests_of_curl_are_answered(color_server: TritonProcess, tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(pictures.small())
    *sent, base64_sent = blocks("docs/serving.md", "bash")

    def run(script: str) -> str:
        command = ["/bin/bash", "-euo", "pipefail", "-c", script.replace("localhost:8000", color_server.http_url)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    outputs = {output["name"]: output["data"] for output in json.loads(run("".join(sent)))["outputs"]}
    assert outputs["CLASS_NAMES"][15] == "person"
    with pictures.opened(tmp_path / "mask.png") as mask, pictures.opened(tmp_path / "cat.png") as picture:
        assert mask.size == picture.size
        assert mask.histogram()[: len(outputs["CLASS_PIXELS"])] == outputs["CLASS_PIXELS"]
    (told,) = blocks("docs/serving.md", "json")
    assert re.sub(r"\d+ bytes", "", run(base64_sent)) == re.sub(r"\d+ bytes", "", told.strip())


def test_every_option_of_the_build_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "building.md").read_text()
    with pytest.raises(SystemExit, match="0"):
        build_models.parse_arguments(["--help"])
    options = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help", "--progress", "--no-aux-loss"}
    assert len(options) > 15
    assert [option for option in options if f"`{option}" not in text] == []


def test_the_functions_are_documented_by_an_example_that_runs() -> None:
    (block,) = blocks("docs/building.md", "python")
    subprocess.run([sys.executable, "-W", "error", "-c", block], cwd=ROOT, check=True)


def test_every_option_of_evaluate_is_documented(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "accuracy.md").read_text()
    for dataset in ("coco", "voc", "folders"):
        with pytest.raises(SystemExit, match="0"):
            deeplabv3.evaluation.__main__.parse([dataset, "--help"])
        options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out)) - {"--help"}
        assert len(options) > 10
        for option in options:
            assert f"`{option}" in text


def test_the_demo_reports_untrained_weights(color_repository: Path, tmp_path: Path) -> None:
    """The demo on a machine without the weights, in a repository where untrained models are built already."""
    command = [
        *(sys.executable, "demo.py", "--model-repository", str(color_repository)),
        *("--output", str(tmp_path / "out")),
    ]
    offline = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("up to date (weights none)") == 2
    assert done.stdout.count("agree pixel for pixel") == 2
    assert "UNTRAINED WEIGHTS" in done.stdout
    assert "(noise)" in done.stdout
    assert f"serve.py --model-repository {color_repository}\n" in done.stdout
    assert "cat.png --url grpc://localhost:8001" in done.stdout
    for variant in ("resnet50", "resnet101"):
        with pictures.opened(tmp_path / "out" / f"segment_{variant}.png") as picture:
            # The photograph, the legend to its right, and the banner across the top.
            assert picture.width > 451
            assert picture.height > 300
            assert picture.getpixel((2, 2)) == (200, 0, 0)
