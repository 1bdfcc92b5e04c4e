"""Run the commands of docs/own-model.md, from a checkpoint to the mIoU of its classes."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pictures
import pytest
import torch
from PIL import Image
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms
from triton_process import TritonProcess

from deeplab_client import SegmentationClient
from deeplabv3 import model_deeplabv3_resnet50

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs" / "own-model.md").read_text()
# For speed: small pictures, and a network with a sixteenth of the channels.
SMALLER = {"preprocess.resize_size=1024x512": "preprocess.resize_size=192x96"}
HEIGHT, WIDTH = 96, 192
CHANNELS = 4
MEAN, STD = [0.4, 0.5, 0.6], [0.5, 0.25, 1.0]
# Pixels whose two best classes are nearly equal may get the other one.
AGREEMENT = 0.9999


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


(_LIST,) = blocks("text")
NAMES = tuple(_LIST.splitlines())


def command(program: str, folder: Path) -> list[str]:
    """Return the arguments of a command of the document, with its files in a folder."""
    (line,) = [line for line in "".join(blocks("sh")).replace("\\\n", "").splitlines() if program in line]
    own = {"mine.pth", "names.txt", "models/mine", "pictures", "masks"}
    words = [str(folder / word) if word in own else SMALLER.get(word, word) for word in shlex.split(line)]
    assert words[0] == ".venv/bin/python"
    return [sys.executable, *words[1:]]


def prepared(image: Image.Image) -> torch.Tensor:
    samples = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    return transforms.normalize(transforms.resize(samples, [HEIGHT, WIDTH], antialias=True) / 255, MEAN, STD)[None]


class Trained:
    """A small network that finds all four classes in the photograph, instead of a trained network."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.module = model_deeplabv3_resnet50(num_classes=len(NAMES), width_per_group=CHANNELS).eval()
        with torch.inference_mode():
            values = self.module(prepared(pictures.cat((451, 300))))["out"][0].flatten(1)
            dict(self.module.named_parameters())["classifier.4.bias"].sub_(values.mean(1))

    def mask(self, image: Image.Image) -> npt.NDArray[np.uint8]:
        with torch.inference_mode():
            logits = self.module.classifier(self.module.backbone(prepared(image))["out"])
            size = (image.height, image.width)
            upsampled = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        return upsampled.argmax(1)[0].numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def trained() -> Trained:
    return Trained()


@pytest.fixture(scope="module")
def folder(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the document names: a checkpoint of PyTorch Lightning, names, pictures and masks."""
    folder = tmp_path_factory.mktemp("own")
    # As a trainer of several GPUs leaves it: a LightningModule that holds the model, wrapped.
    state = {f"model.module.{key}": value for key, value in trained.module.state_dict().items()}
    content = {"epoch": 30, "pytorch-lightning_version": "2.5.0", "state_dict": state, "optimizer_states": []}
    torch.save(content, folder / "mine.pth")
    (folder / "names.txt").write_text(_LIST)
    for name in ("pictures", "masks"):
        (folder / name).mkdir()
    for number, size in enumerate([(451, 300), (300, 451)]):
        picture = pictures.cat(size)
        picture.save(folder / "pictures" / f"{number}.png")
        mask = trained.mask(picture)
        mask[: size[1] // 3] = 2  # so that the figures are neither 0 nor 1
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
    (folder / "street.jpg").write_bytes(pictures.small())
    return folder


@pytest.fixture(scope="module")
def own_server(folder: Path) -> Iterator[TritonProcess]:
    arguments = [*command("build_models.py", folder), "--width-per-group", str(CHANNELS)]
    subprocess.run(arguments, cwd=ROOT, check=True, timeout=500)
    assert command("serve.py", folder)[2:] == ["--model-repository", str(folder / "models" / "mine")]
    with TritonProcess(folder / "models" / "mine", log=folder / "serve.log") as process:
        yield process


def test_another_process_gets_the_models_mask(own_server: TritonProcess, trained: Trained, folder: Path) -> None:
    (block,) = blocks("python")
    code = block.replace("localhost:8001", own_server.grpc_url).replace("timeout=30.0", "timeout=120.0")
    code += 'import numpy\nnumpy.save("mask.npy", result.mask)\n'
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    expected = trained.mask(pictures.cat())
    largest = NAMES[np.bincount(expected.ravel()).argmax()]
    assert done.stdout.startswith(f"{NAMES} {largest} mine.pth@sha256:")
    assert (np.load(folder / "mask.npy") == expected).mean() >= AGREEMENT
    assert set(np.unique(expected)) == set(range(len(NAMES))), "the test wants a picture with all of them"


def test_class_0_is_a_class_like_the_others(own_server: TritonProcess, folder: Path) -> None:
    """Of a picture that is all road, the road is what it shows."""
    with SegmentationClient(f"grpc://{own_server.grpc_url}", timeout=120.0) as client:
        result = client.segment(folder / "street.jpg")
    assert not result.background
    result.mask[:] = 0
    assert result.top_class == "road"
    (annotation,) = result.to_coco(image_id=1)
    assert {"id": annotation["category_id"], "name": "road"} in [
        {key: category[key] for key in ("id", "name")} for category in result.coco_categories()
    ]


def test_the_evaluator_gives_the_iou_of_each_class(own_server: TritonProcess, trained: Trained, folder: Path) -> None:
    arguments = command("deeplabv3.evaluation", folder)
    arguments += ["--url", f"grpc://{own_server.grpc_url}", "--output", str(folder / "evaluation"), "--json"]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (measured,) = json.loads(done.stdout)["predictors"]

    matrix = np.zeros((len(NAMES), len(NAMES)), np.int64)
    for file in sorted((folder / "masks").iterdir()):
        with Image.open(folder / "pictures" / file.name) as picture, Image.open(file) as mask:
            np.add.at(matrix, (np.asarray(mask), trained.mask(picture)), 1)
    hits = matrix.diagonal()
    iou = hits / (matrix.sum(0) + matrix.sum(1) - hits)
    assert 0.1 < iou.mean() < 0.9
    assert measured["mean_iou"] == pytest.approx(iou.mean(), abs=1e-3)
    assert [measured_class["name"] for measured_class in measured["classes"]] == list(NAMES)
    assert [measured_class["iou"] for measured_class in measured["classes"]] == pytest.approx(iou, abs=1e-3)
