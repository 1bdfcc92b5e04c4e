"""The COCO file that the command line writes, and how a later run continues it; with a fake instead of the server."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from command_line import broken, cats, files, picture, reach, run, start, states, touched
from pycocotools.coco import COCO

from deeplab_client import AccessDeniedError, InvalidImageError
from deeplab_client.testing import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.unit

FILE = Path("out/annotations.json")


def names() -> list[str]:
    """Return the pictures of the file in order, after checking the ids of images and annotations."""
    told = json.loads(FILE.read_bytes())
    assert [image["id"] for image in told["images"]] == list(range(1, len(told["images"]) + 1))
    assert [one["id"] for one in told["annotations"]] == list(range(1, len(told["annotations"]) + 1))
    assert [one["image_id"] for one in told["annotations"]] == [image["id"] for image in told["images"]]
    return [image["file_name"] for image in told["images"]]


@pytest.mark.usefixtures("folder")
def test_an_interrupt_writes_the_annotations_of_finished_pictures() -> None:
    for i in range(3):
        picture(f"{i}.png")
    Path("2.png").write_bytes(b"hold")
    with start("segment", ".", "-o", "out", "-f", "coco", "--concurrency", "1") as process:
        assert process.stdout is not None
        for _ in range(2):
            process.stdout.readline()
        process.send_signal(signal.SIGINT)
        Path("go").touch()
        _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert b"2 of 3 pictures segmented" in errors
    annotated = json.loads(Path("out/annotations.json").read_text())
    assert [image["file_name"] for image in annotated["images"]] == ["0.png", "1.png"]


@pytest.mark.usefixtures("folder")
def test_annotations_are_kept_when_the_pipe_breaks() -> None:
    for i in range(5):
        picture(f"{i}.png")
    Path("2.png").write_bytes(b"hold")
    with start("segment", ".", "-o", "out", "-f", "coco", "--concurrency", "1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.readline()
        process.stdout.close()
        Path("go").touch()
        errors = process.stderr.read()
    assert process.returncode == 1
    annotated = json.loads(Path("out/annotations.json").read_text())
    assert [image["file_name"] for image in annotated["images"]][:2] == ["0.png", "1.png"]
    assert b"segmented" in errors
    assert b"standard output was closed" in errors
    assert b"Traceback" not in errors


@pytest.mark.parametrize(
    ("arguments", "root"),
    [
        (["photos", "-r"], "photos"),
        (["photos/"], "photos"),
        (["photos/sub/b.jpg"], "photos/sub"),
        (["photos/*.jpg"], "photos"),
        (["photos/**/*.jpg"], "photos"),
        (["photos", "other", "-r"], "."),
        (["photos/a.jpg", "photos/sub/b.jpg"], "photos"),
        (["link", "-r"], "link"),
        (["../here/photos", "-r"], "photos"),
        (["."], "."),
    ],
)
@pytest.mark.usefixtures("fake", "folder")
def test_loaders_find_annotated_pictures_from_the_folder_that_was_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], root: str
) -> None:
    for name in ("photos/a.jpg", "photos/sub/b.jpg", "other/c.jpg", "d.jpg"):
        picture(name)
    Path("link").symlink_to("photos")
    assert run("segment", *arguments, "-o", "out", "-f", "coco") == 0
    told = capsys.readouterr()
    pictures = [line.split("\t")[0] for line in told.out.splitlines()]
    names = [image["file_name"] for image in json.loads(Path("out/annotations.json").read_text())["images"]]
    assert len(pictures) == len(names) > 0
    for path, name in zip(pictures, names, strict=True):
        assert not Path(name).is_absolute()
        assert Path(root, name).samefile(path)
    assert f"file names in annotations.json are relative to {Path(root).resolve()}\n" in told.err


@pytest.mark.usefixtures("fake", "folder")
def test_annotations_are_json_for_any_file_name(capsys: pytest.CaptureFixture[str]) -> None:
    names = [b"\xff.png", b"\xfe.png", "k\u00fche \U0001f404.png".encode(), b'"\\.png']
    for name in names:
        picture("in/plain.png").rename(Path("in", os.fsdecode(name)))
    assert run("segment", "in", "-o", "out", "-f", "coco") == 0
    told = capsys.readouterr().err
    assert re.search(r"not valid UTF-8: 2; .*rename", told)
    annotated = json.loads(Path("out/annotations.json").read_bytes())
    found = {image["file_name"] for image in annotated["images"]}
    assert found == {"\\xff.png", "\\xfe.png", "k\u00fche \U0001f404.png", '"\\.png'}
    json.dumps(annotated, ensure_ascii=False).encode()  # lone surrogates have no UTF-8


@pytest.mark.usefixtures("folder")
def test_an_interrupted_run_continues_with_the_pictures_that_are_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(6):
        picture(f"{i}.png")
    fake = reach(FakeTransport(cats), monkeypatch)
    broken("2.png", InvalidImageError)
    broken("4.png", AccessDeniedError)
    assert run("segment", ".", "-o", "out", "-f", "coco", "--concurrency", "1") == 4
    assert names() == ["0.png", "1.png", "3.png"]
    whole = FILE.read_bytes()
    fake.requests.clear()
    picture("2.png")
    picture("4.png")
    assert states(capsys, ".", "-f", "coco") == {f"{i}.png": "skipped" if i in {0, 1, 3} else "done" for i in range(6)}
    assert len(fake.requests) == 3
    assert names() == [f"{i}.png" for i in range(6)]
    assert json.loads(FILE.read_bytes())["categories"] == json.loads(whole)["categories"]
    loaded: Any = COCO(str(FILE))
    assert loaded.annToMask(loaded.anns[5])[0, 19] == 1
    whole = FILE.read_bytes()
    assert set(states(capsys, ".", "-f", "coco").values()) == {"skipped"}
    assert FILE.read_bytes() == whole
    assert len(fake.requests) == 3
    assert run("segment", ".", "-o", "out", "-f", "coco", "--force") == 0
    assert len(fake.requests) == 9


@pytest.mark.usefixtures("folder")
def test_a_run_that_was_killed_continues_from_the_last_saving() -> None:
    for i in range(3):
        picture(f"{i}.png")
    Path("3.png").write_bytes(b"hold")
    often = "from deeplab_client._cli import annotations; annotations._PAUSE = 0"
    with start("segment", ".", "-o", "out", "-f", "coco", "--concurrency", "1", first=often) as process:
        assert process.stdout is not None
        for _ in range(3):
            process.stdout.readline()
        process.kill()
        process.communicate(timeout=20)
    kept = len(names())
    assert kept > 0
    picture("3.png")
    with start("segment", ".", "-o", "out", "-f", "coco") as process:
        out, errors = process.communicate(timeout=20)
    assert process.returncode == 0
    assert len(out.splitlines()) == 4 - kept
    assert f"{kept} skipped".encode() in errors
    assert names() == [f"{i}.png" for i in range(4)]


@pytest.mark.usefixtures("folder")
def test_two_runs_at_once_do_not_overwrite_each_others_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    picture("in/a.png")
    Path("in/b.png").write_bytes(b"hold")
    picture("other/c.png")
    with start("segment", "in", "-o", "out", "-f", "coco", "--concurrency", "1") as process:
        assert process.stdout is not None
        process.stdout.readline()
        reach(FakeTransport(cats), monkeypatch)
        assert states(capsys, "other", "-f", "coco") == {"other/c.png": "done"}
        Path("go").touch()
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert b"another run has changed it in the meantime" in errors
    assert names() == ["c.png"]


@pytest.mark.usefixtures("folder")
def test_a_picture_that_has_changed_and_fails_loses_its_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        picture(f"in/{name}")
    reach(FakeTransport(cats), monkeypatch)
    assert run("segment", "in", "-o", "out", "-f", "coco") == 0
    broken("in/b.png", InvalidImageError)
    assert run("segment", "in", "-o", "out", "-f", "coco") == 1
    assert names() == ["a.png"]


@pytest.mark.usefixtures("fake", "folder")
def test_a_picture_of_the_files_own_name_gets_another_one(capsys: pytest.CaptureFixture[str]) -> None:
    picture("in/a.png").rename("in/annotations")
    for state in ("done", "skipped"):
        assert states(capsys, "in/annotations", "-f", "json", "-f", "coco") == {"in/annotations": state}
        assert files("out") == {"annotations.json", "in/annotations.json"}
    assert names() == ["annotations"]


@pytest.mark.parametrize("change", [touched, ["--model", "other"], ["--confidence", "0"], ["--tile", "64"]])
@pytest.mark.usefixtures("folder")
def test_an_entry_is_kept_only_if_it_was_made_in_the_same_way(
    fake: FakeTransport, capsys: pytest.CaptureFixture[str], change: Callable[[Path], None] | list[str]
) -> None:
    picture("in/a.png")
    assert states(capsys, "in", "-f", "coco") == {"in/a.png": "done"}
    options = change if isinstance(change, list) else []
    if not isinstance(change, list):
        change(Path("in/a.png"))
    assert states(capsys, "in", "-f", "coco", *options) == {"in/a.png": "done"}
    assert states(capsys, "in", "-f", "coco", *options) == {"in/a.png": "skipped"}
    assert names() == ["a.png"]
    assert len(fake.requests) == 2


@pytest.mark.usefixtures("fake", "folder")
def test_the_names_of_kept_entries_are_relative_to_the_folder_of_the_last_run(
    capsys: pytest.CaptureFixture[str],
) -> None:
    picture("photos/sub/a.png")
    assert states(capsys, "photos/sub", "-f", "coco") == {"photos/sub/a.png": "done"}
    assert names() == ["a.png"]
    assert states(capsys, "photos", "-r", "-f", "coco") == {"photos/sub/a.png": "skipped"}
    assert names() == ["sub/a.png"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"images": [{"id": 1}], "annotations": []}',
        '{"info": 1, "categories": [], "images": [{"id": 1, "deeplab segment": {"source": "x"}}], "annotations": []}',
        None,
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_foreign_file_is_only_overwritten_with_force(
    fake: FakeTransport, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    picture("a.png")
    FILE.parent.mkdir()
    if content is None:
        FILE.mkdir()
    else:
        FILE.write_text(content)
    assert run("segment", "a.png", "-o", "out", "-f", "coco") == 2
    told = capsys.readouterr().err
    assert "annotations.json" in told
    assert not fake.requests
    if content is not None:
        assert "--force" in told
        assert FILE.read_text() == content
        assert run("segment", "a.png", "-o", "out", "-f", "coco", "--force") == 0
        assert names() == ["a.png"]


@pytest.mark.usefixtures("folder")
def test_pictures_that_are_not_named_again_are_not_lost(
    fake: FakeTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("day1/a.png", "day1/b.png", "day2/c.png"):
        picture(name)
    assert run("segment", "day1", "-o", "out", "-f", "coco") == 0
    assert run("segment", "day2", "day1/a.png", "-o", "out", "-f", "coco") == 2
    assert re.search(r"not named now \(1, such as b\.png\)", " ".join(capsys.readouterr().err.split()))
    assert names() == ["a.png", "b.png"]
    assert len(fake.requests) == 2
    assert run("segment", "day2", "day1", "-o", "out", "-f", "coco") == 0
    assert names() == ["day2/c.png", "day1/a.png", "day1/b.png"]
    assert len(fake.requests) == 3
    assert run("segment", "day2", "-o", "out", "-f", "coco", "--force") == 0
    assert names() == ["c.png"]
    assert files("out") == {"annotations.json"}
