"""What perf_analyzer and Model Analyzer get: pictures, and a repository to search."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import pytest

from deeplabv3.repository.config import read_config
from load_tests import tuning
from load_tests.pictures import PHOTOGRAPH

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuning")
    (pictures := folder / "pictures").mkdir()
    (pictures / "cat.png").write_bytes(PHOTOGRAPH.read_bytes())
    repository = ["--model-repository", str(ROOT / "model_repository")]
    assert tuning.main([*repository, "--pictures", str(pictures), "--output", str(folder / "out")]) == 0
    return folder / "out"


def test_a_picture_is_one_string_as_it_travels(output: Path) -> None:
    requests = json.loads((output / "pictures.json").read_text(encoding="ascii"))["data"]
    assert [request["IMAGE"]["shape"] for request in requests] == [[1]]
    data = base64.b64decode(requests[0]["IMAGE"]["content"]["b64"])
    assert struct.unpack("<I", data[:4]) == (len(data) - 4,)
    assert data[4:] == PHOTOGRAPH.read_bytes()


@pytest.mark.parametrize("variant", ["resnet50", "resnet101"])
def test_no_request_makes_what_was_not_asked_for(output: Path, variant: str) -> None:
    """The tools ask for every output of a model."""
    config = read_config(output / "models" / f"segment_{variant}" / "config.pbtxt")
    assert [step.model_name for step in config.ensemble_scheduling.step] == [
        "preprocess",
        f"core_{variant}",
        "postprocess",
    ]
    outputs = {tensor.name for tensor in config.output}
    assert outputs == {"MASK", "CLASS_PIXELS", "CLASS_NAMES", "IMAGE_ID"}
    made = [name for step in config.ensemble_scheduling.step for name in step.output_map.values()]
    read = {name for step in config.ensemble_scheduling.step for name in step.input_map.values()}
    assert set(made) - read == outputs


def test_any_batch_size_can_be_searched(output: Path) -> None:
    """Triton refuses a model whose warm-up has larger batches than it takes."""
    configs = list((output / "models").glob("*/config.pbtxt"))
    assert len(configs) == 6
    assert not any(read_config(path).model_warmup for path in configs)


def test_a_folder_that_is_there_is_not_replaced(output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tuning.main(["--model-repository", str(ROOT / "model_repository"), "--output", str(output)])
    assert "exists; remove it, or use another --output" in capsys.readouterr().err
