"""The command line, with a fake instead of the server."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from command_line import PROGRAM, URL, broken, cats, files, picture, reach, run, start
from drivers import python
from script_servers import HttpServer, Script, url

from deeplab_client import (
    AccessDeniedError,
    DeadlineExceededError,
    InvalidImageError,
    MismatchedReplyError,
    ModelError,
    SegmentationError,
    ServerOverloadedError,
    ServerUnavailableError,
)
from deeplab_client._cli import app
from deeplab_client.testing import FakeTransport

if TYPE_CHECKING:
    from deeplab_client._deadline import Deadline
    from deeplab_client._transport import ModelConfig

pytestmark = pytest.mark.unit

README = Path(__file__).resolve().parents[2] / "client" / "README.md"


@pytest.mark.usefixtures("fake", "folder")
def test_without_an_output_nothing_is_written_and_a_pipe_gets_fields(capsys: pytest.CaptureFixture[str]) -> None:
    picture("a.png")
    assert run("segment", "a.png") == 0
    told = capsys.readouterr()
    assert told.out.rstrip("\n").split("\t") == ["a.png", "20x12", "cat", "0.5000", ""]
    assert re.fullmatch(r"deeplab: 1 of 1 picture segmented in \d+\.\d s\n", told.err)
    assert files(".") == {"a.png"}


@pytest.mark.usefixtures("fake", "folder")
def test_names_of_files_cannot_write_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    strange = os.fsdecode(b"\xff.png")
    for name in ("a\x1b[31m\n.png", strange):
        picture("plain.png").rename(name)
    assert run("segment", ".") == 0
    assert {line.split("\t")[0] for line in capsys.readouterr().out.splitlines()} == {"a?[31m?.png", "\ufffd.png"}
    assert run("segment", strange, "--json") == 0
    assert json.loads(capsys.readouterr().out)["path"] == strange


@pytest.mark.usefixtures("fake", "folder")
def test_a_failed_picture_is_reported_and_the_others_are_segmented(capsys: pytest.CaptureFixture[str]) -> None:
    picture("good.png")
    broken("bad.png", InvalidImageError)
    broken("busy.png", ServerOverloadedError)
    broken("bug.png", ModelError)
    broken("swapped.png", MismatchedReplyError)
    names = ["bad.png", "busy.png", "bug.png", "swapped.png", "missing.png", "good.png"]
    assert run("segment", *names, "-o", "out") == 1
    told = capsys.readouterr()
    assert [line.split("\t")[0] for line in told.out.splitlines()] == ["good.png"]
    assert "deeplab: bad.png: as the picture says" in told.err
    assert re.search(r"missing\.png: .*No such file", told.err)
    assert "1 of 6 pictures segmented" in told.err
    assert "5 failed" in told.err
    assert files("out") == {"good.png.overlay.png"}


@pytest.mark.usefixtures("folder")
def test_a_server_message_stays_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = ModelError("it failed:\n  in line 1\r\n\x1b[31mred")
    reach(FakeTransport(answers=[error], class_names=["none", "ro\tad\n"]), monkeypatch)
    picture("a.png")
    assert run("segment", "a.png") == 1
    first, *_ = capsys.readouterr().err.splitlines()
    assert first == "deeplab: a.png: it failed:   in line 1  ?[31mred"
    assert run("classes") == 0
    assert capsys.readouterr().out == "0\tnone\n1\tro ad \n"


@pytest.mark.parametrize(
    ("error", "code"),
    [(ServerUnavailableError, 3), (DeadlineExceededError, 3), (AccessDeniedError, 4)],
)
@pytest.mark.usefixtures("fake", "folder")
def test_a_server_that_cannot_be_used_ends_the_run(
    capsys: pytest.CaptureFixture[str], error: type[SegmentationError], code: int
) -> None:
    broken("a.png", error)
    for i in range(30):
        picture(f"b{i:02}.png")
    assert run("segment", ".", "--concurrency", "1", "-o", "out") == code
    assert "as the picture says" in capsys.readouterr().err
    assert files("out") == set()
    broken("b05.png", error)
    picture("a.png")
    # After a first reply, a timeout is the failure of one picture.
    assert run("segment", ".", "--concurrency", "1", "-o", "out") == (1 if error is DeadlineExceededError else code)
    assert len(files("out")) == (30 if error is DeadlineExceededError else 6)


@pytest.mark.usefixtures("fake", "folder")
def test_json_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    picture("a.png")
    broken("bad.png", InvalidImageError)
    assert run("segment", "a.png", "bad.png", "--json", "-o", "out") == 1
    told = capsys.readouterr()
    good, bad = (json.loads(line) for line in told.out.splitlines())
    assert (good["path"], good["state"], good["outputs"]) == ("a.png", "done", ["out/a.png.overlay.png"])
    assert good["pixels"] == {"__background__": 120, "cat": 120}
    assert good["fractions"]["cat"] == 0.5
    assert (good["top_class"], good["untrained"], good["model"]) == ("cat", False, "segment_resnet50")
    assert (bad["state"], bad["outputs"], bad["error"]) == ("failed", [], "as the picture says")
    assert not told.err
    assert run("segment", "a.png", "--json", "-o", "out") == 0
    assert json.loads(capsys.readouterr().out)["state"] == "skipped"


@pytest.mark.parametrize(
    ("row", "command"),
    [
        ("segment --json", ["segment", "a.png", "--json"]),
        ("ping --json", ["ping", "--json"]),
        ("models --json", ["models", "--json"]),
        ("classes --json", ["classes", "--json"]),
        ("segment --format json", ["segment", "a.png", "-o", "-", "-f", "json"]),
    ],
)
@pytest.mark.usefixtures("fake", "folder")
def test_the_readme_lists_every_key_of_the_json(
    capsys: pytest.CaptureFixture[str], row: str, command: list[str]
) -> None:
    (line,) = (line for line in README.read_text().splitlines() if line.startswith(f"| `{row}` |"))
    documented = set(re.findall(r"`([a-z_]+)`", line.split("|")[3])) - {"done", "skipped", "failed"}
    picture("a.png")
    assert run(*command) == 0
    told = json.loads(capsys.readouterr().out)
    first = told[0] if isinstance(told, list) else told
    assert documented == set(first).union(*first.get("classes", []))


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.usefixtures("folder")
def test_untrained_weights_are_reported_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    reach(FakeTransport(cats, weights="none"), monkeypatch)
    picture("a.png")
    picture("b.png")
    assert run("segment", ".", *options) == 0
    assert capsys.readouterr().err.count("UNTRAINED WEIGHTS") == 1
    assert run("segment", ".", "-o", "out", "-f", "coco") == 0
    assert "UNTRAINED" in json.loads(Path("out/annotations.json").read_text())["info"]["description"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["segment"], "IMAGE"),
        (["segment", ""], "must not be empty"),
        (["segment", "nothing/*.png"], "matches no file"),
        (["segment", "empty"], "contains no pictures.*--recursive"),
        (["segment", "a.png", "--format", "ids"], "--output"),
        (["segment", "a.png", "--format", "gif", "-o", "out"], "ids, json or coco, got 'gif'$"),
        (["segment", "a.png", "-f", "ids,json", "-o", "out"], "--format.*got 'ids,json': repeat the option"),
        (["segment", "a.png", "--alpha", "2"], "alpha"),
        (["segment", "a.png", "--concurrency", "0"], "concurrency"),
        (["segment", "a.png", "-o", "a.png"], r"--output.*\n?.*must be a folder, but a\.png is a file"),
        (["segment", "a.png", "-o", "a.png/deep"], r"a\.png/deep is a file or lies below one"),
        (["segment", "a.png", "--alpha", "1"], "--alpha.*--output"),
        (["segment", "a.png", "--legend"], "--legend.*--output"),
        (
            ["segment", "a.png", "--legend", "-f", "ids", "-f", "json", "-o", "out"],
            "--legend.*--format ids --format json",
        ),
        (["segment", "a.png", "--alpha", "0.5", "-f", "coco", "-o", "out"], "--alpha.*--format coco"),
        (["segment", "a.png", "--no-such"], "no-such"),
        (["other"], "other"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_wrong_command_line_sends_nothing(
    fake: FakeTransport, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    picture("a.png")
    Path("empty").mkdir()
    assert run(*arguments) == 2
    assert re.search(words, capsys.readouterr().err)
    assert not fake.requests


@pytest.mark.parametrize(("option", "value"), [("--url", "ftp://host"), ("--timeout", "0"), ("--model", "")])
def test_a_wrong_address_or_timeout_is_named(capsys: pytest.CaptureFixture[str], option: str, value: str) -> None:
    assert app.run(["ping", "--url", URL, option, value]) == 2
    assert option in capsys.readouterr().err


@pytest.mark.usefixtures("fake")
def test_the_address_may_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["ping"]) == 2
    assert "DEEPLAB_URL" in capsys.readouterr().err
    monkeypatch.setenv("DEEPLAB_URL", URL)
    assert app.run(["ping"]) == 0
    assert URL in capsys.readouterr().out


@pytest.mark.usefixtures("folder")
def test_model_and_timeout_of_the_environment_hold_unless_they_are_given(
    fake: FakeTransport, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DEEPLAB_MODEL", "segment_resnet101")
    monkeypatch.setenv("DEEPLAB_TIMEOUT", "7")
    picture("a.png")
    assert run("segment", "a.png") == 0
    assert fake.requests[-1].model == "segment_resnet101"
    assert 5 < fake.requests[-1].seconds_left <= 7
    assert run("segment", "a.png", "--model", "mine", "--timeout", "99") == 0
    assert fake.requests[-1].model == "mine"
    assert 90 < fake.requests[-1].seconds_left <= 99
    monkeypatch.setenv("DEEPLAB_TIMEOUT", "soon")
    assert run("ping") == 2
    assert "DEEPLAB_TIMEOUT" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DEEPLAB_TOKEN", "not a token"),
        ("DEEPLAB_RETRIES", "-1"),
        ("DEEPLAB_RETRIES", "often"),
        ("DEEPLAB_COMPRESSION", "zip"),
        ("DEEPLAB_MASK_FORMAT", "gif"),
        ("DEEPLAB_CERTIFICATE_FILE", "mine.pem"),
        ("DEEPLAB_CA_FILE", "ca.pem"),
    ],
)
def test_an_invalid_variable_is_named_instead_of_an_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert run("ping") == 2
    told = capsys.readouterr().err
    assert name in told
    assert "for --" not in told


def test_ping_reports_untrained_weights(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reach(FakeTransport(weights="none"), monkeypatch)
    assert run("ping") == 0
    assert "serves segment_resnet50, untrained weights (" in capsys.readouterr().out
    assert run("ping", "--json") == 0
    assert json.loads(capsys.readouterr().out)["weights"] == "none"
    reach(FakeTransport(), monkeypatch)
    assert run("ping") == 0
    assert "untrained" not in capsys.readouterr().out


class Guarded(FakeTransport):
    """A server that denies access to some requests."""

    def __init__(self, *closed: str) -> None:
        super().__init__()
        self.closed_to_us = closed

    def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        self._check_open("is_ready")
        return super().is_ready(model, deadline=deadline)

    def model_versions(self, *, deadline: Deadline) -> dict[str, str]:
        self._check_open("model_versions")
        return super().model_versions(deadline=deadline)

    def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        self._check_open("model_config")
        return super().model_config(model, deadline=deadline)

    def _check_open(self, question: str) -> None:
        if question in self.closed_to_us:
            raise AccessDeniedError(f"{question} is restricted")


def test_ping_finds_the_model_of_a_server_that_hides_its_readiness(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reach(Guarded("is_ready"), monkeypatch)
    assert run("ping", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] is None
    assert "has the model" in told["reason"]
    assert run("ping") == 0
    assert capsys.readouterr().out.startswith("readiness unknown (the server has the model, but denies access")
    assert run("ping", "--model", "x") == 4


@pytest.mark.parametrize("closed", ["model_versions", "model_config"])
def test_a_server_that_closes_its_models_is_ready_without_weights_and_a_remedy_is_named_for_its_classes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], closed: str
) -> None:
    reach(Guarded(closed), monkeypatch)
    assert run("ping", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ready"], told["reason"], told["weights"]) == (True, None, None)
    assert run("classes") == 4
    told = capsys.readouterr()
    assert "denies access to its list of models: segment a picture with --format coco" in told.err
    reach(Guarded(closed, "is_ready"), monkeypatch)
    assert run("ping") == 4
    assert "segment a picture to check whether inference is allowed" in capsys.readouterr().err


def test_ping_reports_the_reason(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    transport = reach(FakeTransport(models=["segment_resnet50"], ready=False), monkeypatch)
    assert run("ping") == 3
    assert f"{URL} or its model 'segment_resnet50' is not ready" in capsys.readouterr().err
    assert run("ping", "--json") == 3
    told = json.loads(capsys.readouterr().out)
    assert told["ready"] is False
    assert "is not ready" in told["reason"]
    transport.ready = True
    assert run("ping", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["ready"], told["reason"]) == (True, None)
    monkeypatch.undo()
    monkeypatch.setenv("DEEPLAB_RETRIES", "0")
    server = HttpServer(Script())
    server.stop()
    assert app.run(["ping", "--url", url(server)]) == 3
    assert f"{url(server)} is not available" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["ping", "classes", "segment a.png", "segment a.png --output out"])
@pytest.mark.usefixtures("folder")
def test_a_model_that_is_not_served_names_those_that_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    fake = reach(FakeTransport(models=["mine", "yours"]), monkeypatch)
    picture("a.png")
    assert run(*command.split(), "--model", "x") == 4
    assert re.search(r"model 'x'.*; its segmentation models are mine, yours$", capsys.readouterr().err, re.MULTILINE)
    assert not fake.requests


@pytest.mark.parametrize("command", ["ping", "classes", "models"])
def test_queries_send_no_picture(fake: FakeTransport, command: str) -> None:
    assert run(command) == 0
    assert not fake.requests


def test_the_models_of_a_server_are_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reach(FakeTransport(class_names=["none", "road"], weights=None, models=["mine"]), monkeypatch)
    assert run("models") == 0
    assert capsys.readouterr().out == "mine\t1\t?\tfp32\t2\t50000000\n"
    assert run("models", "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["name"], told["class_names"], told["background"]) == ("mine", ["none", "road"], True)
    reach(FakeTransport(models=[]), monkeypatch)
    assert run("models") == 0
    assert "no segmentation model" in capsys.readouterr().err


def test_classes_without_a_background_have_the_colors_of_an_overlay(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reach(FakeTransport(class_names=["road", "sky"], background=False, weights="none"), monkeypatch)
    assert run("classes", "--json") == 0
    told = capsys.readouterr()
    assert json.loads(told.out)[0] == {"id": 0, "name": "road", "color": [128, 0, 0]}
    assert "UNTRAINED WEIGHTS" in told.err


def test_classes_are_those_of_the_server(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    reach(FakeTransport(class_names=["none", "road"]), monkeypatch)
    assert run("classes") == 0
    assert capsys.readouterr().out == "0\tnone\n1\troad\n"
    assert run("classes", "--json") == 0
    assert json.loads(capsys.readouterr().out)[1] == {"id": 1, "name": "road", "color": [128, 0, 0]}


def on_a_terminal(*arguments: str, code: int = 0) -> str:
    """Return the output in a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    shown = io.BytesIO()
    try:
        with start(*arguments, stdin=theirs, terminal=theirs) as process:
            os.close(theirs)
            # On Linux, reading from a terminal whose other side is closed is an I/O error.
            while data := _read(ours):
                shown.write(data)
        assert process.returncode == code, shown.getvalue()
    finally:
        os.close(ours)
    return shown.getvalue().decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:
        return b""


@pytest.mark.usefixtures("folder")
def test_a_terminal_gets_a_bar_a_warning_and_a_table() -> None:
    picture("a [bold]b.png")
    shown = on_a_terminal("segment", "a [bold]b.png", "-o", "out")
    assert "segmenting" in shown
    assert "\x1b[" in shown
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
    assert "answers with UNTRAINED WEIGHTS" in plain
    assert re.search(r"│ a \[bold\]b\.png +│ +20x12 │ cat 100\.0% +│\r?\n", plain), (
        "its output's name follows from its own"
    )
    assert "output in out" in plain
    assert "1 of 1 picture segmented" in plain
    assert "\x1b[4" in on_a_terminal("classes"), "swatches"


@pytest.mark.usefixtures("folder")
def test_a_pipe_gets_no_escapes_even_when_the_pipe_breaks() -> None:
    for i in range(5):
        picture(f"{i}.png")
    with start("segment", ".") as process:
        out, errors = process.communicate(timeout=20)
    assert b"\x1b" not in out + errors
    assert process.returncode == 0
    with start("segment", ".", "--json") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        errors = process.stderr.read()
    assert b"Traceback" not in errors
    assert process.returncode == 1


@pytest.mark.parametrize(
    ("redirection", "words"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
@pytest.mark.usefixtures("folder")
def test_an_unwritable_stdout_is_reported_and_the_pictures_are_segmented(redirection: str, words: str) -> None:
    for i in range(3):
        picture(f"{i}.png")
    shell = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-c", PROGRAM]
    for arguments in (["segment", ".", "-o", "out"], ["ping"]):
        done = subprocess.run([*shell, *arguments, "--url", URL], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.count(f"deeplab: cannot write to standard output: {words}\n") == 1
        assert "Traceback" not in done.stderr
        assert "Exception" not in done.stderr
    assert files("out") == {f"{i}.png.overlay.png" for i in range(3)}
    silent = subprocess.run(
        [*shell[:2], f'exec "$@" 2{redirection}', *shell[3:], "segment", ".", "--url", URL],
        capture_output=True,
        text=True,
        check=False,
    )
    assert silent.returncode == 0
    assert len(silent.stdout.splitlines()) == 3


@pytest.mark.usefixtures("folder")
def test_a_terminal_without_the_letters_gets_their_codes() -> None:
    picture("kühe.png")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-c", PROGRAM, "segment", "kühe.png", "--url", URL]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("k\\xfche.png\t")


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_without_its_extra_the_command_line_names_the_package_to_install(module: str) -> None:
    code = f"import sys; sys.modules[{module!r}] = None; from deeplab_client.__main__ import main; main()"
    done = python(code)
    assert done.returncode == 2
    hint = f"pip install './client[cli]' in a checkout of the project, or pip install {module}"
    assert done.stderr == f"deeplab: the command line needs {module}: {hint}\n"


@pytest.mark.parametrize("command", ["", "segment", "classes", "models", "ping"])
def test_the_help_names_every_variable_and_shows_no_python(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert app.run([*command.split(), "--help"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    for name in ("URL", "MODEL", "TIMEOUT", "TOKEN", "CA_FILE", "CERTIFICATE_FILE", "KEY_FILE", "RETRIES"):
        assert f"DEEPLAB_{name}" in told
    for word in ("DEEPLAB_COMPRESSION", "DEEPLAB_MASK_FORMAT", "Exit codes: 0"):
        assert word in told
    for word in ("range>", "(overlay)"):
        assert word not in told
    _, _, commands = told.partition("Commands")
    assert "..." not in commands, "each command is told in a whole sentence"


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run(["--version"]) == 0
    assert re.fullmatch(r"deeplab-client \d+\.\d+\.\d+\S*\n", capsys.readouterr().out)


@pytest.mark.usefixtures("fake", "folder")
def test_a_terminal_gets_the_reasons_below_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("good.png")
    picture("deep/x.png")
    picture("x.png")
    Path("empty.jpg").touch()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", sys.stdout)

    def shown(*arguments: str, code: int = 0) -> tuple[str, str]:
        """Return the output up to the end of the table, and the rest."""
        assert run("segment", *arguments) == code
        above, _, below = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capsys.readouterr().out).rpartition("┘")
        return above, below

    table, below = shown("empty.jpg", "good.png", code=1)
    assert "output" not in table
    assert "\nempty.jpg: 'empty.jpg' is empty\n1 of 2 pictures segmented" in below
    assert "output" not in shown("x.png", "-o", "out")[0]
    table, _ = shown("deep", "-o", "out")
    assert "out/deep/x.png.overlay.png" in table, "a name that does not follow from the picture's is shown"


def test_grpc_itself_writes_nothing() -> None:
    server = HttpServer(Script())
    main = "from deeplab_client.__main__ import main; main()"
    done = python(main, "ping", "--url", f"grpcs://127.0.0.1:{server.port}")
    server.stop()
    assert done.returncode == 3
    assert [line.startswith("deeplab: ") for line in done.stderr.splitlines()] == [True]
