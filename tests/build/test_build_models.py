"""The files that build_models.py writes into a repository, and those that it does not change."""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from eager_models import eager
from torch.nn import functional
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights, DeepLabV3_ResNet101_Weights
from torchvision.transforms.v2 import functional as transforms

import build_models
from deeplabv3 import BuildError, CheckpointError, InvalidOptionError, WeightsSource, model_deeplabv3_resnet50
from deeplabv3.building import assembly, steps, tracing
from deeplabv3.building.assembly import build
from deeplabv3.building.plan import Plan
from deeplabv3.building.staging import locked
from deeplabv3.errors import RepositoryError
from deeplabv3.models.names import VARIANTS
from deeplabv3.models.variants import load_model
from deeplabv3.repository.config import parse_config
from deeplabv3.repository.record import read_record

if TYPE_CHECKING:
    from collections.abc import Callable

    from torchvision.models.segmentation import DeepLabV3

pytestmark = pytest.mark.build

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = ROOT / "model_repository"
# With a sixteenth of the channels of its blocks, where the network does not matter.
SMALL_50 = Plan("resnet50", WeightsSource("none"), resnet_options={"width_per_group": 4})


def run(repository: Path, *options: str) -> int:
    return build_models.main(["--model-repository", str(repository), *options])


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("variant", ["resnet50", "resnet101"])
def test_the_saved_file_computes_what_eager_torchvision_does(model_repository: Path, variant: str) -> None:
    model = eager(variant)
    core, direct = (
        torch.jit.load(str(model_repository / f"{kind}_{variant}" / "1" / "model.pt")) for kind in ("core", "deeplabv3")
    )
    for seed, (count, height, width) in enumerate([(1, 200, 264), (2, 133, 97)]):
        generator = torch.Generator().manual_seed(seed)
        samples = torch.randint(0, 256, (count, height, width, 3), generator=generator).to(torch.uint8)
        ids = torch.tensor([[7 + number] for number in range(count)])
        pixels = transforms.normalize(samples.permute(0, 3, 1, 2) / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        with torch.inference_mode():
            expected = model(pixels)["out"]
            logits, returned = core(samples, ids)
            (out,) = direct(pixels)
        # 1e-4 for logits of order 1; the untrained ResNet-101's are of order 1000.
        tolerance = 1e-4 * max(1.0, float(expected.abs().max()))
        assert out.dtype == logits.dtype == torch.float32
        assert out.is_contiguous()
        assert float((out - expected).abs().max()) <= tolerance
        assert torch.equal(returned, ids)
        assert logits.shape[-2:] == (-(-height // 8), -(-width // 8))
        upsampled = functional.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
        assert float((upsampled - expected).abs().max()) <= tolerance


def test_committed_configs_are_those_of_the_default_options(tmp_path: Path) -> None:
    build(
        tmp_path, [Plan(variant, WeightsSource("COCO_WITH_VOC_LABELS_V1")) for variant in VARIANTS], configs_only=True
    )
    committed = {name: content for name, content in files(COMMITTED).items() if not name.startswith("README")}
    built = {name: content for name, content in files(tmp_path).items() if name != "repository.json"}
    unbuilt = {name for name in committed.keys() - built.keys() if "__pycache__" not in name}
    assert {Path(name).name for name in unbuilt} <= {"model.pt"}
    for name, content in built.items():
        if name.split("/")[0] in ("preprocess", "postprocess", "encode_mask", "confidence") and name.endswith(
            "config.pbtxt"
        ):
            assert parse_config(content.decode()) == parse_config(committed[name].decode()), name
        else:
            assert content == committed[name], f"{name}: run build_models.py --configs-only"


def test_a_build_into_the_checkout_changes_no_file_that_git_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even an edited file, because it is source code."""
    source = tmp_path / "model_repository"
    shutil.copytree(COMMITTED, source, ignore=shutil.ignore_patterns("model.pt", "__pycache__"))
    for name in ("preprocess", "core_resnet50"):
        config = source / name / "config.pbtxt"
        config.write_text(config.read_text().replace('"520"', '"512"').replace("count: 1", "count: 2"))
    before = files(source)
    monkeypatch.setattr(steps, "MODEL_REPOSITORY", source)

    def write_models(partials: dict[str, Path], plan: Plan, *, progress: bool, **_: object) -> None:
        for name in plan.models:
            partials[name].write_bytes(f"{name} {progress}".encode())

    monkeypatch.setattr(assembly, "write_models", write_models)
    build(source, [Plan(variant, WeightsSource("COCO_WITH_VOC_LABELS_V1")) for variant in VARIANTS])
    added = {f"{kind}_{variant}/1/model.pt" for kind in ("core", "deeplabv3") for variant in VARIANTS}
    after = files(source)
    assert after.keys() - before.keys() == added
    assert {name: after[name] for name in before} == before


@pytest.mark.parametrize("weights", [DeepLabV3_ResNet50_Weights, DeepLabV3_ResNet101_Weights])
def test_class_names_are_those_of_the_weights(weights: type) -> None:
    labels = (COMMITTED / "postprocess" / "labels.txt").read_text().splitlines()
    assert labels == weights.COCO_WITH_VOC_LABELS_V1.meta["categories"]


def test_a_second_build_finds_everything_up_to_date_and_changes_nothing(model_repository: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in model_repository.rglob("model.pt")}
    assert len(before) == 4
    command = [sys.executable, "build_models.py", "--weights", "none", "--model-repository", str(model_repository)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0
    assert done.stderr.count("up to date (weights none)") == 2
    assert done.stdout == ""
    assert {path: path.stat().st_mtime_ns for path in model_repository.rglob("model.pt")} == before


@pytest.mark.parametrize(
    ("drop", "add", "message"),
    [
        ("classifier.4.weight", {}, r"1 missing \(classifier.4.weight\)"),
        ("", {"extra": torch.zeros(1)}, r"1 unexpected \(extra\)"),
        (
            "",
            {"classifier.2.bias": torch.zeros(5)},
            r"1 of another shape \(classifier.2.bias \(5,\) instead of \(256,\)\)",
        ),
    ],
    ids=["missing", "unexpected", "misshapen"],
)
def test_a_checkpoint_that_does_not_fit_is_explained(
    tmp_path: Path, drop: str, add: dict[str, torch.Tensor], message: str
) -> None:
    state = {key: value for key, value in eager("resnet50").state_dict().items() if key != drop} | add
    torch.save(state, tmp_path / "mine.pth")
    with pytest.raises(CheckpointError, match=message):
        load_model("resnet50", WeightsSource.of(str(tmp_path / "mine.pth")), num_classes=21)


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "noise.pth").write_bytes(b"no checkpoint at all")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, message in {
        "noise.pth": "is a text file, not a checkpoint of torch.save",
        "list.pth": "holds a list, not a state dict",
        "absent.pth": "No such file",
    }.items():
        assert run(tmp_path / "repository", "--weights", str(tmp_path / name)) == build_models.EXIT_FAILED
        assert message in caplog.messages[-1]
        assert not list((tmp_path / "repository").rglob("*model.pt*"))


def test_a_checkpoint_of_the_reference_training_loads_whatever_its_counters(tmp_path: Path) -> None:
    """torchvision's references/segmentation/train.py saves its command line too; counters are for training alone."""
    model = eager("resnet50")
    state = dict(model.state_dict())
    counters = [key for key in state if key.endswith("num_batches_tracked")]
    state.pop(counters[0])
    state[counters[1]] = torch.zeros(3, dtype=torch.int64)
    checkpoint = {"model": state, "optimizer": {"state": {}}, "epoch": 3, "args": argparse.Namespace(lr=0.02, aux=True)}
    torch.save(checkpoint, tmp_path / "model_29.pth")
    loaded = load_model("resnet50", WeightsSource.of(str(tmp_path / "model_29.pth")))
    expected = {key: tensor for key, tensor in model.state_dict().items() if key not in counters}
    assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in expected.items())
    with pytest.raises(InvalidOptionError, match=r"are for resnet50, not for resnet101"):
        load_model("resnet101", WeightsSource.of(str(tmp_path / "model_29.pth")))


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    for path in (tmp_path / "pipe.pth", tmp_path):
        with pytest.raises(CheckpointError, match="not a regular file"):
            WeightsSource.of(str(path))


def test_non_finite_weights_are_distinguished_from_a_bad_trace(tmp_path: Path) -> None:
    state = {
        key: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor
        for key, tensor in model_deeplabv3_resnet50(width_per_group=4).state_dict().items()
    }
    torch.save(state, tmp_path / "nan.pth")
    plan = Plan("resnet50", WeightsSource.of(str(tmp_path / "nan.pth")), resnet_options={"width_per_group": 4})
    with pytest.raises(BuildError, match="not finite in PyTorch either: the weights are broken"):
        build(tmp_path / "models", [plan], force=False, progress=False)


def test_a_file_name_that_is_not_utf8_makes_a_label(tmp_path: Path) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.pth")
    torch.save({f"backbone.layer3.{block}.conv1.weight": torch.zeros(1) for block in range(6)}, path)
    assert WeightsSource.of(path).label.startswith("bad?.pth@sha256:")


def test_a_damaged_model_is_not_up_to_date(model_repository: Path, tmp_path: Path) -> None:
    source = model_repository / "core_resnet50" / "1" / "model.pt"
    assert read_record(source) is not None
    damaged = tmp_path / "model.pt"
    shutil.copy(source, damaged)
    with damaged.open("r+b") as file:
        file.seek(80_000_000)
        file.write(bytes(range(256)))
    with pytest.raises(RepositoryError, match=f"{damaged} is damaged in "):
        read_record(damaged)


def test_a_full_disk_is_reported_before_torch_aborts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)

    def nearly_full(_path: Path) -> object:
        return usage._replace(free=60_000_000)

    monkeypatch.setattr(shutil, "disk_usage", nearly_full)
    with pytest.raises(BuildError, match="has 60 MB of free space, but 2 models need up to 520 MB"):
        build(tmp_path, [SMALL_50], force=False, progress=False)
    assert not list(tmp_path.rglob("*model.pt*"))


def test_what_is_broken_in_a_repository_is_written_again(tmp_path: Path) -> None:
    build(tmp_path, [SMALL_50], configs_only=True)
    fresh = files(tmp_path)
    (tmp_path / "preprocess" / "1" / "image_ops.py").write_text("old code")
    (tmp_path / "postprocess" / "labels.txt").write_text("mine\n")
    (tmp_path / "postprocess" / "config.pbtxt").write_text("")  # a disk was full
    (tmp_path / "encode_mask" / "config.pbtxt").unlink()
    build(tmp_path, [SMALL_50], configs_only=True)
    assert files(tmp_path) == fresh


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Malicious:
        def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": Malicious()}, tmp_path / "evil.pth")
    assert run(tmp_path / "repository", "--weights", str(tmp_path / "evil.pth")) == build_models.EXIT_FAILED
    assert not (tmp_path / "ran").exists()


def test_a_download_that_fails_names_the_ways_on_and_leaves_nothing(tmp_path: Path) -> None:
    offline = {"https_proxy": "http://127.0.0.1:9", "TORCH_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "build_models.py", "--model-repository", str(tmp_path / "repository")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | offline, capture_output=True, text=True, check=False)
    assert done.returncode == build_models.EXIT_WEIGHTS_UNAVAILABLE
    assert "Traceback" not in done.stderr
    error = done.stderr.splitlines()[-1]
    assert str(tmp_path / "cache" / "hub" / "checkpoints") in error
    assert "--weights FILE" in error
    assert "--weights none" in error
    assert "--model-repository" not in error, "the folder that was given is as good as another"
    assert not list((tmp_path / "repository").rglob("*model.pt*"))
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_damaged_file_in_the_cache_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cached = tmp_path / "cache" / "hub" / "checkpoints" / "deeplabv3_resnet50_coco-cd0a2569.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"half a file")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    assert run(tmp_path / "repository") == build_models.EXIT_WEIGHTS_UNAVAILABLE
    assert f"{cached} is damaged" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_the_model_that_was_there(tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "core_resnet50" / "1").mkdir(parents=True)
    (tmp_path / "core_resnet50" / "1" / "model.pt").write_bytes(b"the model that is served")
    before = files(tmp_path / "core_resnet50")
    command = ["build_models.py", "--weights", "none", "--variant", "resnet50"]
    builder = subprocess.Popen(
        [sys.executable, *command, "--model-repository", str(tmp_path)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
    )
    partial = tmp_path / "core_resnet50" / "1" / ".model.pt.partial"
    deadline = time.monotonic() + 200
    while not partial.exists():
        assert builder.poll() is None, builder.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    builder.send_signal(number)
    builder.communicate(timeout=60)
    assert builder.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    after = files(tmp_path / "core_resnet50")
    if number == signal.SIGKILL:  # Nobody could clean up; the next build does.
        after.pop("1/.model.pt.partial", None)
    assert after == before


def test_a_second_build_in_the_same_repository_at_the_same_time_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with locked(tmp_path):
        for options in (["--variant", "resnet50"], ["--configs-only"]):
            assert run(tmp_path, "--weights", "none", *options) == build_models.EXIT_TRY_AGAIN
            assert f"another build is writing to {tmp_path}" in caplog.messages[-1]
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_computes_something_else_never_gets_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Wrong(tracing.Tracer):
        def __init__(self, model: DeepLabV3, **options: Any) -> None:  # noqa: ANN401 - Tracer's own
            model = copy.deepcopy(model)
            with torch.no_grad():
                dict(model.classifier.named_parameters())["4.bias"].add_(0.01)
            super().__init__(model, **options)

    monkeypatch.setattr(tracing, "Tracer", Wrong)
    with pytest.raises(BuildError, match=r"LOGITS of the saved file differs from PyTorch by 1\.00e-02"):
        build(tmp_path, [SMALL_50], force=False, progress=False)
    assert not list(tmp_path.rglob("*model.pt*"))


def test_the_record_travels_inside_the_model(model_repository: Path) -> None:
    file = model_repository / "core_resnet50" / "1" / "model.pt"
    extra = {"build.json": ""}
    torch.jit.load(str(file), _extra_files=extra)
    record = json.loads(extra["build.json"])
    assert record["weights"] == "none"
    assert record["torch"] == torch.__version__
