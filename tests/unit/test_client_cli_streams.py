"""Pictures from standard input, results on standard output, and completion; with a fake instead of the server."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from command_line import HEIGHT, PROGRAM, URL, WIDTH, files, picture, reach, run
from PIL import Image

from deeplab_client import Segmentation, voc
from deeplab_client.testing import FakeTransport

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

BASH = "/bin/bash"
CATS = Segmentation(np.full((HEIGHT, WIDTH), 8, np.uint8), voc.CLASS_NAMES, "segment_resnet50", "1", "none")


def shell(line: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of bash in which `deeplab` uses a fake whose untrained model finds cats everywhere."""
    program = f'deeplab() {{ {shlex.quote(sys.executable)} -c {shlex.quote(PROGRAM)} "$@" --url {URL}; }}\n'
    return subprocess.run([BASH, "-c", program + line], capture_output=True, check=False)


def send(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send a picture to standard input."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


@pytest.mark.usefixtures("folder")
def test_a_picture_and_its_description_travel_through_a_pipe() -> None:
    picture("a.png")
    done = shell("cat a.png | deeplab segment - -o - -f json")
    assert done.returncode == 0, done.stderr
    told, expected = json.loads(done.stdout), CATS.to_dict(rle=True)
    assert told.pop("request_id")
    assert told == {name: value for name, value in expected.items() if name != "request_id"}
    assert done.stdout.endswith(b"}\n")
    assert done.stderr.decode() == (
        "deeplab: UNTRAINED WEIGHTS: the masks of segment_resnet50 are noise, not segmentations\n"
    )
    assert files(".") == {"a.png"}


@pytest.mark.parametrize("kind", ["overlay", "colors", "ids"])
@pytest.mark.parametrize("named", ["a.png", "-"])
@pytest.mark.usefixtures("folder")
def test_the_standard_output_gets_a_png_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes], kind: str, named: str
) -> None:
    reach(FakeTransport(CATS.mask, weights="none"), monkeypatch)
    send(picture("a.png").read_bytes(), monkeypatch)
    assert run("segment", named, "--output", "-", "--format", kind) == 0
    with Image.open(io.BytesIO(capfdbinary.readouterr().out)) as shown:
        pixels = np.asarray(shown)
    expected = {"overlay": CATS.overlay("a.png"), "colors": CATS.colorize(), "ids": Image.fromarray(CATS.mask)}[kind]
    np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.usefixtures("fake", "folder")
def test_the_standard_input_is_one_of_several_pictures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    send(picture("a.png").read_bytes(), monkeypatch)
    assert run("segment", "a.png", "-", "-") == 0
    assert [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()] == ["a.png", "-"]


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("-", b"no picture", r"deeplab: -: .*cannot be decoded"),
        ("-", b"", r"deeplab: -: .*is empty"),
        ("missing.png", b"", r"deeplab: missing\.png: .*No such file"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_picture_that_fails_leaves_the_standard_output_empty(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, data: bytes, words: str
) -> None:
    reach(FakeTransport(), monkeypatch)
    send(data, monkeypatch)
    assert run("segment", name, "-o", "-") == 1
    told = capsys.readouterr()
    assert not told.out
    assert re.search(words, told.err)


@pytest.mark.parametrize(
    ("redirection", "words"),
    [
        ("> /dev/full", "cannot write to standard output: No space left on device"),
        (">&-", "cannot write to standard output: Bad file descriptor"),
        ("| true", "standard output was closed"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_standard_output_that_cannot_be_written_is_reported(redirection: str, words: str) -> None:
    picture("a.png")
    # `true` ends at once, so the pipe is closed long before the picture is ready.
    done = shell(f"set -o pipefail; deeplab segment a.png -o - {redirection}")
    assert done.returncode == 1
    assert done.stderr.decode().count(words) == 1, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("a.png b.png -o -", r"--output.*takes one picture, got 2: use a folder"),
        (". -o -", r"--output.*takes one picture, got 2"),
        ("a.png -o - -f ids -f json", r"--output.*takes one format, got 2"),
        ("a.png -o - -f coco", r"--output.*one file for all pictures.*--format json"),
        ("a.png -o - --json", r"--json.*both write to standard output"),
        ("- -o out", r"--output.*has no name for files in a folder: use --output -"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_options_that_do_not_fit_the_standard_streams_are_refused(
    fake: FakeTransport,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    words: str,
) -> None:
    picture("a.png")
    picture("b.png")
    send(b"a picture", monkeypatch)
    assert run("segment", *arguments.split()) == 2
    told = capsys.readouterr()
    assert re.search(words, " ".join(told.err.split()))
    assert not told.out
    assert not fake.requests


@pytest.mark.usefixtures("folder")
def test_an_empty_standard_input_is_reported(
    fake: FakeTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    send(b"", monkeypatch)
    assert run("segment", "-", "-o", "-", "-f", "json") == 1
    assert capsys.readouterr().err == "deeplab: -: cannot be read: standard input is empty, so pipe a picture into it\n"
    assert not fake.requests


@pytest.mark.usefixtures("folder")
def test_a_terminal_is_neither_a_picture_nor_shown_one(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    fake = reach(FakeTransport(), monkeypatch)
    picture("a.png")
    ours, theirs = pty.openpty()
    with os.fdopen(ours, "rb", buffering=0), os.fdopen(theirs, "r+b", buffering=0) as terminal:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(terminal))
        assert run("segment", "-") == 2
        assert "- is standard input: pipe a picture into it" in capfd.readouterr().err
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        assert run("segment", "a.png", "-o", "-") == 2
        assert re.search(r"a\s+terminal,\s+which\s+cannot\s+show\s+a\s+PNG", capfd.readouterr().err)
        assert not fake.requests
        assert run("segment", "a.png", "-o", "-", "-f", "json") == 0
        assert json.loads(capfd.readouterr().out)["width"] == WIDTH
    done = shell("deeplab segment - <&-")
    assert done.returncode == 2
    assert b"- is standard input: pipe a picture into it" in done.stderr


def completed(home: Path, typed: str) -> list[str]:
    """Return the completions of bash at the end of a line, in a shell that was started after the installation."""
    words = shlex.split(typed) + ([""] if typed.endswith(" ") else [])
    line = f"""
        . "$HOME/.bashrc"
        COMP_WORDS=({" ".join(map(shlex.quote, words))}) COMP_CWORD={len(words) - 1}
        set -- $(complete -p deeplab)  # complete -o default -F FUNCTION deeplab
        [ "$2 $3 $4" = "-o default -F" ] && "$5" deeplab
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    done = subprocess.run([BASH, "-c", line], capture_output=True, text=True, check=True, env=in_home(home))
    assert not done.stderr
    return done.stdout.split()


def in_home(home: Path) -> dict[str, str]:
    """Return the environment of a user with a home and a command `deeplab`."""
    return {**os.environ, "HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}"}


def test_bash_completes_commands_options_formats_and_files(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "deeplab"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom deeplab_client.__main__ import main\nmain()\n")
    program.chmod(0o755)
    command = [BASH, "-c", "deeplab --install-completion; deeplab --show-completion; exit"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=in_home(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "complete -o default -F" in done.stdout
    assert completed(tmp_path, "deeplab ") == ["segment", "models", "classes", "ping", "page"]
    assert completed(tmp_path, "deeplab segment --con") == ["--concurrency", "--confidence"]
    assert completed(tmp_path, "deeplab segment --format ") == ["overlay", "colors", "ids", "json", "coco"]
    assert completed(tmp_path, "deeplab segment a") == [], "bash offers files then"
