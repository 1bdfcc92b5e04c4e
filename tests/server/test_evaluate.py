"""evaluate against a real Triton, with a core model that tells classes by colour: the right figures are known."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import coco_data
import numpy as np
import pictures
import pytest
import torch
from PIL import Image
from triton_process import TritonProcess, wait_until

import build_models
from deeplab_client import voc
from evaluate import measuring
from evaluate.__main__ import main
from evaluate.coco import CocoWithVocLabels
from evaluate.eager import EagerPredictor
from evaluate.metrics import Figures
from evaluate.served import CorePredictor, EnsemblePredictor
from evaluate.server import Address
from evaluate.state import StateFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
MODELS = ["--core", "deeplabv3_resnet50", "--ensemble", "segment_resnet50"]
NAMES = ["core deeplabv3_resnet50", "ensemble segment_resnet50"]


class ByColour(torch.nn.Module):
    """What is nearest to a pixel's colour gets the largest logit."""

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.colours = torch.nn.Parameter((torch.from_numpy(voc.PALETTE[:21].copy()) / 255 - mean) / std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return -((pixels[:, None] - self.colours[None, :, :, None, None]) ** 2).sum(2)


class Served(ByColour):
    """With the outputs and the argument's name of the core models; the resolution of `logits_os8` is free."""

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: A002
        out = super().forward(input)
        return out, out


class Eager(ByColour):
    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": super().forward(pixels)}


def write_repository(repository: Path, *, weights: str, mode: str = "square") -> Path:
    """The repository's own steps around the toy."""
    build_models.copy_static_models(repository)
    build_models.write_configs(repository, "resnet50", weights, aux=False)
    version = repository / "deeplabv3_resnet50" / "1"
    version.mkdir()
    with torch.no_grad():
        torch.jit.trace(Served(), torch.zeros(1, 3, 8, 8)).save(str(version / "model.pt"))
    config = repository / "preprocess" / "config.pbtxt"
    config.write_text(config.read_text().replace('string_value: "square"', f'string_value: "{mode}"'))
    return repository


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    repository = write_repository(tmp_path_factory.mktemp("toy") / "models", weights="by colour")
    with TritonProcess(repository, log=tmp_path_factory.mktemp("log") / "serve.log") as process:
        yield process


def matrices(output: Path, name: str = "coco") -> dict[str, list[list[int]]]:
    content = json.loads((output / f"{name}.json").read_text())
    return {predictor["name"]: predictor["confusion"] for predictor in content["predictors"]}


def figures(output: Path) -> dict[str, Figures]:
    return {name: Figures.of(np.array(matrix)) for name, matrix in matrices(output).items()}


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_perfect_model_gets_everything_through_the_server(
    toy: TritonProcess, tmp_path: Path, protocol: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = coco_data.write(tmp_path, coco_data.PERFECT)
    url, models = (f"grpc://{toy.grpc_url}", MODELS) if protocol == "grpc" else (f"http://{toy.http_url}", MODELS[2:])
    assert main(["coco", *folder.options, "--url", url, *models, "--output", str(tmp_path / "out")]) == 0
    found = figures(tmp_path / "out")
    assert list(found) == NAMES[-len(models) // 2 :]
    for each in found.values():
        assert each.mean_iou == each.pixel_accuracy == 1.0
        assert each.pixels == len(coco_data.PERFECT) * 520 * 520 - 100 * 100
    content = json.loads((tmp_path / "out" / "coco.json").read_text())
    assert {predictor["weights"] for predictor in content["predictors"]} == {"by colour"}
    assert {predictor["version"] for predictor in content["predictors"]} == {"1"}
    assert content["predictors"][-1]["resize"] == "square"
    assert content["versions"]["tritonserver"] == "2.51.0"
    printed = capsys.readouterr()
    assert "100.00" in printed.out
    assert "UNTRAINED" not in printed.err
    assert f"{len(coco_data.PERFECT)} images in " in printed.err


def test_served_and_eager_figures_are_equal_and_what_the_construction_says(toy: TritonProcess, tmp_path: Path) -> None:
    folder = coco_data.write(tmp_path, coco_data.HALF)
    address = Address.of(toy.grpc_url)
    predictors = [
        EagerPredictor(Eager(), model="deeplabv3_toy", weights="toy"),
        CorePredictor(address, "deeplabv3_resnet50", timeout=60),
        EnsemblePredictor(address, "segment_resnet50", timeout=60),
    ]
    dataset = CocoWithVocLabels(folder.annotations, folder.images)
    tally = measuring.measure(
        dataset,
        predictors,
        dataset.ids,
        StateFile(tmp_path / "state", {}),
        concurrency=2,
        on_progress=lambda _: None,
        on_stopping=lambda _: None,
    )
    for predictor in predictors:
        predictor.close()
        found = Figures.of(tally.matrices[predictor.facts.name])
        assert found.mean_iou == pytest.approx(coco_data.HALF_MEAN_IOU, abs=1e-12)
        assert found.pixel_accuracy == pytest.approx(coco_data.HALF_PIXEL_ACCURACY, abs=1e-12)
    pixels = coco_data.HALF_PIXELS
    assert tally.agreements == {("eager toy", "core deeplabv3_resnet50"): (pixels, pixels)}


def test_a_picture_that_its_exif_turns_is_measured_as_stored(toy: TritonProcess, tmp_path: Path) -> None:
    """Both predictors; the box is not where it would be after the turn."""
    scene = coco_data.Scene([coco_data.Thing(coco_data.PERSON, (0, 0, 300, 100))], [(15, (0, 0, 300, 100))])
    folder = coco_data.write(tmp_path, [scene])
    path = next(folder.images.iterdir())
    exif = Image.Exif()
    exif[0x0112] = 6
    with pictures.opened(path) as image:
        image.copy().save(path, exif=exif)
    options = ["--url", toy.grpc_url, *MODELS, "--output", str(tmp_path / "out")]
    assert main(["coco", *folder.options, *options]) == 0
    assert [found.mean_iou for found in figures(tmp_path / "out").values()] == [1.0, 1.0]


def test_voc_folders_are_measured_at_both_sizes(toy: TritonProcess, tmp_path: Path) -> None:
    """260 x 300, so that the core sees 520 x 600 and the ensemble 520 x 520: all right but at the borders."""
    root = tmp_path / "VOC2012"
    for name in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (root / name).mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("a\n")
    ids = np.zeros((300, 260), np.uint8)
    ids[100:200, 40:160] = 15
    Image.fromarray(voc.PALETTE[ids]).save(root / "JPEGImages/a.jpg", quality=100, subsampling=0)
    ids[:20] = 255
    mask = Image.fromarray(ids)
    mask.putpalette(voc.PALETTE.tobytes())
    mask.save(root / "SegmentationClass/a.png")
    options = ["--url", toy.grpc_url, *MODELS, "--output", str(tmp_path / "out"), "--name", "mine"]
    assert main(["voc", "--root", str(root), *options]) == 0
    core, ensemble = (Figures.of(np.array(matrix)) for matrix in matrices(tmp_path / "out", "mine").values())
    assert core.pixels == 4 * 260 * 280
    assert ensemble.pixels == 260 * 280
    for found in (core, ensemble):
        # Mixed colours at the border may be nearest to any class: the mean is that of a few false classes too.
        assert found.class_iou[0] is not None
        assert found.class_iou[0] > 0.98
        assert found.class_iou[15] is not None
        assert found.class_iou[15] > 0.96


def command(toy: TritonProcess, folder: coco_data.CocoFolder, output: Path, *options: str) -> list[str]:
    served = ["--url", toy.grpc_url, *MODELS, "--concurrency", "2", "--output", str(output)]
    return [sys.executable, "-m", "evaluate", "coco", *folder.options, *served, *options]


def done(output: Path) -> list[str]:
    state = output / "coco.state.json"
    return json.loads(state.read_text())["tally"]["done"] if state.exists() else []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_goes_on_after_a_signal(toy: TritonProcess, tmp_path: Path, number: signal.Signals) -> None:
    """One picture is a pipe that nobody writes to, so that the run is in its midst until the test has seen it."""
    scenes = coco_data.PERFECT + coco_data.HALF
    folder, output = coco_data.write(tmp_path, scenes), tmp_path / "out"
    held = folder.images / "000000000104.png"
    data = held.read_bytes()
    held.unlink()
    os.mkfifo(held)
    process = subprocess.Popen(command(toy, folder, output), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: done(output), what="the first image is counted", seconds=120)
        process.send_signal(number)
        if number != signal.SIGKILL:
            # Opens as soon as the run reads it, which it may not any more; then nothing waits for it.
            wait_until(lambda: process.poll() is not None or fed(held, data), what="the pipe is read", seconds=60)
        _, printed = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    if number == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 128 + number
        assert "the same command goes on from there" in printed
    before = done(output)
    assert 0 < len(before) < len(scenes)
    held.unlink()
    held.write_bytes(data)

    refused = subprocess.run(
        command(toy, folder, output, "--limit", "7"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert "limit was not there and is 7" in refused.stderr
    assert "--restart" in refused.stderr

    resumed = subprocess.run(command(toy, folder, output), cwd=ROOT, capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert f"going on after {len(before)} of {len(scenes)} images" in resumed.stderr
    assert not (output / "coco.state.json").exists()
    whole = subprocess.run(command(toy, folder, tmp_path / "whole"), cwd=ROOT, capture_output=True, check=False)
    assert whole.returncode == 0
    assert matrices(output) == matrices(tmp_path / "whole")


def fed(pipe: Path, data: bytes) -> bool:
    """Write to a pipe if somebody reads it."""
    try:
        descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    os.set_blocking(descriptor, True)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    return True


def test_a_server_that_dies_stops_the_run_and_keeps_what_was_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = write_repository(tmp_path / "models", weights="none", mode="shorter_side")
    folder, output = coco_data.write(tmp_path, coco_data.PERFECT), tmp_path / "out"
    server = TritonProcess(repository, log=tmp_path / "serve.log")
    try:
        held = folder.images / "000000000103.png"
        data = held.read_bytes()
        held.unlink()
        os.mkfifo(held)
        process = subprocess.Popen(
            command(server, folder, output, "--timeout", "20"), cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        try:
            wait_until(lambda: done(output), what="the first image is counted", seconds=120)
            server.kill_all()
            wait_until(lambda: process.poll() is not None or fed(held, data), what="the pipe is read", seconds=60)
            _, printed = process.communicate(timeout=120)
        finally:
            process.kill()
            process.wait()
    finally:
        server.kill_all()
    assert process.returncode == 1
    # Whichever of the two models is asked first.
    assert "evaluate: image 0000000001" in printed
    assert "core deeplabv3_resnet50: " in printed
    assert "UNTRAINED WEIGHTS" in printed
    assert "the same command goes on from there" in printed
    assert done(output)


def test_the_resize_mode_of_the_server_is_reported(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "models", weights="by colour", mode="shorter_side")
    with TritonProcess(repository, log=tmp_path / "serve.log") as server:
        for url in (f"grpc://{server.grpc_url}", f"http://{server.http_url}"):
            predictor = EnsemblePredictor(Address.of(url), "segment_resnet50", timeout=60)
            predictor.close()
            assert predictor.facts.resize == "shorter_side"


def test_models_of_other_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    repository = write_repository(tmp_path / "models", weights="by colour")
    labels = repository / "postprocess" / "labels.txt"
    labels.write_text(labels.read_text().replace("bird", "zebra"))
    folder = coco_data.write(tmp_path, coco_data.PERFECT[:1])
    with TritonProcess(repository, log=tmp_path / "serve.log") as server:
        for model in (MODELS[:2], MODELS[2:]):
            options: list[Any] = ["--url", server.grpc_url, *model, "--output", str(tmp_path / "out")]
            assert main(["coco", *folder.options, *options]) == 1
            assert "3 is 'zebra' in place of 'bird'" in capsys.readouterr().err
        options = ["--url", server.grpc_url, "--core", "preprocess", "--output", str(tmp_path / "out")]
        assert main(["coco", *folder.options, *options]) == 1
        assert "preprocess has no output 'out' of 21 classes" in capsys.readouterr().err
        options = ["--url", server.grpc_url, "--ensemble", "segment_vgg", "--output", str(tmp_path / "out")]
        assert main(["coco", *folder.options, *options]) == 1
        assert "no answer about the model segment_vgg" in capsys.readouterr().err
