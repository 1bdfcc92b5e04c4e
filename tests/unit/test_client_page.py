"""The parts of the page that show a result, without Gradio and a browser."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
from command_line import picture, reach, run
from PIL import Image

from deeplab_client import InvalidImageError, SegmentationClient
from deeplab_client._page import view
from deeplab_client.testing import FakeTransport

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

MASK = np.zeros((12, 20), np.uint8)
MASK[:, :5] = 2
MASK[:, 5:8] = 1
NAMES = ["road", "<b>cat</b>", "dog"]


def answer(transport: FakeTransport, path: Path) -> view.Answer:
    return view.ask(SegmentationClient("grpc://fake", transport=transport), str(path), "segment_resnet50")


def test_the_background_is_not_drawn_and_listed_as_a_class(tmp_path: Path) -> None:
    fake = FakeTransport(mask=MASK, class_names=NAMES)
    result = answer(fake, picture(tmp_path / "a.png")).at_least(0)
    layers = view.layers(result, (20, 12), 0.25)
    assert [name for _, name in layers] == ["dog", "<b>cat</b>"]
    np.testing.assert_array_equal(layers[0][0], np.where(MASK == 2, 0.25, 0))
    assert view.colors(result) == {"road": "#000000", "<b>cat</b>": "#800000", "dog": "#008000"}
    table = view.table(result)
    assert table.index("road") < table.index("dog") < table.index("cat")
    assert "<td>road</td><td>60.0%</td><td>144</td>" in table
    assert "<b>" not in table, "what a server says is no HTML"


def test_a_model_without_a_background_shows_all_classes_at_every_threshold(tmp_path: Path) -> None:
    fake = FakeTransport(mask=MASK, class_names=NAMES, background=False)
    result = answer(fake, picture(tmp_path / "a.png")).at_least(1)
    assert [name for _, name in view.layers(result, (20, 12), 1)] == ["road", "dog", "<b>cat</b>"]
    assert view.colors(result)["road"] == "#800000"


def test_a_preview_is_small_and_its_layers_with_it(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (2560, 640)).save(path)
    mask = np.zeros((640, 2560), np.uint8)
    mask[:, :1280] = 1
    kept = answer(FakeTransport(mask=mask), path)
    assert kept.preview.size == (1280, 320)
    ((layer, _),) = view.layers(kept.result, kept.preview.size, 1)
    assert layer.shape == (320, 1280)
    assert layer.mean() == 0.5
    overlay, ids, details = view.files(kept, 0, 0.5)
    assert [name for name, _ in (overlay, ids, details)] == ["a.png.overlay.png", "a.png.ids.png", "a.png.json"]


def test_a_picture_that_only_the_server_reads_is_refused_with_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"a format of tomorrow")
    with pytest.raises(InvalidImageError, match="cannot be decoded"):
        answer(FakeTransport(mask=MASK), path)


def test_without_gradio_the_command_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reach(FakeTransport(mask=MASK), monkeypatch)
    monkeypatch.delitem(sys.modules, "deeplab_client._page.blocks", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert run("page") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "gradio" in line
    assert "[page]" in line
