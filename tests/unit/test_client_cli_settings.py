"""Settings of the command line: confidence and tiles; with a fake instead of the server."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import HEIGHT, WIDTH, cats, files, picture, reach, run, states
from PIL import Image

from deeplab_client import UnsupportedError
from deeplab_client.testing import FakeTransport, ReceivedRequest

pytestmark = pytest.mark.unit


def unsure(request: ReceivedRequest) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return a high confidence for the upper half of a picture."""
    width, height = request.picture.size
    certainty = np.full((height, width), 102, np.uint8)
    certainty[: height // 2] = 255
    return certainty


@pytest.mark.usefixtures("folder")
def test_less_certain_pixels_become_background_and_the_rest_has_scores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reach(FakeTransport(cats, confidence=unsure), monkeypatch)
    picture("a.png")
    every = ["a.png", "-f", "ids", "-f", "json", "-f", "coco", "-f", "overlay"]
    assert states(capsys, *every, "--confidence", "0.8") == {"a.png": "done"}
    with Image.open("out/a.png.ids.png") as ids:
        kept = np.asarray(ids)
    assert (kept[: HEIGHT // 2, WIDTH // 2 :] == 8).all()
    assert (kept[HEIGHT // 2 :] == 0).all()
    with Image.open("out/a.png.overlay.png") as overlay:
        assert overlay.getpixel((WIDTH - 1, HEIGHT - 1)) == (200, 200, 200)
    cat = {one["name"]: one for one in json.loads(Path("out/a.png.json").read_text())["classes"]}["cat"]
    assert (cat["pixels"], cat["confidence"]) == (HEIGHT * WIDTH // 4, 1.0)
    (annotation,) = json.loads(Path("out/annotations.json").read_text())["annotations"]
    assert annotation["score"] == 1.0
    assert run("segment", "a.png", "--confidence", "0.8") == 0
    assert capsys.readouterr().out.split("\t")[2:4] == ["cat", "0.2500"]


@pytest.mark.usefixtures("folder")
def test_without_a_threshold_all_pixels_stay_and_without_the_option_there_are_no_scores(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reach(FakeTransport(cats, confidence=unsure), monkeypatch)
    picture("a.png")
    for options, score in ((["--confidence", "0"], pytest.approx((1 + 0.4) / 2)), ([], None)):
        assert states(capsys, "a.png", "-f", "json", "-f", "coco", *options) == {"a.png": "done"}
        cat = {one["name"]: one for one in json.loads(Path("out/a.png.json").read_text())["classes"]}["cat"]
        assert (cat["pixels"], cat["confidence"]) == (HEIGHT * WIDTH // 2, score)
        (annotation,) = json.loads(Path("out/annotations.json").read_text())["annotations"]
        assert annotation.get("score") == score


@pytest.mark.usefixtures("folder")
def test_a_threshold_without_a_background_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = reach(FakeTransport(class_names=["road", "sky"], background=False), monkeypatch)
    for i in range(30):
        picture(f"{i}.png")
    assert run("segment", ".", "-o", "out", "--confidence", "0.5") == 4
    told = capsys.readouterr().err
    assert "needs a model with a background, but class 0 of segment_resnet50 is 'road': use --confidence 0" in told
    assert files("out") == set()
    assert len(fake.requests) < 30, "every other picture would meet the same"
    assert run("segment", ".", "--confidence", "0") == 0


@pytest.mark.usefixtures("folder")
def test_a_server_without_confidence_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reach(FakeTransport(answers=[UnsupportedError("build the model repository again")]), monkeypatch)
    picture("a.png")
    assert run("segment", "a.png", "--confidence", "0.5") == 4
    assert "build the model repository again" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_a_large_picture_is_sent_in_tiles_and_comes_back_whole(
    fake: FakeTransport, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 150:] = 200
    Image.fromarray(pixels).save("wide.png")
    Path("bad.png").write_text("InvalidImageError")
    picture("small.png")
    names = ["wide.png", "bad.png", "small.png"]
    tiles = ["--tile", "100", "--overlap", "0.5"]
    assert states(capsys, *names, "-f", "ids", *tiles, code=1) == {
        "wide.png": "done",
        "bad.png": "failed",
        "small.png": "done",
    }
    sizes = [request.picture.size for request in fake.requests]
    assert sizes == [(100, 100)] * 5 + [(WIDTH, HEIGHT)]
    with Image.open("out/wide.png.ids.png") as ids:
        assert (np.asarray(ids) == np.where(pixels[:, :, 0] > 127, 8, 0)).all()
    assert states(capsys, "wide.png", "-f", "ids", "--tile", "100") == {"wide.png": "done"}, "another overlap"
    assert len(fake.requests) == 6 + 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--overlap", "0.5"], r"--overlap.*--tile PIXELS"),
        (["--tile", "100", "--overlap", "1"], r"--overlap.*less than 1"),
        (["--tile", "100", "--overlap", "-0.1"], r"--overlap"),
        (["--tile", "63"], r"--tile.*64"),
        (["--tile", "many"], r"--tile"),
        (["--confidence", "80"], r"--confidence"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_settings_out_of_range_send_nothing(
    fake: FakeTransport, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    picture("a.png")
    assert run("segment", "a.png", *options) == 2
    assert re.search(words, " ".join(capsys.readouterr().err.split()))
    assert not fake.requests
