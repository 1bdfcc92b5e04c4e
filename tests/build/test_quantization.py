"""int8 for CPUs: the models, messages and refusals of a build with --precision int8."""

from __future__ import annotations

import importlib.metadata
import random
import shutil
from typing import TYPE_CHECKING

import pytest
import torch
from cpu import NEEDS
from PIL import Image

import build_models
from deeplabv3 import model_deeplabv3_resnet50
from deeplabv3.building import calibration, steps, tracing
from deeplabv3.errors import InvalidOptionError
from deeplabv3.repository.record import read_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torchvision.models.segmentation import DeepLabV3

pytestmark = pytest.mark.build

OPTIONS = ["--variant", "resnet50", "--weights", "none", "--width-per-group", "4", "--precision", "int8"]
SMALL = ["--set", "preprocess.resize_size=48"]


def nothing_missing(_precision: str) -> None:
    """Return the answer of a CPU that has everything."""


@pytest.fixture(autouse=True)
def _any_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reach what is tested before or apart from the arithmetic on a CPU that does not have it, too."""
    monkeypatch.setattr(tracing, "missing_on_this_cpu", nothing_missing)


def photographs(folder: Path, count: int) -> Path:
    """Write pictures of colored rectangles: structure at several scales, all of them different."""
    draw = random.Random(3)  # noqa: S311 - draws pictures, keeps no secret
    for number in range(count):
        picture = Image.new("RGB", (64, 56))
        for _ in range(12):
            left, top = draw.randrange(56), draw.randrange(48)
            color = (draw.randrange(256), draw.randrange(256), draw.randrange(256))
            picture.paste(color, (left, top, left + draw.randrange(4, 40), top + draw.randrange(4, 40)))
        folder.mkdir(exist_ok=True)
        picture.save(folder / f"{number:03}.png")
    return folder


@pytest.fixture(scope="module")
def eager() -> DeepLabV3:
    """torchvision's own arithmetic on the weights of an untrained build, in 1 / 16 of the channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return model_deeplabv3_resnet50(aux_loss=True, width_per_group=4).eval()


def smooth(count: int, *shape: int) -> Iterator[torch.Tensor]:
    for seed in range(count):
        yield torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@NEEDS["int8"]
def test_a_build_reports_and_records_its_agreement_with_fp32(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = photographs(tmp_path / "pictures", 20)
    repository = tmp_path / "models"
    command = [*OPTIONS, *SMALL, "--calibration", str(pictures), "--model-repository", str(repository)]
    with caplog.at_level("INFO"):
        assert build_models.main(command) == 0
    record = read_record(repository / "core_resnet50" / "1" / "model.pt")
    assert record is not None
    found = record.fields["agreement"]
    assert found["pictures"] == 4  # every fifth, held out
    assert 0.95 <= found["same_class"] <= 1
    assert 0 < found["error"] < 0.1
    assert f"same class as fp32 for {found['same_class']:.2%} of the pixels of 4 pictures" in caplog.text
    assert caplog.text.count("same class") == 1  # and nothing on noise

    caplog.clear()
    with caplog.at_level("INFO"):
        assert build_models.main([*command, "--set", "preprocess.max_pixels=9999"]) == 0  # changes no pixel
        assert "up to date" in caplog.text
        assert build_models.main([*command, "--min-agreement", "1"]) == 1
        assert "--min-agreement is 1; calibrate with more pictures" in caplog.text
        assert "calibrating" not in caplog.text  # known from the record
        Image.new("RGB", (64, 56), "red").save(pictures / "000.png")
        caplog.clear()
        assert build_models.main([*command, "--min-agreement", "1"]) == 1
    assert "calibrating with 16 pictures" in caplog.text  # another picture, another model
    assert "--min-agreement is 1; calibrate with more pictures" in caplog.text
    assert read_record(repository / "core_resnet50" / "1" / "model.pt") == record

    caplog.clear()
    other = ["--variant", "resnet101", "--weights", "none", "--configs-only", "--set", "preprocess.resize_size=64"]
    assert build_models.main([*other, "--model-repository", str(repository)]) == 0
    assert "core_resnet50: warning: this int8 model was calibrated with other settings of preprocess" in caplog.text
    assert "resize_size=48" in caplog.text


def int8(model: DeepLabV3, pictures: Iterator[torch.Tensor]) -> torch.jit.ScriptModule:
    return tracing.Tracer(model, aux=True, precision=tracing.PRECISIONS["int8"], pictures=pictures).direct()


@NEEDS["int8"]
def test_the_file_computes_in_int8_what_pytorch_does_in_float32(tmp_path: Path, eager: DeepLabV3) -> None:
    module = int8(eager, smooth(3, 1, 3, 72, 88))
    tracing.save(module, tmp_path / "model.pt", {})
    loaded = torch.jit.load(str(tmp_path / "model.pt"))
    for pixels in smooth(2, 2, 3, 97, 61):  # another batch, shape and picture than those of calibration
        with torch.inference_mode():
            expected = eager(pixels)
            out, aux = loaded(pixels)
        for found, wanted in ((out, expected["out"]), (aux, expected["aux"])):
            assert found.dtype == torch.float32
            assert float((found - wanted).norm() / wanted.norm()) < 0.08
        assert float((out.argmax(1) == expected["out"].argmax(1)).double().mean()) > 0.97
    in_float32 = ("aux_classifier", "classifier.0.convs.4")
    bytes_of = {name: 4 if name.startswith(in_float32) else 1 for name, _ in eager.named_parameters()}
    expected_size = sum(parameter.numel() * bytes_of[name] for name, parameter in eager.named_parameters())
    assert (tmp_path / "model.pt").stat().st_size == pytest.approx(expected_size, rel=0.03)


def test_a_second_run_finds_the_same(eager: DeepLabV3) -> None:
    module = int8(eager, smooth(1, 1, 3, 72, 88))
    (pixels,) = smooth(1, 1, 3, 72, 88)
    with torch.inference_mode():
        first, second = module(pixels), module(pixels)
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--precision int8 needs pictures for calibration"),
        (["--device", "cuda", "--calibration", "."], "--precision int8 works only on CPUs; leave out --device cuda"),
        (["--min-agreement", "95", "--calibration", "."], "must be a number from 0 to 1, got '95'"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        build_models.main([*OPTIONS, *options, "--model-repository", str(tmp_path / "models")])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_calibration_without_int8_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_models.main(["--calibration", str(tmp_path), "--model-repository", str(tmp_path / "models")])
    assert "--calibration: only for int8; add --precision int8" in capsys.readouterr().err


def refused(tmp_path: Path, pictures: Path, *more: str) -> bool:
    repository = tmp_path / "models"
    code = build_models.main([*OPTIONS, *more, "--calibration", str(pictures), "--model-repository", str(repository)])
    return code == 1 and not list(repository.rglob("model.pt"))


def test_too_few_pictures_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert refused(tmp_path, photographs(tmp_path / "pictures", 19))
    assert "has 19 files; give at least 20 pictures" in caplog.text
    assert refused(tmp_path, tmp_path / "nowhere")
    assert "nowhere is not a folder" in caplog.text


def test_a_file_that_is_no_picture_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = photographs(tmp_path / "pictures", 20)
    (pictures / ".hidden").write_text("left out")
    (pictures / "notes.txt").write_text("These pictures are mine.")
    assert refused(tmp_path, pictures)
    assert "notes.txt" in caplog.text
    assert "remove it from the folder" in caplog.text


def test_a_cpu_without_the_arithmetic_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "missing_on_this_cpu", "{} needs another CPU".format)
    assert refused(tmp_path, photographs(tmp_path / "pictures", 20))
    assert (
        "int8 needs another CPU; build on the machine that will serve the model, or use --precision fp32" in caplog.text
    )


def test_what_makes_other_pixels_makes_another_calibration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = photographs(tmp_path / "pictures", 20)
    settings = {"resize_mode": "fixed", "resize_size": "48", "scaled_decoding": "true", "max_pixels": "1"}

    def digest(**changed: str) -> str:
        return calibration.Calibration.of(pictures, settings | changed).digest

    def older(_: str) -> str:
        return "0"

    first = digest()
    assert digest(max_pixels="2") == first
    assert digest(resize_size="49") != first
    assert digest(scaled_decoding="false") != first
    source = shutil.copytree(steps.MODEL_REPOSITORY / "preprocess" / "1", tmp_path / "preprocess")
    monkeypatch.setattr(calibration, "_PREPROCESS", source)
    assert digest() == first
    (source / "image_sizes.py").write_text("# another version")
    assert digest() != first
    monkeypatch.undo()
    monkeypatch.setattr(importlib.metadata, "version", older)  # of Pillow
    assert digest() != first


@pytest.mark.parametrize(("precision", "pictures"), [("int8", None), ("fp32", [torch.zeros(1, 3, 72, 88)])])
def test_int8_and_no_other_precision_takes_pictures(
    eager: DeepLabV3, precision: str, pictures: list[torch.Tensor] | None
) -> None:
    with pytest.raises(InvalidOptionError, match="int8 needs calibration pictures, and other precisions take none"):
        tracing.Tracer(eager, precision=tracing.PRECISIONS[precision], pictures=pictures)


def test_a_missing_auxiliary_head_is_reported_before_calibration() -> None:
    pictures = smooth(1, 1, 3, 72, 88)
    with pytest.raises(InvalidOptionError, match="auxiliary head"):
        int8(model_deeplabv3_resnet50(width_per_group=4), pictures)
    assert len(list(pictures)) == 1


def test_configs_alone_need_no_calibration(tmp_path: Path) -> None:
    assert build_models.main([*OPTIONS, "--configs-only", "--model-repository", str(tmp_path / "models")]) == 0


def test_normalization_that_depends_on_the_picture_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert refused(tmp_path, photographs(tmp_path / "pictures", 20), *SMALL, "--norm-layer", "InstanceNorm2d")
    assert "--precision int8 does not support InstanceNorm2d" in caplog.text
