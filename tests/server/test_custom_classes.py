"""A model of three custom classes with an auxiliary head, which keeps the aspect ratio of each picture."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pictures
import pytest
import torch
import wire
from PIL import Image
from torch.nn import functional
from torchvision.transforms.v2 import functional as transforms
from triton_process import TritonProcess

from deeplab_client import SegmentationClient, UnknownClassError, voc
from deeplabv3 import model_deeplabv3_resnet50

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt
    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("ground", "Küken", "fence post")
# For speed: small pictures, and a network with a sixteenth of the channels.
SIDE = 104
MEAN, STD = [0.4, 0.5, 0.6], [0.5, 0.25, 1.0]  # with which it was trained
WIDTH = 4


@pytest.fixture(scope="module")
def model() -> DeepLabV3:
    """A model that finds all three classes in the photograph, instead of a trained model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = model_deeplabv3_resnet50(num_classes=3, aux_loss=True, width_per_group=WIDTH).eval()
    # Untrained, one class wins everywhere: move the classes' biases until each has a share.
    with torch.inference_mode():
        values = made(pixels(pictures.small()))["out"][0].flatten(1)
        bias = dict(made.named_parameters())["classifier.4.bias"]
        bias.sub_(values.mean(1))
    return made


def pixels(data: bytes) -> torch.Tensor:
    with Image.open(io.BytesIO(data)) as opened:
        image = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
    resized = transforms.resize(image, [SIDE], antialias=True)
    return transforms.normalize(resized / 255, MEAN, STD)[None]


def reference(model: DeepLabV3, data: bytes) -> npt.NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as opened:
        size = (opened.height, opened.width)
    with torch.inference_mode():
        logits = model.classifier(model.backbone(pixels(data))["out"])
        upsampled = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
    return upsampled.argmax(1)[0].numpy().astype(np.uint8)


@pytest.fixture(scope="module")
def custom_server(model: DeepLabV3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    folder = tmp_path_factory.mktemp("custom")
    torch.save({"model": model.state_dict(), "epoch": 30}, folder / "farm.pth")
    (folder / "farm.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
    options = ["--weights", str(folder / "farm.pth"), "--classes", str(folder / "farm.txt"), "--aux-loss"]
    options += ["--width-per-group", str(WIDTH), "--set", f"preprocess.resize_size={SIDE}"]
    options += ["--set", "preprocess.resize_mode=shorter_side"]
    options += ["--set", "preprocess.scaled_decoding=false"]  # the reference decodes as a whole
    options += ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))]
    command = [sys.executable, "build_models.py", *options, "--model-repository", str(folder / "models")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=500)
    with TritonProcess(folder / "models", log=folder / "serve.log") as process:
        yield process


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_checkpoint_is_served_under_its_own_class_names(
    custom_server: TritonProcess, model: DeepLabV3, protocol: str
) -> None:
    address = {"grpc": custom_server.grpc_url, "http": custom_server.http_url}[protocol]
    with SegmentationClient(f"{protocol}://{address}", timeout=120.0) as client:
        results = {data: client.segment(data) for data in (pictures.small(), pictures.portrait())}
    for data, result in results.items():
        expected = reference(model, data)
        assert (result.mask == expected).mean() >= 0.9999
        assert result.class_names == NAMES
        counts = {name: int((result.mask == index).sum()) for index, name in enumerate(NAMES)}
        assert result.pixel_counts == {name: count for name, count in counts.items() if count}
        assert result.weights is not None
        assert result.weights.startswith("farm.pth@sha256:")
        assert not result.untrained
        assert result.top_class in {"Küken", "fence post"}
    assert set(results[pictures.small()].pixel_counts) == set(NAMES), "the test wants a picture with all of them"

    # A class has one color, whatever else is in the picture; and the background is not painted.
    for data, result in results.items():
        drawn = np.asarray(result.overlay(data, alpha=1.0))
        for index, name in enumerate(NAMES[1:], start=1):
            assert (drawn[result[name]] == voc.PALETTE[index]).all()
        with Image.open(io.BytesIO(data)) as opened:
            assert (drawn[result["ground"]] == np.asarray(opened.convert("RGB"))[result["ground"]]).all()
    with pytest.raises(
        UnknownClassError, match="unknown class 'cat': the model's classes are ground, Küken, fence post"
    ):
        results[pictures.small()]["cat"]


def test_the_auxiliary_output_is_served(custom_server: TritonProcess, model: DeepLabV3) -> None:
    batch = pixels(pictures.small())
    reply = wire.infer(custom_server, "grpc", "deeplabv3_resnet50", {"input": batch.numpy()}, ["out", "aux"])
    with torch.inference_mode():
        expected = model(batch)
    for name in ("out", "aux"):
        assert reply[name].shape == (1, 3, *batch.shape[2:])
        assert np.abs(reply[name] - expected[name].numpy()).max() <= 1e-4 * max(1.0, float(expected[name].abs().max()))
