"""docs/example.md: the seed's example by tritonclient alone and by the client, and that both find the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pictures
import pytest
from PIL import Image

if TYPE_CHECKING:
    from triton_process import TritonProcess

pytestmark = pytest.mark.server

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "example.md"


def test_the_core_model_and_the_client_find_the_same_classes(
    server: TritonProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cat.png").write_bytes(pictures.small())
    monkeypatch.chdir(tmp_path)
    by_core, by_client = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    found: list[dict[str, Any]] = []
    for block in (by_core, by_client):
        variables: dict[str, Any] = {}
        exec(block.replace("localhost:8001", server.grpc_url), variables)  # noqa: S102 - our own document
        found.append(variables)
    core, result = found[0], found[1]["result"]

    printed = capsys.readouterr().out.split()
    assert len(printed) == 2
    assert printed[0] == printed[1] == result.top_class
    shares = np.bincount(core["mask"].ravel(), minlength=21) / 520**2
    for name, share in zip(core["names"], shares, strict=True):
        assert result.fraction(name) == pytest.approx(share, abs=0.005), name
    large = {name for name, share in zip(core["names"], shares, strict=True) if share > 0.005}
    assert large <= set(result.pixel_counts)

    with Image.open("overlay-direct.png") as overlay:
        assert overlay.size == (520, 520)
    with Image.open("overlay-client.png") as overlay:
        assert overlay.width == 451
