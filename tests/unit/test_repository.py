"""The readers that build and embedded server share."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from deeplabv3.errors import RepositoryError
from deeplabv3.repository.class_names import read_class_names
from deeplabv3.repository.record import BuildRecord, read_record

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


def test_nobody_who_reads_a_repository_loads_torch() -> None:
    modules = ", ".join(f"deeplabv3.repository.{name}" for name in ("class_names", "config", "paths", "record"))
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def write(path: Path, record: str | None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", bytes(range(256)))
        if record is not None:
            archive.writestr("model/extra/build.json", record)
    return path


def test_a_record_comes_back_as_it_went_in(tmp_path: Path) -> None:
    record = BuildRecord({"weights": "none", "class_names": ["sky", "sea"], "device": "cuda", "aux": False})
    ((name, text),) = record.as_extra_files().items()
    assert name == "build.json"
    found = read_record(write(tmp_path / "model.pt", text))
    assert found is not None
    assert found == record
    assert (found.weights, found.class_names, found.device) == ("none", ("sky", "sea"), "cuda")


def test_a_model_of_others_has_no_record(tmp_path: Path) -> None:
    assert read_record(write(tmp_path / "model.pt", None)) is None
    assert read_record(write(tmp_path / "model.pt", "{}")) is None


@pytest.mark.parametrize(
    ("record", "message"),
    [(json.dumps({"weights": "none"}), "another version of build_models.py; run it again"), ("{", "not a TorchScript")],
)
def test_an_unreadable_record_is_reported(tmp_path: Path, record: str, message: str) -> None:
    with pytest.raises(RepositoryError, match=message):
        read_record(write(tmp_path / "model.pt", record))


def test_a_damaged_file_is_named_with_its_damaged_part(tmp_path: Path) -> None:
    file = write(tmp_path / "model.pt", None)
    file.write_bytes(file.read_bytes().replace(bytes(range(9)), bytes(9), 1))
    with pytest.raises(RepositoryError, match=rf"{file} is damaged in model/data\.pkl; run build_models\.py"):
        read_record(file)


class TestClassNames:
    @pytest.mark.parametrize(
        "content", ["sky\ncafé au lait\n", "\ufeffsky\r\n café au lait\r\n\r\n \n", "sky\ncafé au lait"]
    )
    def test_are_read_in_order(self, tmp_path: Path, content: str) -> None:
        file = tmp_path / "labels.txt"
        file.write_text(content, encoding="utf-8", newline="")
        assert read_class_names(file) == ("sky", "café au lait")

    @pytest.mark.parametrize("content", ["", "\n", "a\n\nb\n", "a\na \n", "a\nb\x07\n"])
    def test_are_refused(self, tmp_path: Path, content: str) -> None:
        file = tmp_path / "labels.txt"
        file.write_text(content)
        with pytest.raises(ValueError, match=r"name|printed"):
            read_class_names(file)
