"""The model functions: every argument, against torchvision's own functions and real downloads from a server here."""

from __future__ import annotations

import functools
import hashlib
import http.server
import re
import threading
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import ResNet50_Weights, Weights, WeightsEnum
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights, DeepLabV3_ResNet101_Weights

import deeplabv3
from deeplabv3 import model_deeplabv3_resnet50, model_deeplabv3_resnet101
from deeplabv3.models.variants import PUBLISHED_WEIGHTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

Made = TypeVar("Made", bound=nn.Module)

pytestmark = pytest.mark.build

MODELS: dict[str, Callable[..., DeepLabV3]] = {
    "resnet50": model_deeplabv3_resnet50,
    "resnet101": model_deeplabv3_resnet101,
}
REFERENCES: dict[str, Callable[..., DeepLabV3]] = {
    "resnet50": torchvision.models.segmentation.deeplabv3_resnet50,
    "resnet101": torchvision.models.segmentation.deeplabv3_resnet101,
}


def seeded(make: Callable[..., Made], **arguments: object) -> Made:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return make(**arguments)


def meta(make: Callable[..., Made], **arguments: object) -> Made:
    """Make a model without its weights: shapes only."""
    with torch.device("meta"):
        return make(**arguments)


def same_state(first: nn.Module, second: nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return list(one) == list(other) and all(torch.equal(one[key], other[key]) for key in one)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


@pytest.mark.parametrize("aux_loss", [True, None])
@pytest.mark.parametrize("variant", MODELS)
def test_without_weights_a_seed_gives_torchvisions_own_model(variant: str, aux_loss: bool | None) -> None:  # noqa: FBT001 - a parameter of the test
    made = seeded(MODELS[variant], num_classes=4, aux_loss=aux_loss)
    expected = seeded(REFERENCES[variant], weights=None, weights_backbone=None, num_classes=4, aux_loss=aux_loss)
    assert same_state(made, expected)
    assert made.training
    pixels = torch.randn(2, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        found, wanted = made.eval()(pixels), expected.eval()(pixels)
    assert list(found) == (["out", "aux"] if aux_loss else ["out"])
    for name, logits in found.items():
        assert logits.shape == (2, 4, 40, 56)
        assert torch.equal(logits, wanted[name])


@pytest.mark.parametrize(("num_classes", "expected"), [(None, 21), (1, 1), (300, 300), (np.int64(3), 3)])
def test_any_positive_number_of_classes(num_classes: int | None, expected: int) -> None:
    assert shapes(meta(model_deeplabv3_resnet50, num_classes=num_classes))["classifier.4.bias"] == (expected,)


def test_the_defaults_are_those_of_the_seed() -> None:
    assert shapes(meta(model_deeplabv3_resnet101)) == shapes(
        meta(REFERENCES["resnet101"], weights=None, weights_backbone=None, num_classes=21, aux_loss=False)
    )


@pytest.mark.parametrize("num_classes", [0, -1, 2.5, "21", True])
def test_a_number_of_classes_that_no_model_has_is_refused(num_classes: Any) -> None:  # noqa: ANN401
    with pytest.raises(
        ValueError, match=f"num_classes must be an integer from 1, or None, got {num_classes!r}"
    ) as caught:
        model_deeplabv3_resnet50(num_classes=num_classes)
    assert isinstance(caught.value, deeplabv3.InvalidOptionError)


def test_other_arguments_reach_the_resnet() -> None:
    wide = shapes(meta(model_deeplabv3_resnet50, width_per_group=128))
    reference = shapes(meta(torchvision.models.wide_resnet50_2))
    assert {key: shape for key, shape in reference.items() if not key.startswith("fc.")} == {
        key.removeprefix("backbone."): shape for key, shape in wide.items() if key.startswith("backbone.")
    }
    grouped = shapes(meta(model_deeplabv3_resnet50, groups=32, width_per_group=4))
    assert grouped["backbone.layer1.0.conv2.weight"] == (128, 4, 3, 3)
    normed = meta(model_deeplabv3_resnet50, norm_layer=nn.InstanceNorm2d)
    assert any(isinstance(layer, nn.InstanceNorm2d) for layer in normed.backbone.modules())


@pytest.mark.parametrize(("dilation", "stride"), [(None, 8), ([False, False, True], 16), ([False] * 3, 32)])
def test_dilation_settles_the_output_stride(dilation: list[bool] | None, stride: int) -> None:
    options = {} if dilation is None else {"replace_stride_with_dilation": dilation}
    model = meta(model_deeplabv3_resnet50, **options)
    assert model.backbone(torch.empty(1, 3, 128, 192, device="meta"))["out"].shape[-2:] == (
        128 // stride,
        192 // stride,
    )


def test_an_unknown_argument_is_refused_with_the_known_ones() -> None:
    with pytest.raises(TypeError, match="unknown argument with_per_group; use ") as caught:
        model_deeplabv3_resnet50(with_per_group=128)
    for known in ("num_classes", "aux_loss", "groups", "width_per_group", "replace_stride_with_dilation", "norm_layer"):
        assert known in str(caught.value)
    assert isinstance(caught.value, deeplabv3.UnknownOptionError)


@pytest.mark.parametrize(
    "options",
    [
        {"groups": 0},
        {"width_per_group": "64"},
        {"width_per_group": 0},
        {"replace_stride_with_dilation": [True]},
        {"norm_layer": 5},
    ],
    ids=str,
)
def test_what_the_resnet_cannot_be_made_with_is_named(options: dict[str, Any]) -> None:
    ((name, value),) = options.items()
    named = rf"{name}={re.escape(repr(value))}: |{name} must be an integer from 1, got {re.escape(repr(value))}"
    with pytest.raises(deeplabv3.InvalidOptionError, match=named):
        model_deeplabv3_resnet50(**options)


@dataclass
class Publisher:
    """Serves files over HTTP and remembers what was asked for."""

    folder: Path
    url: str
    asked: list[str]

    def publish(self, weights: WeightsEnum, state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> Path:
        """Make torchvision's weights be these ones, by a file whose name has its hash as torchvision's do."""
        file = self.folder / "weights.pth"
        torch.save(state, file)
        named = file.rename(self.folder / f"{weights.name}-{hashlib.sha256(file.read_bytes()).hexdigest()[:8]}.pth")
        entry = Weights(url=f"{self.url}/{named.name}", transforms=weights.transforms, meta=weights.meta)
        monkeypatch.setattr(weights, "_value_", entry)
        return named


@pytest.fixture
def publisher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Publisher]:
    folder = tmp_path / "published"
    folder.mkdir()
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, code: int | str = "-", size: int | str = "-") -> None:  # noqa: ARG002 - its signature
            asked.append(self.path)

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield Publisher(folder, f"http://127.0.0.1:{server.server_port}", asked)
        server.shutdown()
        thread.join()


FULL = DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """Stands for the published model, which has the auxiliary head."""
    return seeded(REFERENCES["resnet50"], weights=None, weights_backbone=None, num_classes=21, aux_loss=True).eval()


def test_pretrained_downloads_checks_and_loads_all_of_the_weights(
    publisher: Publisher,
    trained: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    file = publisher.publish(FULL, trained.state_dict(), monkeypatch)
    model = model_deeplabv3_resnet50(pretrained=True).eval()
    assert same_state(model, trained)
    out, error = capfd.readouterr()
    assert out == ""
    assert re.search(r"100%\|.*MB/s", error), "a progress bar"
    assert publisher.asked == [f"/{file.name}"]

    # Without the head nothing changes in `out`; the file comes from the cache, so that there is nothing to show.
    plain = model_deeplabv3_resnet50(pretrained=True, aux_loss=False, num_classes=None).eval()
    pixels = torch.randn(1, 3, 64, 80, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        both, out_only = model(pixels), plain(pixels)
    assert list(both) == ["out", "aux"]
    assert list(out_only) == ["out"]
    assert torch.equal(both["out"], out_only["out"])
    assert not [key for key in plain.state_dict() if key.startswith("aux")]
    assert len(publisher.asked) == 1

    # A damaged file in the cache is not taken.
    cached = tmp_path / "cache" / "hub" / "checkpoints" / file.name
    cached.write_bytes(cached.read_bytes()[:-1] + b"x")
    with pytest.raises(deeplabv3.WeightsUnavailableError, match="is damaged"):
        model_deeplabv3_resnet50(pretrained=True)


def test_no_progress_bar_where_none_is_wanted(
    publisher: Publisher, trained: nn.Module, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    publisher.publish(FULL, trained.state_dict(), monkeypatch)
    model_deeplabv3_resnet50(pretrained=True, progress=False)
    out, error = capfd.readouterr()
    assert out == ""
    assert "%" not in error
    assert "Downloading" in error


def test_a_download_with_another_hash_is_refused_and_leaves_nothing(
    publisher: Publisher, trained: nn.Module, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = publisher.publish(FULL, {"a": torch.zeros(3)}, monkeypatch)
    torch.save(trained.state_dict(), file)
    with pytest.raises(deeplabv3.WeightsUnavailableError, match="invalid hash value") as caught:
        model_deeplabv3_resnet50(pretrained=True, progress=False)
    assert isinstance(caught.value, OSError)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("weights", [DeepLabV3_ResNet50_Weights, DeepLabV3_ResNet101_Weights])
def test_pretrained_means_torchvisions_files(weights: Any) -> None:  # noqa: ANN401
    name = {DeepLabV3_ResNet50_Weights: "resnet50", DeepLabV3_ResNet101_Weights: "resnet101"}[weights]
    hashes = {"resnet50": "cd0a2569", "resnet101": "586e9e4e"}
    url = PUBLISHED_WEIGHTS[name].url
    assert url == f"https://download.pytorch.org/models/deeplabv3_{name}_coco-{hashes[name]}.pth"


def test_pretrained_with_another_number_of_classes_names_both_and_downloads_nothing(publisher: Publisher) -> None:
    with pytest.raises(deeplabv3.InvalidOptionError, match=r"num_classes=5 does not fit .* have 21 classes"):
        model_deeplabv3_resnet50(pretrained=True, num_classes=5)
    assert publisher.asked == []


def test_pretrained_weights_that_do_not_fit_another_resnet_are_explained(
    publisher: Publisher, trained: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher.publish(FULL, trained.state_dict(), monkeypatch)
    with pytest.raises(deeplabv3.CheckpointError, match=r"of another shape \(backbone\.layer1\.0\..* instead of"):
        model_deeplabv3_resnet50(pretrained=True, progress=False, width_per_group=128)


def test_a_pretrained_backbone_and_heads_of_its_own(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, trained: nn.Module
) -> None:
    imagenet = seeded(torchvision.models.resnet50, weights=None)
    backbone_file = publisher.publish(ResNet50_Weights.IMAGENET1K_V1, imagenet.state_dict(), monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = seeded(model_deeplabv3_resnet50, pretrained_backbone=True, num_classes=3, progress=False)
    state = model.state_dict()
    assert all(
        torch.equal(state[f"backbone.{key}"], tensor)
        for key, tensor in imagenet.state_dict().items()
        if not key.startswith("fc.")
    )
    assert state["classifier.4.bias"].shape == (3,)
    assert publisher.asked == [f"/{backbone_file.name}"]

    # The whole model's weights win, and the backbone's are not even asked for.
    file = publisher.publish(FULL, trained.state_dict(), monkeypatch)
    publisher.asked.clear()
    with pytest.warns(UserWarning, match="pretrained_backbone is ignored"):
        both = model_deeplabv3_resnet50(pretrained=True, pretrained_backbone=True, progress=False)
    assert same_state(both, trained)
    assert publisher.asked == [f"/{file.name}"]
