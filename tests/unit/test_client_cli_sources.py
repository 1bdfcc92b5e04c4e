"""The pictures that the command line finds, and what it leaves out; with a fake instead of the server."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from command_line import HEIGHT, WIDTH, picture, reach, run

from deeplab_client.testing import FakeTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit


def segmented(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.usefixtures("folder")
def test_folders_patterns_and_files_each_picture_once(fake: FakeTransport, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("p/b.jpg", "p/a.PNG", "p/deep/c.bmp", "p/.hidden.png", "p/a.overlay.png", "q/d.webp"):
        picture(name)
    Path("p/notes.txt").write_text("no picture")
    Path("q/odd").write_bytes(picture("q/odd.png").read_bytes())
    assert run("segment", "p", "p/a.PNG", "q/*.webp", "q/odd") == 0
    assert segmented(capsys) == ["p/a.PNG", "p/b.jpg", "q/d.webp", "q/odd"]
    assert len(fake.requests) == 4
    assert run("segment", "p", "--recursive") == 0
    assert "p/deep/c.bmp" in segmented(capsys)
    assert run("segment", "**/*.bmp") == 0
    assert "p/deep/c.bmp" in segmented(capsys)


@pytest.mark.usefixtures("folder")
def test_folders_give_pictures_of_every_usual_suffix(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reach(FakeTransport(np.zeros((HEIGHT, WIDTH), np.uint8)), monkeypatch)
    jpeg = "jpg jpeg jfif jpe mpo"
    others = "png apng webp bmp dib ppm pgm pbm pnm gif tif tiff avif heic heif"
    names = [f"x.{suffix}" for suffix in f"{jpeg} {others} JPG HEIC".split()]
    for name in names:
        Path(name).write_bytes(b"whatever the server takes")
    assert run("segment", ".") == 0
    assert segmented(capsys) == sorted(names)


@pytest.mark.usefixtures("fake", "folder")
def test_left_out_files_of_a_folder_are_counted_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("in/a.png", "in/deep/b.png", "in/.c.png", "in/.d/e.png", "in/x.colors.png", "elsewhere/f.png"):
        picture(name)
    for name in ("in/1.txt", "in/2.txt", "in/README", "in/movie.mp4", "in/.DS_Store"):
        Path(name).touch()
    Path("in/linked").symlink_to("../elsewhere")
    Path("in/deep/loop").symlink_to("..")
    assert run("segment", "in", "--recursive", "--json") == 0
    told = capsys.readouterr()
    assert [json.loads(line)["path"] for line in told.out.splitlines()] == ["in/a.png", "in/deep/b.png"]
    (line,) = told.err.splitlines()
    assert "linked folders, only searched if named: 2 (in/linked, in/deep/loop)" in line
    assert "files of other types: 4 (.txt, README, .mp4)" in line
    assert "hidden files and folders: 2 (in/.d, in/.c.png)" in line
    assert "files named like outputs: 1 (in/x.colors.png)" in line
    assert ".DS_Store" not in line
    assert run("segment", "in", "in/linked", "in/.c.png") == 0
    told = capsys.readouterr()
    assert [line.split("\t")[0] for line in told.out.splitlines()] == ["in/a.png", "in/linked/f.png", "in/.c.png"]
    assert "folders, searched with --recursive: 1 (in/deep)" in told.err
    assert run("segment", "elsewhere") == 0
    assert "left out" not in capsys.readouterr().err


@pytest.mark.usefixtures("fake", "folder")
def test_only_a_few_of_many_names_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    picture("in/a.png")
    for name in "vwxyz":
        picture(f"in/{name}/b.png")
    assert run("segment", "in") == 0
    assert "5 (in/v, in/w, in/x, ...)\n" in capsys.readouterr().err


@pytest.mark.usefixtures("fake", "folder")
def test_left_out_matches_of_a_pattern_are_reported_too(capsys: pytest.CaptureFixture[str]) -> None:
    picture("in/a.png")
    picture("in/a.png.overlay.png")
    picture("in/deep/b.png")
    Path("in/linked").symlink_to("deep")
    Path("in/gone.png").symlink_to("nowhere")
    assert run("segment", "in/*") == 1
    told = capsys.readouterr()
    assert [line.split("\t")[0] for line in told.out.splitlines()] == ["in/a.png"]
    assert re.search(r"deeplab: in/gone\.png: .*No such file", told.err)
    assert "linked folders, only searched if named: 1 (in/linked)" in told.err
    assert "folders that match a pattern: 1 (in/deep)" in told.err
    assert "files named like outputs: 1 (in/a.png.overlay.png)" in told.err


@pytest.mark.usefixtures("fake", "folder")
def test_links_to_pictures_are_pictures_and_those_that_lead_nowhere_fail(capsys: pytest.CaptureFixture[str]) -> None:
    picture("all/a.png")
    Path("in").mkdir()
    Path("in/a.png").symlink_to("../all/a.png")
    Path("in/again.png").symlink_to("../all/a.png")
    Path("in/gone.png").symlink_to("nowhere")
    assert run("segment", "in") == 1
    told = capsys.readouterr()
    assert [line.split("\t")[0] for line in told.out.splitlines()] == ["in/a.png", "in/again.png"]
    assert re.search(r"deeplab: in/gone\.png: .*No such file", told.err)


@pytest.mark.usefixtures("fake", "folder")
def test_an_unreadable_folder_is_reported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Also by the exit code; a fake denies access, because root can read everything."""
    picture("in/a.png")
    picture("in/closed/b.png")
    scandir = os.scandir

    def guarded(path: str | os.PathLike[str]) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    with monkeypatch.context() as refused:
        refused.setattr(os, "scandir", guarded)
        assert run("segment", "in", "--recursive") == 1
        told = capsys.readouterr()
        assert run("segment", "in/closed") == 2
        told_alone = capsys.readouterr()
    assert [line.split("\t")[0] for line in told.out.splitlines()] == ["in/a.png"]
    assert "deeplab: cannot read the folder in/closed: Permission denied\n" in told.err
    assert "cannot read the folder in/closed: Permission denied" in told_alone.err


@pytest.mark.usefixtures("fake", "folder")
def test_the_error_for_a_folder_without_pictures_names_its_content(capsys: pytest.CaptureFixture[str]) -> None:
    picture("elsewhere/a.png")
    Path("in").mkdir()
    Path("in/linked").symlink_to("../elsewhere")
    assert run("segment", "in") == 2
    assert re.search(r"in contains no pictures .*linked folders.*\(in/linked\)", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://host/photos/a.png", "download it"),
        ("HTTP://host/a.png?size=1", "download it"),
        ("s3://bucket/a.png", "download it"),
        ("gs+x.y-z://bucket/*.png", "download it"),
        ("file:///photos/a.png", "leave out file://"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_url_is_refused(fake: FakeTransport, capsys: pytest.CaptureFixture[str], url: str, words: str) -> None:
    picture("a.png")
    assert run("segment", "a.png", "-o", "out") == 0
    assert run("segment", url, "-o", "out") == 2
    assert re.search(rf"got the URL {re.escape(url)}.*{words}", capsys.readouterr().err)
    assert run("segment", "a.png", "-o", "s3://bucket/out") == 2
    assert "must be a folder, got the URL s3://bucket/out" in capsys.readouterr().err
    assert not Path("s3:").exists()
    assert len(fake.requests) == 1


@pytest.mark.usefixtures("fake", "folder")
def test_a_file_whose_name_looks_like_a_pattern_is_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    picture("[1].png")
    assert run("segment", "[1].png") == 0
    assert capsys.readouterr().out.startswith("[1].png\t")


@pytest.mark.usefixtures("fake", "folder")
def test_impossible_file_names_are_reported_and_the_others_are_segmented(capsys: pytest.CaptureFixture[str]) -> None:
    picture("good.png")
    long = f"{'x' * 247}.png"  # a file, but its output would have too long a name
    picture("a.png").rename(long)
    Path("loop").symlink_to("loop")
    assert run("segment", "good.png", long, "loop", "y" * 5000, "-o", "out") == 1
    told = capsys.readouterr()
    assert [line.split("\t")[0] for line in told.out.splitlines()] == ["good.png"]
    assert re.search(r"deeplab: x+\.png: .*File name too long", told.err)
    assert re.search(r"deeplab: loop: .*symbolic links", told.err)
    assert re.search(r"deeplab: y+: .*File name too long", told.err)
    assert "1 of 4 pictures segmented" in told.err


@pytest.mark.timeout(30)  # two links to a parent have 2^40 paths
@pytest.mark.usefixtures("fake", "folder")
@pytest.mark.parametrize("pattern", ["t/**/*.png", "t/**", "**/*.png", "t/**/a/**/*.png"])
def test_a_pattern_enters_no_linked_folder(pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("t/a").mkdir(parents=True)
    picture("t/a/x.png")
    Path("t/a/up").symlink_to("..")
    Path("t/a/again").symlink_to("..")
    assert run("segment", pattern) == 0
    told = capsys.readouterr()
    assert [line.split("\t")[0] for line in told.out.splitlines()] == ["t/a/x.png"]
    assert "linked folders, only searched if named: 2 (t/a/again, t/a/up)" in told.err
