"""evaluate against a real Triton, with a core model that tells classes by color: the right figures are known."""

from __future__ import annotations

import contextlib
import json
import os
import re
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

from deeplab_client import voc
from deeplabv3 import WeightsSource
from deeplabv3.building.assembly import build
from deeplabv3.building.plan import Plan
from deeplabv3.evaluation.__main__ import main
from deeplabv3.evaluation.coco import coco_with_voc_labels
from deeplabv3.evaluation.counting import Figures
from deeplabv3.evaluation.measuring import measure
from deeplabv3.evaluation.predictors import Classes, EagerPredictor
from deeplabv3.evaluation.records import RecordFile
from deeplabv3.evaluation.served import DirectPredictor, EnsemblePredictor, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
MODELS = ["--direct", "deeplabv3_resnet50", "--ensemble", "segment_resnet50"]
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
NAMES = ["direct deeplabv3_resnet50", "ensemble segment_resnet50"]


class ByColor(torch.nn.Module):
    """The class with the color nearest to that of a pixel gets the largest logit."""

    def __init__(self, classes: int = 21) -> None:
        super().__init__()
        self.mean, self.std = (torch.nn.Buffer(torch.tensor(values)) for values in (MEAN, STD))
        colors = torch.from_numpy(voc.PALETTE[:classes].copy()) / 255
        self.colors = torch.nn.Parameter((colors - self.mean) / self.std)

    def logits(self, pixels: torch.Tensor) -> torch.Tensor:
        return -((pixels[:, None] - self.colors[None, :, :, None, None]) ** 2).sum(2)


class Direct(ByColor):
    """With the argument's name of the models for direct callers."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name on the wire
        return self.logits(input)


class Core(ByColor):
    """With those of the core models; the resolution of LOGITS is free."""

    def forward(self, PIXELS: torch.Tensor, IMAGE_ID: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N803 - the names on the wire
        planes = (PIXELS / 255 - self.mean) / self.std
        return self.logits(planes.permute(0, 3, 1, 2)), IMAGE_ID


class Eager(ByColor):
    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.logits(pixels)}


def write_repository(
    repository: Path, *, weights: str, mode: str = "fixed", class_names: tuple[str, ...] = voc.CLASS_NAMES
) -> Path:
    """The repository's own steps around the toy."""
    plan = Plan("resnet50", WeightsSource(weights), class_names)
    build(repository, [plan], configs_only=True, settings={"preprocess.resize_mode": mode})
    samples, ids = torch.zeros(1, 8, 8, 3, dtype=torch.uint8), torch.zeros(1, 1, dtype=torch.int64)
    for model, module, example in (
        ("core_resnet50", Core, (samples, ids)),
        ("deeplabv3_resnet50", Direct, (torch.zeros(1, 3, 8, 8),)),
    ):
        version = repository / model / "1"
        version.mkdir()
        with torch.no_grad():
            traced: Any = torch.jit.trace(module(len(class_names)), example)
        traced.save(str(version / "model.pt"))
    return repository


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    repository = write_repository(tmp_path_factory.mktemp("toy") / "models", weights="by color")
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
    assert {predictor["weights"] for predictor in content["predictors"]} == {"by color"}
    assert {predictor["version"] for predictor in content["predictors"]} == {"1"}
    assert content["predictors"][-1]["resize"] == "fixed"
    assert content["versions"]["tritonserver"] == "2.51.0"
    printed = capsys.readouterr()
    assert "100.00" in printed.out
    assert "UNTRAINED" not in printed.err
    assert f"{len(coco_data.PERFECT)} images in " in printed.err


def test_served_and_eager_figures_equal_the_constructed_ones(toy: TritonProcess, tmp_path: Path) -> None:
    folder = coco_data.write(tmp_path, coco_data.HALF)
    server = Server.of(toy.grpc_url)
    predictors = [
        EagerPredictor(Eager(), model="deeplabv3_toy", weights="toy", classes=Classes(21, None)),
        DirectPredictor(server, "deeplabv3_resnet50", timeout=60),
        EnsemblePredictor(server, "segment_resnet50", timeout=60),
    ]
    dataset = coco_with_voc_labels(folder.annotations, folder.images)
    tally = measure(
        dataset,
        predictors,
        dataset.ids,
        RecordFile(tmp_path / "state", {}),
        classes=21,
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
    assert tally.agreements == {("eager toy", "direct deeplabv3_resnet50"): (pixels, pixels)}


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
        # Mixed colors at the border may be nearest to any class: the mean is that of a few false classes too.
        assert found.class_iou[0] is not None
        assert found.class_iou[0] > 0.98
        assert found.class_iou[15] is not None
        assert found.class_iou[15] > 0.96


def arguments(server: TritonProcess, folder: coco_data.CocoFolder, output: Path, *options: str) -> list[str]:
    served = ["--url", server.grpc_url, *MODELS, "--concurrency", "2", "--timeout", "60", "--output", str(output)]
    return ["coco", *folder.options, *served, *options]


def done(output: Path) -> list[str]:
    state = output / "coco.state.jsonl"
    if not state.exists():
        return []
    _, *records = state.read_bytes().split(b"\n")[:-1]  # whole lines; the first has the settings
    return [json.loads(record)["image"] for record in records]


class HeldRun:
    """A run in a separate process, in which two pictures, one per thread, are pipes without a writer.

    So it is in its midst until the test lets it go on, and cannot count the last picture before that.
    """

    def __init__(self, server: TritonProcess, folder: coco_data.CocoFolder, output: Path) -> None:
        self.output = output
        self._held = {path: path.read_bytes() for path in sorted(folder.images.iterdir())[4:7:2]}
        for path in self._held:
            path.unlink()
            os.mkfifo(path)
        command = [sys.executable, "-m", "deeplabv3.evaluation", *arguments(server, folder, output)]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)

    def wait_counting(self) -> None:
        wait_until(lambda: done(self.output) or self.process.poll() is not None, what="an image counted", seconds=120)

    def let_go(self) -> None:
        for path, data in self._held.items():
            wait_until(
                lambda path=path, data=data: self.process.poll() is not None or _fed(path, data),
                what=f"{path} is read",
            )

    def finish(self) -> str:
        """Wait for the end; return what it printed."""
        return self.process.communicate(timeout=120)[1]

    def repair(self) -> None:
        """Stop what still runs, and put the pictures back."""
        self.process.kill()
        self.process.communicate()
        for path, data in self._held.items():
            path.unlink()
            path.write_bytes(data)


def _fed(pipe: Path, data: bytes) -> bool:
    """Write to a pipe if it has a reader; the pictures fit into its buffer."""
    try:
        descriptor = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return False
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    return True


@pytest.fixture(scope="module")
def uninterrupted(toy: TritonProcess, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[list[int]]]:
    """The counts of an uninterrupted run on the same scenes as the interrupted runs."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    scenes = coco_data.write(folder, coco_data.PERFECT + coco_data.HALF)
    assert main(arguments(toy, scenes, folder / "out")) == 0
    return matrices(folder / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_goes_on_after_a_signal(
    toy: TritonProcess,
    uninterrupted: dict[str, list[list[int]]],
    tmp_path: Path,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
) -> None:
    scenes = coco_data.PERFECT + coco_data.HALF
    folder, output = coco_data.write(tmp_path, scenes), tmp_path / "out"
    run = HeldRun(toy, folder, output)
    try:
        run.wait_counting()
        run.process.send_signal(number)
        if number != signal.SIGKILL:
            run.let_go()
        printed = run.finish()
    finally:
        run.repair()
    if number == signal.SIGKILL:
        assert run.process.returncode == -signal.SIGKILL
    else:
        assert run.process.returncode == 128 + number
        assert "stopping after " in printed
        assert "repeat the command to resume" in printed
    before = done(output)
    assert 0 < len(before) < len(scenes)

    assert main(arguments(toy, folder, output, "--limit", "7")) == 1
    refused = capsys.readouterr().err
    assert "limit was not there and is 7" in refused
    assert "repeat the command to resume" not in refused
    assert "--restart" in refused
    assert done(output) == before

    assert main(arguments(toy, folder, output)) == 0
    assert f"resuming after {len(before)} of {len(scenes)} images" in capsys.readouterr().err
    assert [path.name for path in output.iterdir() if "state" in path.name] == []
    assert matrices(output) == uninterrupted


def test_restart_discards_what_was_counted(
    toy: TritonProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = coco_data.write(tmp_path, coco_data.HALF), tmp_path / "out"
    output.mkdir()
    (output / "coco.state.jsonl").write_text("of another run")
    assert main(arguments(toy, folder, output)) == 1
    assert "is not the state file of an evaluation; discard it with --restart" in capsys.readouterr().err
    assert main(arguments(toy, folder, output, "--restart")) == 0
    assert figures(output)[NAMES[0]].pixels == coco_data.HALF_PIXELS


def test_a_server_that_dies_stops_the_run_and_keeps_what_was_counted(tmp_path: Path) -> None:
    repository = write_repository(tmp_path / "models", weights="none")
    folder, output = coco_data.write(tmp_path, coco_data.PERFECT + coco_data.HALF), tmp_path / "out"
    with contextlib.ExitStack() as stack:
        server = TritonProcess(repository, log=tmp_path / "serve.log")
        stack.callback(server.kill)
        run = HeldRun(server, folder, output)
        stack.callback(run.repair)
        run.wait_counting()
        server.kill()
        run.let_go()
        printed = run.finish()
    assert run.process.returncode == 1
    # Which image was on its way, and to which of the two models, is chance.
    assert re.search(
        r"^deeplabv3\.evaluation: image 0{9}1\d\d\.png: (direct deeplabv3|ensemble segment)_resnet50: ",
        printed,
        re.MULTILINE,
    )
    assert "UNTRAINED WEIGHTS" in printed
    assert "repeat the command to resume" in printed
    assert done(output)


FARM = ("ground", "chicken", "fence post")


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    """A server with three custom classes."""
    repository = write_repository(
        tmp_path_factory.mktemp("farm") / "models", weights="farm.pth", mode="shorter_side", class_names=FARM
    )
    with TritonProcess(repository, log=tmp_path_factory.mktemp("log") / "serve.log") as process:
        yield process


def drawn(*boxes: tuple[int, tuple[int, int, int, int]]) -> npt.NDArray[np.uint8]:
    return coco_data.Scene(shown=list(boxes)).classes()


@pytest.fixture
def own_folders(tmp_path: Path) -> list[str]:
    """A chicken of which half is seen, on a picture whose last rows count for nothing; and a fence post."""
    images, masks = tmp_path / "pictures", tmp_path / "masks"
    for folder in (images, masks):
        folder.mkdir()
    Image.fromarray(voc.PALETTE[drawn((1, (0, 0, 100, 100)))]).save(images / "chicken.bmp")
    half = drawn((1, (0, 0, 200, 100)), (255, (0, 500, 520, 520)))
    mask = Image.fromarray(half)
    mask.putpalette(voc.PALETTE.tobytes())
    mask.save(masks / "chicken.png")
    Image.fromarray(voc.PALETTE[drawn((2, (50, 50, 60, 450)))]).save(images / "post.png")
    Image.fromarray(drawn((2, (50, 50, 60, 450)))).save(masks / "post.png")
    return ["folders", "--images", str(images), "--masks", str(masks)]


@pytest.mark.parametrize("named", [False, True])
def test_own_classes_in_own_folders_are_measured(
    farm: TritonProcess, own_folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], *, named: bool
) -> None:
    options = [*own_folders, "--url", farm.grpc_url, *MODELS, "--output", str(tmp_path / "out")]
    if named:
        (tmp_path / "farm.txt").write_text("\n".join(FARM))
        options += ["--classes", str(tmp_path / "farm.txt")]
    assert main(options) == 0
    assert "chicken" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "folders.json").read_text())
    assert content["class_names"] == [*FARM]
    assert content["dataset"]["kind"] == "folders"
    pixels = 2 * 520 * 520 - 20 * 520
    ground = pixels - 20_000 - 4_000
    for predictor, name in zip(content["predictors"], NAMES, strict=True):
        assert predictor["name"] == name
        assert predictor["confusion"] == [[ground, 0, 0], [10_000, 10_000, 0], [0, 0, 4_000]]
        assert [each["iou"] for each in predictor["classes"]] == [ground / (ground + 10_000), 0.5, 1.0]
        assert predictor["mean_iou"] == pytest.approx((ground / (ground + 10_000) + 0.5 + 1) / 3, abs=1e-12)
        assert predictor["pixel_accuracy"] == (pixels - 10_000) / pixels
        assert predictor["published"] is None
    assert content["agreement"] == []


def test_another_server_is_reported_and_models_of_other_classes_are_refused(
    farm: TritonProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for url in (f"grpc://{farm.grpc_url}", f"http://{farm.http_url}"):
        ensemble = EnsemblePredictor(Server.of(url), "segment_resnet50", timeout=60)
        ensemble.close()
        assert (ensemble.facts.resize, ensemble.facts.weights) == ("shorter_side", "farm.pth")
        assert ensemble.classes == Classes(3, FARM)
    folder = coco_data.write(tmp_path, coco_data.PERFECT[:1])
    common = ["coco", *folder.options, "--url", farm.grpc_url, "--output", str(tmp_path / "out")]
    for model in (MODELS[:2], MODELS[2:]):
        assert main([*common, *model]) == 1
        printed = capsys.readouterr().err
        assert "its classes are not the 21 of Pascal VOC" in printed
        assert "it has 3 classes instead of 21, 0 is 'ground' instead of '__background__'" in printed
        assert "image" not in printed, "no image is to blame"
        assert "the same command" not in printed
        assert not list((tmp_path / "out").glob("*.state*"))
    assert main([*common, "--direct", "preprocess"]) == 1
    assert "preprocess has no output 'out' with the logits of its classes" in capsys.readouterr().err
    assert main([*common, "--ensemble", "segment_vgg"]) == 1
    assert re.search(r"ensemble segment_vgg: .*'?segment_vgg'? ", capsys.readouterr().err)
    assert main([*common, "--direct", "deeplabv3_vgg"]) == 1
    assert "builds with --no-direct leave out deeplabv3_*" in capsys.readouterr().err


def test_what_does_not_fit_the_served_classes_is_named(
    farm: TritonProcess, toy: TritonProcess, own_folders: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, classes = ["--output", str(tmp_path / "out")], tmp_path / "farm.txt"

    def refused(*options: str, server: TritonProcess = farm, models: list[str] = MODELS[2:]) -> str:
        assert main([*own_folders, "--url", server.grpc_url, *models, *output, *options]) == 1
        printed = capsys.readouterr().err
        assert printed.count("\n") <= 2
        return printed

    classes.write_text("ground\nchicken\nfence post\n")
    assert "it has 21 classes instead of 3" in refused("--classes", str(classes), server=toy)
    classes.write_text("ground\nhen\nfence post\n")
    for name, models in zip(NAMES, (MODELS[:2], MODELS[2:]), strict=True):
        printed = refused("--classes", str(classes), models=models)
        assert f"{name}: its classes are not the 3 of --classes (" in printed
        assert "1 is 'chicken' instead of 'hen'" in printed
    classes.write_text("ground\n\nhen\n")
    assert f"--classes {classes}: line 2 is empty" in refused("--classes", str(classes))
    # A class that the model does not have: the mask is to blame, and 255 counts where another id is ignored.
    mask = tmp_path / "masks" / "post.png"
    Image.fromarray(drawn((7, (0, 0, 9, 9)))).save(mask)
    message = f"the mask {mask} has the class ids 7, but the models have 3 classes, 0 to 2, and --ignore is 255"
    assert message in refused()
    assert "(dataset ignore was 255 and is 7)" in refused("--ignore", "7")
    assert f"{tmp_path / 'masks' / 'chicken.png'} has the class ids 255" in refused(
        "--ignore", "7", "--concurrency", "1", "--restart"
    )
    mask.unlink()
    assert f"among the masks for {tmp_path / 'pictures' / 'post.png'}; add the masks" in refused("--restart")
