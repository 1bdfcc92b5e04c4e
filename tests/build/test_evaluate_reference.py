"""The evaluation against torchvision's arithmetic and Pillow; and the command without a server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import coco_data
import numpy as np
import pictures
import pytest
import torch
from PIL import Image
from torchvision.models.segmentation import deeplabv3_resnet50

from deeplab_client import voc
from deeplabv3.evaluation import EvaluationError
from deeplabv3.evaluation.__main__ import main
from deeplabv3.evaluation.counting import Figures, confusion
from deeplabv3.evaluation.datasets import Sample
from deeplabv3.evaluation.predictors import (
    IMAGENET,
    Classes,
    EagerPredictor,
    Normalization,
    PredictorFacts,
    prepare,
)
from deeplabv3.evaluation.report import published_figures

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

pytestmark = pytest.mark.build


def reference_figures(truth: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]) -> tuple[float, Any, Any]:
    """Accuracy, accuracy of each class and IoU of each, by the formulas of torchvision's references/segmentation.

    Its ConfusionMatrix takes the diagonal over all pixels, over the rows, and over rows and columns less the diagonal;
    here they are sums over masks of pixels, without a matrix.
    """
    counted = (truth >= 0) & (truth < 21)
    hits = [((truth == each) & (predicted == each) & counted).sum() for each in range(21)]
    rows = [((truth == each) & counted).sum() for each in range(21)]
    unions = [(((truth == each) | (predicted == each)) & counted).sum() for each in range(21)]
    with np.errstate(invalid="ignore"):  # 0 / 0 where a class is absent
        return sum(hits) / counted.sum(), np.array(hits) / np.array(rows), np.array(hits) / np.array(unions)


@pytest.mark.parametrize("present", [21, 5])
def test_figures_are_those_of_torchvisions_references(present: int) -> None:
    random = np.random.default_rng(present)
    truth = random.integers(0, present, (3, 60, 80))
    predicted = np.where(random.random(truth.shape) < 0.6, truth, random.integers(0, present, truth.shape))
    truth[random.random(truth.shape) < 0.1] = 255
    matrices = [confusion(*pair, classes=21) for pair in zip(truth, predicted, strict=True)]
    figures = Figures.of(np.sum(matrices, axis=0))
    pixel_accuracy, class_accuracy, class_iou = reference_figures(truth, predicted)
    assert figures.pixel_accuracy == pytest.approx(pixel_accuracy, abs=1e-12)
    for found, expected in ((figures.class_accuracy, class_accuracy), (figures.class_iou, class_iou)):
        assert [value is None for value in found] == np.isnan(expected).tolist()
        assert found[:present] == pytest.approx(expected[:present], abs=1e-12)
    # The references' own mean is not a number where a class is absent.
    assert figures.mean_accuracy == pytest.approx(np.nanmean(class_accuracy), abs=1e-12)
    assert figures.mean_iou == pytest.approx(np.nanmean(class_iou), abs=1e-12)
    assert figures.absent == tuple(range(present, 21))


@pytest.mark.parametrize(
    ("size", "resized"), [((451, 300), (781, 520)), ((300, 451), (520, 781)), ((520, 700), (520, 700))]
)
def test_samples_are_prepared_as_the_references_prepare_them(size: tuple[int, int], resized: tuple[int, int]) -> None:
    image = pictures.cat(size)
    target = np.random.default_rng(2).integers(0, 256, size[::-1], dtype=np.uint8)
    prepared = prepare(image, target)
    scaled = np.asarray(image.resize(resized, Image.Resampling.BILINEAR)) / np.float32(255)
    expected = (scaled - np.array([0.485, 0.456, 0.406], np.float32)) / np.array([0.229, 0.224, 0.225], np.float32)
    assert prepared.pixels.shape == (1, 3, *resized[::-1])
    np.testing.assert_allclose(IMAGENET.apply(prepared.pixels)[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)
    # The nearest pixel to a center, written out.
    rows = ((np.arange(resized[1]) + 0.5) * size[1] / resized[1]).astype(int)
    columns = ((np.arange(resized[0]) + 0.5) * size[0] / resized[0]).astype(int)
    np.testing.assert_array_equal(prepared.target, target[rows][:, columns])


class AboveMean(torch.nn.Module):
    """Class 1 where red is above the mean, by one standard deviation of it."""

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        red = pixels[:, :1]
        return {"out": torch.cat([torch.ones_like(red), red], 1)}


def test_a_model_gets_the_pixels_with_the_statistics_of_its_training() -> None:
    image = Image.fromarray(np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)).resize((520, 520), 0)
    sample = Sample("a", b"", image, turned=False, target=np.zeros((520, 520), np.uint8), annotation="a.png")
    red = np.asarray(image)[..., 0]
    for mean, std in ((0.485, 0.229), (0.2, 0.5)):
        normalization = Normalization((mean, 0.1, 0.1), (std, 1.0, 1.0))
        predictor = EagerPredictor(
            AboveMean(), model="a", weights="a", classes=Classes(2, None), normalization=normalization
        )
        np.testing.assert_array_equal(predictor.predict(sample).mask, red > 255 * (mean + std))


class ByColor(torch.nn.Module):
    """The logits of a class are what its color is near to a pixel's; `aux` is there and wrong."""

    def __init__(self, colors: npt.NDArray[np.uint8]) -> None:
        super().__init__()
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("colors", (torch.from_numpy(colors.copy()) / 255 - mean) / std)

    def forward(self, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        out = -((pixels[:, None] - self.get_buffer("colors")[None, :, :, None, None]) ** 2).sum(2)
        return {"out": out, "aux": -out}


def test_the_module_is_asked_by_the_reference_protocol() -> None:
    ids = np.zeros((260, 300), np.uint8)
    ids[100:200, 40:160] = 15
    image = Image.fromarray(voc.PALETTE[ids])
    classes = Classes(21, None)
    predictor = EagerPredictor(ByColor(voc.PALETTE[:21]), model="deeplabv3_toy", weights="toy", classes=classes)
    mask, target = predictor.predict(Sample("a.png", b"", image, turned=False, target=ids, annotation="drawn here"))
    assert mask.shape == target.shape == (520, 600)
    # The picture is twice as large: only the rows and columns at the person's border are mixed colors.
    assert (mask == target).mean() > 0.99
    with pytest.raises(EvaluationError, match=r"--device nonsense: .*such as cpu"):
        EagerPredictor(
            ByColor(voc.PALETTE[:21]), model="deeplabv3_toy", weights="toy", classes=classes, device="nonsense"
        )


@pytest.mark.parametrize(("variant", "mean_iou"), [("resnet50", 0.664), ("resnet101", 0.674)])
def test_published_figures_are_those_recorded_with_the_weights(variant: str, mean_iou: float) -> None:
    def facts(model: str, weights: str | None) -> PredictorFacts:
        return PredictorFacts(
            name="x",
            kind="direct",
            model=model,
            version=None,
            weights=weights,
            resolution="own size",
            resize=None,
            device=None,
        )

    label = "COCO_WITH_VOC_LABELS_V1"
    for model in (f"deeplabv3_{variant}", f"segment_{variant}"):
        expected = pytest.approx({"mean_iou": mean_iou, "pixel_accuracy": 0.924})
        assert published_figures(facts(model, label)) == expected
    assert published_figures(facts("segment_toy", label)) is None
    assert published_figures(facts(f"deeplabv3_{variant}", "none")) is None
    assert published_figures(facts(f"deeplabv3_{variant}", None)) is None


def test_the_command_measures_an_untrained_module_and_reports_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The right figures of two pictures: torchvision's module from the same seed, and counting by hand."""
    folder = coco_data.write(tmp_path, coco_data.PERFECT[:3])
    command = ["coco", *folder.options, "--eager", "resnet50", "--weights", "none", "--limit", "2"]
    assert main([*command, "--output", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    content = json.loads(printed.out)
    assert content == json.loads((tmp_path / "out" / "coco.json").read_text())
    assert "UNTRAINED WEIGHTS" in printed.err
    assert "2 images in " in printed.err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["coco.json", "coco.png"]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True).eval()
    expected = np.zeros((21, 21), int)
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    for path, scene in zip(sorted(folder.images.iterdir()), coco_data.PERFECT[:2], strict=False):
        with pictures.opened(path) as image:
            pixels = (np.asarray(image) / np.float32(255) - mean) / std
        with torch.inference_mode():
            mask = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])["out"].argmax(1)[0].numpy()
        np.add.at(expected, (scene.classes().ravel(), mask.ravel()), 1)
    (predictor,) = content["predictors"]
    assert predictor["name"] == "eager resnet50"
    assert predictor["untrained"]
    # Ways of summing float32 differ, and noise has many near ties.
    assert np.abs(np.array(predictor["confusion"]) - expected).sum() < 0.001 * expected.sum()


def test_a_checkpoint_of_own_classes_is_measured_on_own_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against torchvision's module with the same checkpoint, counted by hand; the names are numbers, as in a build."""
    images, masks, checkpoint = tmp_path / "pictures", tmp_path / "masks", tmp_path / "farm.pth"
    for folder in (images, masks):
        folder.mkdir()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=3).eval()
    torch.save(model.state_dict(), checkpoint)
    image = pictures.cat((520, 520))
    image.save(images / "cat.png")
    target = np.arange(520 * 520, dtype=np.uint32).reshape(520, 520) // 100 % 3
    target[:9] = 255
    Image.fromarray(target.astype(np.uint8)).save(masks / "cat.png")
    command = ["folders", "--images", str(images), "--masks", str(masks), "--eager", "resnet50"]
    command += ["--weights", str(checkpoint), "--output", str(tmp_path / "out"), "--json"]
    assert main(command) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["class_names"] == ["__background__", "class_1", "class_2"]
    (predictor,) = content["predictors"]
    assert predictor["weights"].startswith("farm.pth@sha256:")
    mean, std = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
    pixels = (np.asarray(image) / np.float32(255) - mean) / std
    with torch.inference_mode():
        mask = model(torch.from_numpy(pixels).permute(2, 0, 1)[None])["out"].argmax(1)[0].numpy()
    expected = np.zeros((3, 3), int)
    counted = target != 255
    np.add.at(expected, (target[counted], mask[counted]), 1)
    assert np.abs(np.array(predictor["confusion"]) - expected).sum() < 0.001 * expected.sum()

    (tmp_path / "farm.txt").write_text("ground\nchicken\n")
    assert main([*command, "--classes", str(tmp_path / "farm.txt")]) == 1
    message = "eager resnet50: its classes are not the 2 of --classes (it has 3"
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--eager", "resnet50", "--weights", "nowhere.pth"],
            "--eager resnet50: the weights nowhere.pth cannot be read: No such file",
        ),
        (["--direct", "deeplabv3_resnet50", "--url", "grpc://127.0.0.1:9"], "grpc://127.0.0.1:9: the server does not"),
        (["--ensemble", "segment_resnet50", "--url", "http://127.0.0.1:9"], "http://127.0.0.1:9: the server does not"),
    ],
)
def test_what_is_not_there_is_one_line(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = coco_data.write(tmp_path, coco_data.PERFECT[:1], side=8)
    assert main(["coco", *folder.options, *options, "--output", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
