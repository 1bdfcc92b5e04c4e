"""`--weights FILE` with files of training scripts, other libraries and failed downloads."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import struct
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel
from torchvision.models import mobilenet_v3_large, resnet18, resnet34, resnet50, resnet101, wide_resnet50_2
from torchvision.models.detection import fasterrcnn_resnet50_fpn
from torchvision.models.segmentation import (
    deeplabv3_mobilenet_v3_large,
    deeplabv3_resnet50,
    deeplabv3_resnet101,
    fcn_resnet50,
    fcn_resnet101,
    lraspp_mobilenet_v3_large,
)

import build_models
from deeplabv3 import CheckpointError, WeightsSource

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.build

State = dict[str, torch.Tensor]
HERE = {"weights": None, "weights_backbone": None}
COUNT = torch.tensor(1)
CLASSIFIERS = (mobilenet_v3_large, resnet18, resnet34, resnet50, resnet101, wide_resnet50_2)


def module_of(make: Callable[..., torch.nn.Module], **options: Any) -> torch.nn.Module:  # noqa: ANN401
    """Make a model whose tensors take no memory."""
    with torch.device("meta"):
        return make(**options)


def small(state: State) -> State:
    """Return a state dict of a model with its tensors replaced by tensors of two values."""
    return {
        key: torch.tensor(3) if key.endswith(("tracked", "averaged")) else torch.full((2,), float(number))
        for number, key in enumerate(state)
    }


@pytest.fixture(scope="module")
def module() -> torch.nn.Module:
    return module_of(deeplabv3_resnet50, **HERE, aux_loss=True)


@pytest.fixture
def state(module: torch.nn.Module) -> State:
    return small(module.state_dict())


def read(checkpoint: object, folder: Path) -> State:
    torch.save(checkpoint, folder / "mine.pth")
    found = WeightsSource.of(str(folder / "mine.pth")).state
    assert found is not None
    return dict(found)


def same(found: State, expected: State) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


def refusal(path: Path) -> str:
    """Return the one line that a build ends with."""
    with pytest.raises(CheckpointError) as caught:
        WeightsSource.of(str(path))
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    assert "; " in message, "a remedy"
    return message


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."),
        *("model.", "net.", "model._orig_mod.", "module.model.", "self.lit.model.", "_fsdp_wrapped_module."),
    ],
)
def test_prefixes_of_wrappers_are_stripped(state: State, prefix: str, tmp_path: Path) -> None:
    assert same(read({f"{prefix}{key}": value for key, value in state.items()}, tmp_path), state)


def test_what_torchs_own_wrappers_make_of_the_keys(module: torch.nn.Module, state: State, tmp_path: Path) -> None:
    compiled: Any = torch.compile(module)
    parts: Any = module_of(deeplabv3_resnet50, **HERE, aux_loss=True)
    parts.backbone = torch.compile(parts.backbone)
    wrappers: list[Any] = [torch.nn.DataParallel(module), compiled, torch.nn.DataParallel(compiled)]
    wrappers += [torch.compile(torch.nn.DataParallel(module)), AveragedModel(module), parts]
    for wrapper in wrappers:
        keys = list(wrapper.state_dict())
        assert keys != list(state)
        values = iter(state.values())
        assert same(read({key: COUNT if key == "n_averaged" else next(values) for key in keys}, tmp_path), state)


@pytest.mark.parametrize("name", ["model", "state_dict", "model_state_dict"])
def test_wrappers_are_opened(state: State, name: str, tmp_path: Path) -> None:
    beside = {"epoch": 3, "optimizer": {"state": {}, "param_groups": []}, "best": 0.7, "classes": ["a", "b"]}
    assert same(read({**beside, name: state}, tmp_path), state)
    assert same(read({"state_dict": {**beside, name: state}}, tmp_path), state)
    assert same(read({"model": {"name": "deeplabv3"}, "state_dict": None, name: state}, tmp_path), state)


def test_a_lightning_module_is_more_than_the_model(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside = {f"model.{key}": value for key, value in state.items()}
    others = {"criterion.weight": torch.ones(3), "val_iou.confmat": torch.zeros(3, 3, dtype=torch.int64)}
    with caplog.at_level("INFO"):
        found = read({"state_dict": inside | others, "pytorch-lightning_version": "2.6.0"}, tmp_path)
    assert same(found, state)
    assert "ignoring keys outside of the model: criterion.weight, val_iou.confmat" in caplog.text


def test_a_head_of_other_classes_is_left_out(state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fine-tuning on new classes often replaces the classifier alone."""
    given = state | {"classifier.4.bias": torch.zeros(3), "aux_classifier.4.bias": torch.zeros(21)}
    with caplog.at_level("INFO"):
        found = read(given, tmp_path)
    assert found.keys() == {key for key in state if not key.startswith("aux_classifier.")}
    assert "ignoring aux_classifier, because it has 21 classes and the classifier has 3" in caplog.text
    (plan,) = build_models.make_plans(
        build_models.parse_arguments(["--weights", str(tmp_path / "mine.pth"), "--model-repository", "models/mine"])
    )
    assert (plan.variant, len(plan.class_names), plan.source.has_auxiliary_head) == ("resnet50", 3, False)


def test_several_models_are_not_mixed(state: State, tmp_path: Path) -> None:
    both = {f"{prefix}.{key}": value for prefix in ("student", "teacher") for key, value in state.items()}
    torch.save(both, tmp_path / "mine.pth")
    assert "holds 2 models, with the prefixes 'student.', 'teacher.'" in refusal(tmp_path / "mine.pth")
    torch.save(state | {f"module.{key}": value for key, value in state.items()}, tmp_path / "mine.pth")
    assert "backbone.conv1.weight twice, with and without a wrapper's prefix" in refusal(tmp_path / "mine.pth")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (deeplabv3_mobilenet_v3_large, "deeplabv3_mobilenet_v3_large"),
        (lraspp_mobilenet_v3_large, "lraspp_mobilenet_v3_large"),
        (fcn_resnet50, "an FCN (fcn_resnet50)"),
        (fcn_resnet101, "an FCN (fcn_resnet101)"),
        (resnet18, "a ResNet-18 without the heads"),
        (resnet34, "a ResNet-34 without the heads"),
        (resnet50, "a ResNet-50 without the heads"),
        (wide_resnet50_2, "a ResNet-50 without the heads"),
        (resnet101, "a ResNet-101 without the heads"),
        (mobilenet_v3_large, "a model other than a DeepLabV3"),
        (fasterrcnn_resnet50_fpn, "a detector of torchvision"),
    ],
)
def test_other_models_are_refused_by_name(make: Callable[..., torch.nn.Module], name: str, tmp_path: Path) -> None:
    options = {"weights": None} if make in CLASSIFIERS else HERE
    state = small(module_of(make, **options).state_dict())
    for prefix in ("", "module.", "model."):
        torch.save({"model": {f"{prefix}{key}": value for key, value in state.items()}}, tmp_path / "other.pth")
        message = refusal(tmp_path / "other.pth")
        assert name in message
        assert message.endswith("; give a checkpoint of torchvision's deeplabv3_resnet50 or deeplabv3_resnet101")


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (["backbone.stem.0.weight", "decode_head.conv_seg.weight"], "MMSegmentation"),
        (["encoder.layer3.0.conv1.weight", "segmentation_head.0.weight"], "segmentation_models_pytorch"),
        ([f"backbone.layer3.{block}.conv1.weight" for block in range(36)], "a model with a ResNet-152"),
        (["backbone.layer3.0.conv2.weight", "backbone.layer3.1.conv2.weight"], "a model with a ResNet-18"),
        (["segformer.encoder.block.0.weight"], "a model other than a DeepLabV3 with a ResNet (keys segformer.enc"),
    ],
)
def test_other_libraries_are_refused_by_name(keys: list[str], name: str, tmp_path: Path) -> None:
    torch.save({key: torch.zeros(1) for key in keys}, tmp_path / "other.pth")
    assert name in refusal(tmp_path / "other.pth")


@pytest.mark.parametrize("make", [deeplabv3_resnet50, deeplabv3_resnet101])
def test_both_variants_are_taken(make: Callable[..., torch.nn.Module], tmp_path: Path) -> None:
    state = small(module_of(make, **HERE).state_dict())
    assert same(read(state, tmp_path), state)
    assert WeightsSource.of(str(tmp_path / "mine.pth")).variant == make.__name__.removeprefix("deeplabv3_")


OPTIMIZER = {"state": {0: {"momentum_buffer": torch.zeros(1)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}


@pytest.mark.parametrize(
    ("checkpoint", "words"),
    [
        ({1: torch.zeros(1)}, "holds no state dict"),
        ({"model": {"a": torch.zeros(1), 2: torch.zeros(1)}}, "holds no state dict"),
        ({}, "holds no state dict, neither at its top level (empty) nor under model, state_dict,"),
        ({"epoch": 3, "lr": 0.1}, "neither at its top level (epoch, lr) nor"),
        ([1, 2], "holds a list, not a state dict"),
        (torch.zeros(3), "holds a Tensor, not a state dict"),
        ({"my_model": {"a": torch.zeros(1)}, "epoch": 3}, "holds a state dict under my_model, but none under model, "),
        (OPTIMIZER, "holds the state of an optimizer (param_groups, state), not of a model"),
        ({"optimizer": OPTIMIZER, "epoch": 3}, "holds the state of an optimizer (epoch, optimizer), not of a model"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "only dense floating-point tensors"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "only dense floating-point tensors"),
        ({"a": torch.zeros(2).to_sparse()}, "only dense floating-point tensors"),
        ({"a": torch.zeros(2, device="meta")}, "only dense floating-point tensors"),
        (torch.nn.DataParallel(torch.nn.Identity()), "a whole model of the class torch.nn.parallel.data_parallel."),
        ({"model": {}, "best": np.float64(0.7)}, "an object of the class numpy."),
        ({"path": os.path.join}, "an object of the class posixpath.join"),
    ],
    ids=range(16),
)
def test_checkpoints_without_a_state_dict_are_explained(checkpoint: object, words: str, tmp_path: Path) -> None:
    for new_format in (True, False):
        if not new_format and isinstance(checkpoint, dict) and "only dense" in words:
            continue
        torch.save(checkpoint, tmp_path / "mine.pth", _use_new_zipfile_serialization=new_format)
        message = refusal(tmp_path / "mine.pth")
        assert words in message
        assert "save" in message


SAFETENSORS = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html>\n<html><head><title>Sign in", "is an HTML page"),
        (b"\xef\xbb\xbf\r\n  <HTML lang='en'>", "is an HTML page"),
        (b"<?xml version='1.0'?><net name='deeplab'>", "is an XML file"),
        (b'{"error": "Repository not found"}', "is JSON text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 168312152\n", "a Git LFS pointer"),
        (b"Not Found", "is a text file"),
        (struct.pack("<Q", len(SAFETENSORS)) + SAFETENSORS + bytes(4), "is a safetensors file"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.12.", "is an ONNX model"),
        (b"\x08\x0a:\x95\x01\n", "is an ONNX model"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "is an HDF5 file"),
        (gzip.compress(b"x", mtime=0), "is a packed archive"),
        (pickle.dumps({"a": 1}), "is a Python pickle"),
        (b"\x80\x02.", "is a Python pickle"),
        (b"\x80\x02X\x02\0\0\0\xff\xfe.", "is a Python pickle"),
        (bytes(5000), "is in an unknown format"),
    ],
    ids=range(16),
)
def test_files_that_are_something_else_are_named(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(data)
    message = refusal(tmp_path / "mine.pth")
    assert words in message
    assert "not a checkpoint of torch.save; " in message


def test_archives_are_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.pth"
    torch.jit.save(torch.jit.script(torch.nn.Identity()), path)
    assert "is a TorchScript archive" in refusal(path)
    torch.jit.save(torch.jit.script(torch.nn.Identity()), path, _extra_files={"build.json": "{}"})
    assert "is a model.pt of build_models.py" in refusal(path)
    exported = torch.export.export(torch.nn.Identity(), (torch.zeros(1),))
    torch.export.save(exported, tmp_path / "mine.pt2")
    assert "is an archive of torch.export" in refusal(tmp_path / "mine.pt2")
    np.savez(tmp_path / "mine.npz", a=np.zeros(3))
    assert "is a NumPy archive" in refusal(tmp_path / "mine.npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights/model_29.pth", b"")
    assert "is a ZIP archive, not a checkpoint of torch.save; unpack it" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", b"")
    assert "is a ZIP archive" in refusal(path)
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "mine.npz", "mine.npz")
    assert "is a packed archive" in refusal(path)


@pytest.mark.parametrize("new_format", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_checkpoint_is_reported(state: State, new_format: bool, share: float, tmp_path: Path) -> None:  # noqa: FBT001
    path = tmp_path / "mine.pth"
    torch.save(state, path, _use_new_zipfile_serialization=new_format)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    message = refusal(path)
    assert "truncated" in message
    assert "copy or download it again" in message
