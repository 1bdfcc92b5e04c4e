"""The outputs of the command line, their names, and repeated runs; with a fake instead of the server."""

from __future__ import annotations

import errno
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from command_line import HEIGHT, WIDTH, cats, files, picture, reach, run, start, states, touched
from PIL import Image
from pycocotools import mask as mask_utils
from pycocotools.coco import COCO

from deeplab_client import (
    AccessDeniedError,
    InvalidImageError,
    ModelNotFoundError,
    Segmentation,
    ServerUnavailableError,
    voc,
)
from deeplab_client._cli import app, outputs, record
from deeplab_client.testing import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Callable

    from deeplab_client._deadline import Deadline
    from deeplab_client._transport import ModelConfig

pytestmark = pytest.mark.unit


@pytest.mark.usefixtures("fake", "folder")
def test_each_format_has_its_documented_content() -> None:
    picture("a.png")
    for kind in ("overlay", "colors", "ids", "json", "coco"):
        assert run("segment", "a.png", "--output", "out", "--format", kind) == 0
    assert files("out") == {
        *(f"a.png.{kind}" for kind in ("overlay.png", "colors.png", "ids.png", "json")),
        "annotations.json",
    }
    cat = np.zeros((HEIGHT, WIDTH), np.bool_)
    cat[:, WIDTH // 2 :] = True
    with Image.open("out/a.png.ids.png") as ids:
        assert ids.mode == "P"
        assert (np.asarray(ids) == cat * 8).all()
    with Image.open("out/a.png.colors.png") as mask:
        assert (np.asarray(mask) == cat[:, :, np.newaxis] * voc.PALETTE[8]).all()
    with Image.open("out/a.png.overlay.png") as overlay:
        expected = cat[:, :, np.newaxis] * (200 * 0.5 + voc.PALETTE[8] * 0.5)
        assert (np.asarray(overlay) == expected).all()
    described = json.loads(Path("out/a.png.json").read_text())
    assert (described["width"], described["height"], described["top_class"]) == (WIDTH, HEIGHT, "cat")
    rles = {one["name"]: one["rle"] for one in described["classes"]}
    assert (mask_utils.decode(rles["cat"]) == cat).all()
    loaded: Any = COCO("out/annotations.json")
    (annotation,) = loaded.loadAnns(loaded.getAnnIds(catIds=loaded.getCatIds(catNms=["cat"])))
    assert (loaded.annToMask(annotation) == cat).all()
    assert loaded.loadImgs([1])[0]["file_name"] == "a.png"


@pytest.mark.usefixtures("folder")
def test_several_formats_are_made_of_one_result(fake: FakeTransport, capsys: pytest.CaptureFixture[str]) -> None:
    picture("in/a.png")
    picture("in/b/c.png")
    several = ["in", "-r", "-o", "out", "-f", "ids", "-f", "json", "-f", "coco"]
    assert run("segment", *several) == 0
    outputs = {"a.png.ids.png", "a.png.json", "b/c.png.ids.png", "b/c.png.json", "annotations.json"}
    assert files("out") == outputs
    assert len(fake.requests) == 2
    told = [line.split("\t")[4:] for line in capsys.readouterr().out.splitlines()]
    assert told == [[f"out/{n}.ids.png", f"out/{n}.json", "out/annotations.json"] for n in ("a.png", "b/c.png")]
    assert run("segment", *several, "--json") == 0
    skipped = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["state"], one["outputs"]) for one in skipped] == [("skipped", paths) for paths in told]
    Path("out/a.png.json").unlink()
    assert set(states(capsys, "in", "-r", "-f", "ids").values()) == {"skipped"}
    assert sorted(states(capsys, *several[:2], *several[4:]).values()) == ["done", "skipped"], "one file is missing"
    assert files("out") == outputs
    assert len(fake.requests) == 3


@pytest.mark.usefixtures("fake", "folder")
def test_all_outputs_of_a_name_are_of_one_picture(capsys: pytest.CaptureFixture[str]) -> None:
    picture("day1/a.png")
    picture("day2/a.png")
    assert states(capsys, "day1/a.png", "-f", "overlay") == {"day1/a.png": "done"}
    assert states(capsys, "day2/a.png", "-f", "json") == {"day2/a.png": "done"}
    assert states(capsys, "day2/a.png", "-f", "overlay") == {"day2/a.png": "done"}
    assert files("out") == {"a.png.overlay.png", "day2/a.png.json", "day2/a.png.overlay.png"}


@pytest.mark.usefixtures("fake", "folder")
def test_options_of_an_overlay_reach_it() -> None:
    picture("a.png")
    assert run("segment", "a.png", "-o", "out", "--alpha", "1", "--legend") == 0
    with Image.open("out/a.png.overlay.png") as overlay:
        assert overlay.width > WIDTH
        assert overlay.getpixel((WIDTH - 1, 0)) == (64, 0, 0)


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (["x.jpg", "x.png", "y.2.jpg"], ["x.jpg", "x.png", "y.2.jpg"]),
        (["p -r"], ["a/x.jpg", "a/x.png", "b/x.jpg"]),
        (["day1/x.jpg", "day2/x.jpg"], ["x.jpg", "day2/x.jpg"]),
        (["day1/x.jpg day2/x.jpg"], ["x.jpg", "day2/x.jpg"]),
        (["day1/x.jpg", "q/day1/x.jpg", "day2/x.jpg"], ["x.jpg", "day1/x.jpg", "day2/x.jpg"]),
        (["day1/x.jpg", "q/day1/x.jpg", "r/day1/x.jpg"], ["x.jpg", "day1/x.jpg", "r/day1/x.jpg"]),
        (["day1", "day2"], ["x.jpg", "day2/x.jpg"]),
        (["p/a/x.jpg", "p -r"], ["x.jpg", "a/x.png", "b/x.jpg"]),
        (["day1/x.jpg", "../b/x.jpg", "day1/../day2/x.jpg"], ["x.jpg", "b/x.jpg", "day2/x.jpg"]),
        (["*/x.jpg"], ["x.jpg", "day2/x.jpg"]),
    ],
)
@pytest.mark.usefixtures("folder")
def test_every_picture_keeps_an_output_of_its_own(fake: FakeTransport, runs: list[str], names: list[str]) -> None:
    for path in ("day1/x.jpg", "day2/x.jpg", "p/a/x.jpg", "p/a/x.png", "p/b/x.jpg", "q/day1/x.jpg", "r/day1/x.jpg"):
        picture(path)
    for path in ("x.jpg", "x.png", "y.2.jpg", "../b/x.jpg"):
        picture(path)
    written: dict[str, bytes] = {}
    for arguments in runs * 2:
        assert run("segment", *arguments.split(), "-o", "out") == 0
        assert {name: Path("out", name).read_bytes() for name in written} == written
        written = {name: Path("out", name).read_bytes() for name in files("out")}
    assert set(written) == {f"{name}.overlay.png" for name in names}
    assert len(fake.requests) == len(names)


@pytest.mark.usefixtures("folder")
def test_a_new_picture_in_a_folder_renames_no_output(fake: FakeTransport, capsys: pytest.CaptureFixture[str]) -> None:
    picture("in/x.png")
    assert states(capsys, "in", "-r") == {"in/x.png": "done"}
    (name,) = files("out")
    before = Path("out", name).read_bytes()
    for other in ("in/x.jpg", "in/X.png", "in/a/x.png", "in/x.png.png"):
        picture(other)
    assert states(capsys, "in", "-r")["in/x.png"] == "skipped"
    assert Path("out", name).read_bytes() == before
    assert len(files("out")) == len(fake.requests) == 5


@pytest.mark.parametrize("content", [b"", b"mine", b"\x89PNG\r\n\x1a\n", None])
@pytest.mark.usefixtures("folder")
def test_a_foreign_file_is_not_overwritten(
    fake: FakeTransport, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    picture("in/x.png")
    mine = Path("out/x.png.overlay.png")
    picture(mine)
    if content is not None:
        mine.write_bytes(content)
    content = mine.read_bytes()
    assert states(capsys, "in/x.png") == {"in/x.png": "done"}
    assert states(capsys, "in/x.png") == {"in/x.png": "skipped"}
    assert states(capsys, "in/x.png", "--force") == {"in/x.png": "done"}
    assert mine.read_bytes() == content
    assert files("out") == {"x.png.overlay.png", "in/x.png.overlay.png"}
    assert len(fake.requests) == 2


@pytest.mark.usefixtures("fake", "folder")
def test_names_that_are_taken_in_other_ways_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a folder, a broken link, or a file in the place of a folder."""
    for name in ("a/x.png", "a/y.png", "b/x.png"):
        picture(name)
    Path("out/x.png.overlay.png").mkdir(parents=True)
    Path("out/y.png.overlay.png").symlink_to("nowhere")
    Path("out/a").touch()
    assert states(capsys, "a/x.png", "a/y.png", "b/x.png") == dict.fromkeys(("a/x.png", "a/y.png", "b/x.png"), "done")
    found = {"here/a/x.png.overlay.png", "here/a/y.png.overlay.png", "b/x.png.overlay.png"}
    assert files("out") == {"a", *found}
    # If every folder of the path is taken: numbers.
    parts = Path("out", *(tmp_path / "here").parts[1:])
    for folder in (Path("out"), *(Path("out", *parts.parts[-count:]) for count in range(1, len(parts.parts)))):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "z.png.overlay.png").touch()
    picture("z.png")
    assert states(capsys, "z.png") == {"z.png": "done"}
    assert states(capsys, "z.png") == {"z.png": "skipped"}
    assert (parts / "z.png-2.overlay.png").exists()


def grown(path: Path) -> None:
    about = path.stat()
    with path.open("ab") as file:
        file.write(b"0")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


def cut_off(path: Path) -> None:
    for output in Path("out").glob(f"{path.name}.*"):
        output.write_bytes(output.read_bytes()[:-1])


@pytest.mark.parametrize("kind", ["overlay", "json"])
@pytest.mark.parametrize(
    "change", [touched, grown, cut_off, ["--model", "other"], ["--confidence", "0.8"], ["--tile", "64"]]
)
@pytest.mark.usefixtures("folder")
def test_a_picture_is_done_only_as_it_is_and_in_the_same_way(
    fake: FakeTransport, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None] | list[str], kind: str
) -> None:
    picture("a.png")
    assert states(capsys, "a.png", "-f", kind) == {"a.png": "done"}
    assert states(capsys, "a.png", "-f", kind) == {"a.png": "skipped"}
    (name,) = files("out")
    options = change if isinstance(change, list) else []
    if not isinstance(change, list):
        change(Path("a.png"))
    assert states(capsys, "a.png", "-f", kind, *options) == {"a.png": "done"}
    assert states(capsys, "a.png", "-f", kind, *options) == {"a.png": "skipped"}
    assert files("out") == {name}, "the new output has replaced the old one"
    if kind == "json":
        assert json.loads(Path("out", name).read_text())["top_class"] == "cat"
    else:
        with Image.open(Path("out", name)) as overlay:
            overlay.load()
    assert len(fake.requests) == 2


@pytest.mark.parametrize("options", [["--alpha", "0.4"], ["--legend"]])
@pytest.mark.usefixtures("fake", "folder")
def test_options_of_an_overlay_make_it_alone_again(capsys: pytest.CaptureFixture[str], options: list[str]) -> None:
    picture("a.png")
    assert states(capsys, "a.png") == {"a.png": "done"}
    assert states(capsys, "a.png", *options) == {"a.png": "done"}
    assert states(capsys, "a.png", *options) == {"a.png": "skipped"}
    assert states(capsys, "a.png", "-f", "ids") == {"a.png": "done"}
    assert states(capsys, "a.png", "-f", "overlay", "-f", "ids", *options) == {"a.png": "skipped"}


@pytest.mark.parametrize("closed", [AccessDeniedError("the list of models is restricted"), ModelNotFoundError("404")])
@pytest.mark.usefixtures("folder")
def test_pictures_are_done_also_where_the_server_does_not_let_us_ask_for_its_models(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], closed: Exception
) -> None:
    class Guarded(FakeTransport):
        def model_versions(self, *, deadline: Deadline) -> dict[str, str]:
            del deadline
            raise closed

    reach(Guarded(cats), monkeypatch)
    picture("a.png")
    both = ["a.png", "-f", "ids", "-f", "coco"]
    assert states(capsys, *both) == {"a.png": "done"}
    assert states(capsys, *both) == {"a.png": "skipped"}


def test_other_weights_segment_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(folder / "a.png")
    for weights, state in (("none", "done"), ("best.pth", "done"), ("best.pth", "skipped"), (None, "done")):
        reach(FakeTransport(cats, weights=weights), monkeypatch)
        assert states(capsys, "a.png") == {"a.png": state}, weights
    assert states(capsys, "a.png") == {"a.png": "skipped"}, "a server that does not tell, as before"


@pytest.mark.usefixtures("folder")
def test_whether_pictures_are_done_is_known_only_with_the_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Leaving(FakeTransport):
        left = 0

        def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
            if self.left:
                self.left -= 1
                raise ServerUnavailableError("nobody there")
            return super().model_config(model, deadline=deadline)

    transport = Leaving(cats)
    reach(transport, monkeypatch)
    picture("a.png")
    assert states(capsys, "a.png") == {"a.png": "done"}
    transport.left = 1  # found by a retry
    assert states(capsys, "a.png") == {"a.png": "skipped"}
    transport.left = 9
    assert states(capsys, "a.png", code=3) == {}
    assert len(transport.requests) == 1


@pytest.mark.usefixtures("fake", "folder")
def test_the_same_picture_is_known_by_every_path_to_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    picture("in/deep/a.png")
    Path("link").symlink_to("in")
    assert states(capsys, "in", "-r") == {"in/deep/a.png": "done"}
    for path in ("in/deep/a.png", "link/deep/a.png", "in/../in/deep/a.png", str(tmp_path / "here/in/deep/a.png")):
        assert states(capsys, path) == {path: "skipped"}
    assert states(capsys, "link", "-r") == {"link/deep/a.png": "skipped"}
    Path("out").rename("elsewhere")
    Path("out").symlink_to("elsewhere")
    monkeypatch.chdir("in")
    Path("out").symlink_to("../elsewhere")
    assert states(capsys, ".", "-r") == {"deep/a.png": "skipped"}
    assert app.run(["segment", "deep", "-o", "out", "--url", "http://other:8000"]) == 0
    assert "1 skipped" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_a_link_that_leads_elsewhere_now_is_a_changed_picture(
    fake: FakeTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("day1/a.png")
    picture("day2/a.png")
    touched(Path("day2/a.png"))
    for day in ("day1", "day2"):
        for link, target in (("latest.png", f"{day}/a.png"), ("current", day)):
            Path(link).unlink(missing_ok=True)
            Path(link).symlink_to(target)
        assert set(states(capsys, "latest.png", "current/a.png").values()) == {"done"}
    assert len(fake.requests) == 4
    assert files("out") == {"latest.png.overlay.png", "a.png.overlay.png", "day2/a.png.overlay.png"}


@pytest.mark.usefixtures("folder")
def test_a_missing_picture_is_an_error_even_if_its_output_exists(
    fake: FakeTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("day1/a.png")
    assert run("segment", "day1/a.png", "-o", "out") == 0
    Path("day1/a.png").unlink()
    for path in ("day1/a.png", "day2/a.png", "a.png"):
        assert run("segment", path, "-o", "out") == 1
        assert f"deeplab: {path}: cannot be read: No such file or directory\n" in capsys.readouterr().err
    assert len(fake.requests) == 1


@pytest.mark.usefixtures("fake", "folder")
def test_outputs_do_not_give_away_where_their_pictures_are(tmp_path: Path) -> None:
    picture("secret/a.png")
    kinds = ("overlay", "colors", "ids", "json", "coco")
    assert run("segment", "secret", "-o", "out", *(word for kind in kinds for word in ("-f", kind))) == 0
    assert len(files("out")) == len(kinds)
    for name in files("out"):
        data = Path("out", name).read_bytes()
        assert b"secret" not in data
        assert os.fsencode(tmp_path.name) not in data
        if name.endswith(".png"):
            with Image.open(Path("out", name)) as output:
                made = json.loads(output.info["deeplab segment"])
        else:
            about = json.loads(data)
            (made,) = [one["deeplab segment"] for one in about.get("images", [about])]
        assert set(made) >= {"source", "size", "modified", "model", "weights"}


@pytest.mark.parametrize("limit", [errno.EMFILE, errno.ENFILE])
@pytest.mark.usefixtures("fake", "folder")
def test_a_picture_waits_where_too_many_files_are_open(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    read, write, draw = record.read, outputs.write_atomically, Segmentation.overlay
    refusals = dict.fromkeys((read, write, draw), 2)

    def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - of any function
            refusals[function] -= 1
            if refusals[function] < 0:
                return function(*arguments, **options)
            refusal = OSError(limit, os.strerror(limit))
            if function is draw:  # as in the client
                raise InvalidImageError("cannot read the image") from refusal
            raise refusal

        return call

    monkeypatch.setattr(record, "read", guarded(read))
    monkeypatch.setattr(outputs, "write_atomically", guarded(write))
    monkeypatch.setattr(Segmentation, "overlay", guarded(draw))
    picture("a.png")
    assert run("segment", "a.png", "-o", "out") == 0
    assert files("out") == {"a.png.overlay.png"}


@pytest.mark.parametrize("links", [True, False], ids=["links", "no links"])
@pytest.mark.usefixtures("folder")
def test_two_runs_at_once_do_not_take_each_others_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, links: bool
) -> None:
    """The other run writes its output just before the first one does."""
    picture("day1/a.png")
    picture("day2/a.png")
    reach(FakeTransport(cats), monkeypatch)
    write, runs = outputs.write_atomically, iter(["day2/a.png"])

    def interrupted(path: Path, data: bytes, *, replace: bool = True) -> None:
        for other in runs:
            assert run("segment", other, "-o", "out") == 0
        write(path, data, replace=replace)

    def no_links(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # as on FAT

    monkeypatch.setattr(outputs, "write_atomically", interrupted)
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    assert run("segment", "day1/a.png", "-o", "out") == 0
    assert files("out") == {"a.png.overlay.png", "day1/a.png.overlay.png"}
    assert states(capsys, "day1/a.png", "day2/a.png") == {"day1/a.png": "skipped", "day2/a.png": "skipped"}


@pytest.mark.usefixtures("folder")
def test_outputs_are_made_again_when_forced(fake: FakeTransport, capsys: pytest.CaptureFixture[str]) -> None:
    picture("a.png")
    picture("b.png")
    assert run("segment", "a.png", "-o", "out") == 0
    assert run("segment", "a.png", "b.png", "-o", "out") == 0
    told = capsys.readouterr().err
    assert "deeplab: a.png: skipped, because it was done before: out/a.png.overlay.png\n" in told
    assert "1 of 2 pictures segmented" in told
    assert "1 skipped" in told
    assert run("segment", "a.png", "b.png", "-o", "out", "--force") == 0
    assert len(fake.requests) == 4
    assert files("out") == {"a.png.overlay.png", "b.png.overlay.png"}


@pytest.mark.usefixtures("fake", "folder")
def test_a_name_may_be_nothing_but_a_suffix() -> None:
    picture("x.jpg").rename("..jpg")
    assert run("segment", "..jpg", "-o", "out") == 0
    assert files("out") == {"..jpg.overlay.png"}


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device")])
def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
) -> None:
    path = tmp_path / "a.png"
    outputs.write_atomically(path, b"first")
    assert path.read_bytes() == b"first"
    write = Path.write_bytes

    def half(self: Path, data: bytes) -> int:
        write(self, data[: len(data) // 2])
        raise failure

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(type(failure) if isinstance(failure, OSError) else KeyboardInterrupt):
        outputs.write_atomically(path, b"second")
    assert files(tmp_path) == {"a.png"}
    assert path.read_bytes() == b"first"


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.usefixtures("folder")
def test_an_interrupted_run_leaves_complete_files_and_can_be_resumed(end: signal.Signals) -> None:
    for i in range(3):
        picture(f"{i}.png")
    Path("3.png").write_bytes(b"hold")
    picture("4.png")
    with start("segment", ".", "-o", "out", "-f", "ids", "--concurrency", "1") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]  # the fourth never comes
        process.send_signal(end)
        Path("go").touch()  # waiting for a reply cannot be interrupted in a fake
        _, errors = process.communicate(timeout=20)
    assert process.returncode == -end, "a shell's loop ends too"
    assert [line.split(b"\t")[0] for line in lines] == [b"0.png", b"1.png", b"2.png"]
    if end is signal.SIGINT:
        assert b"3 of 5 pictures segmented" in errors
        assert errors.endswith(b"deeplab: interrupted\n")
        assert b"Traceback" not in errors
    assert files("out") == {f"{i}.png.ids.png" for i in range(3)}
    for name in files("out"):
        with Image.open(Path("out", name)) as whole:
            whole.load()
    picture("3.png")
    with start("segment", ".", "-o", "out", "-f", "ids") as process:
        out, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert [line.split(b"\t")[0] for line in out.splitlines()] == [b"3.png", b"4.png"]
    assert b"3 skipped" in errors
