"""docs/notebook.ipynb, executed. The outcome is kept: CONTRIBUTING.md says what for."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from triton_process import TritonProcess

from benchmarks import toy
from deeplabv3.repository.config import config_text, read_config

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / "out" / "test" / "notebook.ipynb"
# A pixel that is more red than blue by 42 is nearer to the second; no pixel is near the others.
BACKGROUND, CAT, NO_COLOR = (99, 128, 157), (199, 128, 57), (10_000, 10_000, 10_000)


@pytest.fixture
def cat_server(tmp_path: Path) -> Iterator[TritonProcess]:
    """A server whose masks are worth looking at: it tells the cat of the photograph from what is behind it."""
    repository = toy.build(tmp_path / "models", core="objects")
    colors = np.array([BACKGROUND] + [NO_COLOR] * 7 + [CAT] + [NO_COLOR] * 12)
    toy.traced(toy.ByColor(colors)).save(str(repository / toy.CORE / "1" / "model.pt"))
    for model in (toy.CORE, toy.ENSEMBLE):
        path = repository / model / "config.pbtxt"
        config = read_config(path)
        config.parameters["weights"].string_value = "stand-in"
        path.write_text(config_text(config), encoding="utf-8")
    with TritonProcess(repository, log=tmp_path / "serve.log") as process:
        yield process


def test_every_cell_runs_without_a_warning(cat_server: TritonProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPLAB_URL", f"grpc://{cat_server.grpc_url}")
    # tqdm and supervision would rather have ipywidgets and OpenCV.
    monkeypatch.setenv("PYTHONWARNINGS", "ignore:IProgress,ignore:OpenCV")
    notebook = nbformat.read(ROOT / "docs" / "notebook.ipynb", as_version=4)
    here = {"metadata": {"path": str(ROOT / "docs")}}
    NotebookClient(notebook, resources=here, timeout=120, record_timing=False, coalesce_streams=True).execute()

    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    (bar,) = (output.text for output in outputs if output.get("name") == "stderr")
    assert re.fullmatch(r"100%.* 9/9 .*\n", bar)
    for output in outputs:
        if "image/jpeg" in output.get("data", {}):  # of the two that Pillow gives, the smaller one
            del output.data["image/png"]
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 6
    KEPT.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, KEPT)
