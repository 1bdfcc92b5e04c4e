"""Errors of a command line and its output folder that are found before anything is measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from deeplabv3.evaluation import EvaluationError
from deeplabv3.evaluation.__main__ import parse
from deeplabv3.evaluation.records import output_folder

pytestmark = pytest.mark.unit

COCO = ["coco", "--annotations", "a.json", "--images", "val"]
OWN = ["folders", "--images", "pictures", "--masks", "masks"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (COCO, "give at least one of --eager, --direct and --ensemble"),
        ([*COCO, "--direct", "x", "--weights", "none"], "--weights is only for --eager"),
        ([*OWN, "--ensemble", "x", "--mean", "0,0,0"], "--mean and --std are only for --eager and --direct"),
        ([*OWN, "--direct", "x", "--std", "58,57,57"], "from 0.001 to 1, got '58,57,57'; divide values"),
        ([*COCO, "--direct", "x", "--limit", "0"], "must be an integer from 1, got '0'"),
        ([*COCO, "--direct", "x", "--timeout", "-1"], "must be a number from 1e-06, got '-1'"),
        ([*COCO, "--direct", "x", "--name", "a/b"], "--name must be a name without folders, got 'a/b'"),
        (["coco", "--images", "val", "--direct", "x"], "--annotations"),
        ([], "coco,voc,folders"),
        ([*OWN, "--direct", "x", "--ignore", "256"], "must be an integer from 0 to 255, got '256'"),
        (OWN[:3], "--masks"),
    ],
)
def test_a_wrong_command_line_is_explained(
    command: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(command)
    assert message in capsys.readouterr().err


def test_each_data_set_has_its_own_options() -> None:
    options = parse([*OWN, "--ensemble", "segment_resnet50", "--ignore", "0", "--output", "out"])
    assert options.dataset == "folders"
    assert options.data == {"images": Path("pictures"), "masks": Path("masks"), "classes": None, "ignore": 0}
    assert options.name == "folders"
    assert parse([*COCO, "--direct", "x"]).data.keys() == {"annotations", "images", "drop_unannotated"}


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    with (
        output_folder(tmp_path / "out"),
        pytest.raises(EvaluationError, match="another evaluation is writing to"),
        output_folder(tmp_path / "out"),
    ):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"--output .*file: File exists"), output_folder(tmp_path / "file"):
        pass
