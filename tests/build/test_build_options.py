"""The options of build_models.py beyond the defaults: weights, classes, the ResNet, and the published figures."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
import torch

import build_models
from build_models import make_plans, parse_arguments
from deeplabv3 import VARIANTS, BuildError, InvalidOptionError, WeightsSource, model_deeplabv3_resnet50
from deeplabv3.building import assembly, steps
from deeplabv3.building.assembly import build
from deeplabv3.building.model_file import record_of
from deeplabv3.building.plan import Plan
from deeplabv3.building.published import describe
from deeplabv3.building.steps import MODEL_REPOSITORY
from deeplabv3.repository.config import read_config
from deeplabv3.repository.record import read_record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

pytestmark = pytest.mark.build

VOC = (
    *("__background__", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# A small and quick model: an eighth of the channels, two groups, output stride 16.
SMALL: dict[str, Any] = {"groups": 2, "width_per_group": 4, "replace_stride_with_dilation": [False, False, True]}
SMALL_OPTIONS = [
    *("--groups", "2", "--width-per-group", "4"),
    *("--replace-stride-with-dilation", "false", "false", "true"),
]


def plans(*arguments: str) -> list[Plan]:
    return make_plans(parse_arguments([*arguments, "--model-repository", "models/mine"]))


def parsed(path: Path) -> Any:  # noqa: ANN401 - a protobuf message
    return read_config(path)


def blocks(count: int) -> dict[str, torch.Tensor]:
    """Return a part of a checkpoint: the third stage of a ResNet."""
    return {f"backbone.layer3.{block}.conv1.weight": torch.zeros(1) for block in range(count)}


def test_the_options_of_the_r_package_select_the_weights() -> None:
    assert {plan.source.label for plan in plans()} == {"COCO_WITH_VOC_LABELS_V1"}
    assert plans("--pretrained") == plans()
    assert plans("--no-pretrained") == plans("--weights", "none")
    assert [plan.variant for plan in plans("--no-pretrained")] == ["resnet50", "resnet101"]
    assert [plan.pretrained_backbone for plan in plans("--no-pretrained", "--pretrained-backbone")] == [True, True]
    assert [plan.aux for plan in plans("--aux-loss")] == [True, True]
    assert [plan.aux for plan in plans("--no-aux-loss")] == [False, False]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--pretrained", "--weights", "none"], "not allowed with"),
        (["--width_per_group", "64"], "unrecognized arguments"),
        (["--json"], "--json works only with --describe"),
        (["--describe", "--num-classes", "3"], "takes only --variant and --json"),
        (["--replace-stride-with-dilation", "1", "0", "0"], "must be true or false, got '1'"),
        (["--set", "preprocess.resize_mode"], "must be MODEL.PARAMETER=VALUE, such as "),
        (
            ["--set", "core_resnet50.instances=3"],
            "must be one of preprocess, postprocess, encode_mask, confidence, got 'core_resnet50'; for a core ",
        ),
        (["--model-repository", ""], "must be the path of a folder, got ''"),
        (["--set", "preprocess.size=3"], "preprocess has no setting 'size'; use one of resize_mode, "),
        (["--set", "preprocess.resize_mode=oval"], "must be 'fixed' or 'shorter_side', got 'oval'"),
        (["--set", "preprocess.resize_size=1024x"], "must be an integer from 1 to 65535, or WIDTHxHEIGHT such"),
        (["--set", "preprocess.std=0.2, 0.2, 0.2"], "because the core models normalize; use --std 0.2, 0.2, 0.2"),
        (["--std", "0.2,0.2,1e-30"], "must be three numbers R,G,B from 0.001 to 1, got "),
        (["--mean", "0.2,0.2"], "must be three numbers R,G,B from 0 to 1, got "),
        (["--mean", "nan,0,0"], "must be three numbers R,G,B from 0 to 1, got "),
        (["--mean", "123.7,116.3,103.5"], "must be three numbers R,G,B from 0 to 1, got '123.7,116.3,103.5'; divide "),
        (["--std", "58.4,57.1,57.4"], "divide values from 0 to 255 by 255"),
        (["--no-background"], "whose class 0 is the background; leave it out"),
        (["--set", "confidence.max_pixels=9"], "confidence has no setting 'max_pixels'; use one of instances, "),
        (["--no-direct", "--aux-loss"], "leave out --no-direct"),
        (["--set", "postprocess.max_batch_size=4"], "must be an integer from 8 to 128, got '4'"),
        (["--set", "encode_mask.instances=many"], "must be an integer from 1 to 128, got 'many'"),
    ],
)
def test_contradictions_are_refused_in_two_lines(
    arguments: Sequence[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_arguments(arguments)
    error, hint = capsys.readouterr().err.splitlines()
    assert message in error
    assert hint.endswith(" --help lists the options")


@pytest.mark.parametrize(
    "options",
    [
        ["--weights", "none"],
        ["--device", "cuda"],
        ["--precision", "bf16"],
        ["--num-classes", "3"],
        ["--classes", "names.txt"],
        ["--aux-loss"],
        ["--set", "preprocess.resize_mode=shorter_side"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("named", [[], ["--model-repository", str(MODEL_REPOSITORY / ".." / "model_repository")]])
def test_the_source_takes_the_default_build_only(
    options: list[str], named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse_arguments([*options, *named])
    error = capsys.readouterr().err
    assert f"error: {options[0]}: not possible in model_repository/, whose files are source" in " ".join(error.split())
    assert parse_arguments([*options, "--model-repository", "models/mine"])


@pytest.mark.parametrize("options", [["--variant", "resnet50"], ["--precision", "fp32"], ["--num-classes", "21"]])
def test_the_default_build_may_be_spelled_out(options: list[str]) -> None:
    assert parse_arguments([*options, "--force", "--no-progress"]).model_repository == MODEL_REPOSITORY


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("link", ["", "preprocess", "core_resnet50", "deeplabv3_resnet50"])
def test_no_file_is_changed_in_the_source_by_another_path(
    link: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, direct: bool
) -> None:
    source = tmp_path / "source"
    shutil.copytree(MODEL_REPOSITORY, source, ignore=shutil.ignore_patterns("model.pt", "__pycache__"))
    monkeypatch.setattr(steps, "MODEL_REPOSITORY", source)
    before = sorted(source.rglob("*"))
    repository = tmp_path / "mine" if link else source / "mine"
    if link:
        repository.mkdir()
        (repository / link).symlink_to(source / link)
    with pytest.raises(
        BuildError,
        match=rf"{link or 'mine'} is inside .*source, whose files are source and must not change; build into a folder",
    ):
        build(repository, [Plan("resnet50", WeightsSource("none"), direct=direct)], configs_only=True)
    assert sorted(source.rglob("*")) == before


def test_a_build_reports_the_files_and_settings_that_it_wrote(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = Plan("resnet50", WeightsSource("none"))
    setting = {"preprocess.resize_mode": "shorter_side"}
    with caplog.at_level("INFO"):
        build(tmp_path, [plan], configs_only=True)
        build(tmp_path, [plan], configs_only=True, settings=setting)
        build(tmp_path, [plan], configs_only=True)
    first, second, third = caplog.messages
    assert re.fullmatch(rf"{tmp_path}: wrote \d+ files", first)
    assert second == f"{tmp_path}: wrote preprocess/config.pbtxt, with --set preprocess.resize_mode=shorter_side"
    assert third == f"{tmp_path}: the config files are up to date, with --set preprocess.resize_mode=shorter_side"


def test_a_width_and_a_height_need_a_fixed_size(tmp_path: Path) -> None:
    plan, size = Plan("resnet50", WeightsSource("none")), {"preprocess.resize_size": "1024x512"}
    build(tmp_path, [plan], configs_only=True, settings=size)
    config = (tmp_path / "preprocess/config.pbtxt").read_text()
    assert '"1024x512"' in config
    with pytest.raises(InvalidOptionError, match="1024x512 is a width and a height, but"):
        build(tmp_path, [plan], configs_only=True, settings={"preprocess.resize_mode": "shorter_side"})
    assert (tmp_path / "preprocess/config.pbtxt").read_text() == config


def test_classes_have_the_names_of_voc_or_numbers() -> None:
    assert plans("--weights", "none")[0].class_names == VOC
    assert plans("--weights", "none", "--num-classes", "3")[0].class_names == ("__background__", "class_1", "class_2")
    assert plans("--num-classes", "21") == plans()


def test_class_zero_may_be_no_background(tmp_path: Path) -> None:
    def stated() -> dict[str, str]:
        return {
            path.parent.name: parsed(path).parameters["background"].string_value
            for path in tmp_path.glob("segment_*/config.pbtxt")
        }

    roads = ["--weights", "none", "--num-classes", "21", "--no-background"]
    assert plans(*roads)[0].class_names == tuple(f"class_{number}" for number in range(21))
    first, second = plans(*roads)
    other = fake_model(tmp_path, second)
    (other.parents[1] / "config.pbtxt").touch()
    assert read_record(other) != record_of(plans("--weights", "none")[1])
    build(tmp_path, [first], configs_only=True)  # the other keeps what its record says
    assert stated() == {"segment_resnet50": "false", "segment_resnet101": "false"}
    assert (
        parsed(MODEL_REPOSITORY / "segment_resnet50" / "config.pbtxt").parameters["background"].string_value == "true"
    )


def test_names_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "names.txt"
    for text in ("sky\ncafé au lait\nsea\n", "sky\r\ncafé au lait \r\nsea", "\ufeffsky\ncafé au lait\nsea\n\n"):
        file.write_bytes(text.encode())
        plan = plans("--weights", "none", "--classes", str(file))[0]
        assert plan.class_names == ("sky", "café au lait", "sea")


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("sky\nsea\n", ["--weights", "none", "--num-classes", "3"], "has 2 names, but the model has 3 classes"),
        ("sky\nsea\n", [], "has 2 names, but the model has 21 classes"),
        ("sky\n\nsea\n", ["--weights", "none"], "line 2 is empty"),
        ("sky\nsea\nsky\n", ["--weights", "none"], "line 3 repeats 'sky' of line 1"),
        ("\n".join(map(str, range(257))), ["--weights", "none"], "257 classes, but at most 256 can be served"),
        ("\n", ["--weights", "none"], "the file has no names"),
        ("sky\n\x1b[2Jsea\n", ["--weights", "none"], "line 2 has characters that cannot be printed: '.x1b"),
        ("sky\nse\u2028a\n", ["--weights", "none"], "line 2 has characters that cannot be printed: 'se.u2028a'"),
        (b"\xff\xfe\x00", ["--weights", "none"], "not UTF-8 text"),
        (None, ["--weights", "none"], "No such file"),
    ],
)
def test_names_that_do_not_fit_are_explained(
    tmp_path: Path, text: str | bytes | None, arguments: list[str], message: str
) -> None:
    file = tmp_path / "names.txt"
    if text is not None:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((BuildError, InvalidOptionError), match=message):
        plans(*arguments, "--classes", str(file))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "none", "--num-classes", "257"], "the model has 257 classes.*at most 256 can be served"),
        (["--weights", "none", "--num-classes", "0"], "num_classes must be an integer from 1"),
        (["--num-classes", "5"], "num_classes=5 does not fit.* 21 classes"),
    ],
)
def test_numbers_of_classes_that_cannot_be_served_are_refused_before_anything_is_built(
    tmp_path: Path, arguments: list[str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        assert build_models.main([*arguments, "--model-repository", str(tmp_path / "models")]) == 1
    assert len(caplog.records) == 1
    assert re.search(message, caplog.text)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(("count", "variant"), [(6, "resnet50"), (23, "resnet101"), (4, None), (0, None)])
def test_the_variant_is_recognized_from_a_checkpoint(count: int, variant: str | None) -> None:
    assert WeightsSource("mine", blocks(count)).variant == variant


def test_a_checkpoint_settles_variant_and_classes(tmp_path: Path) -> None:
    torch.save(blocks(23) | {"classifier.4.bias": torch.zeros(3)}, tmp_path / "mine.pth")
    (plan,) = plans("--weights", str(tmp_path / "mine.pth"))
    assert plan.variant == "resnet101"
    assert len(plan.class_names) == 3
    with pytest.raises(InvalidOptionError, match=r"num_classes=4 does not fit the weights mine\.pth.* have 3 classes"):
        plans("--weights", str(tmp_path / "mine.pth"), "--num-classes", "4")


def test_the_resnets_options_and_the_head_reach_the_served_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(2)
    model = model_deeplabv3_resnet50(num_classes=3, aux_loss=True, **SMALL).eval()
    torch.save({"model": model.state_dict()}, tmp_path / "mine.pth")
    repository = tmp_path / "models"
    arguments = ["--weights", str(tmp_path / "mine.pth"), "--aux-loss", "--pretrained-backbone", *SMALL_OPTIONS]
    with caplog.at_level("INFO"):
        assert build_models.main([*arguments, "--model-repository", str(repository)]) == 0, caplog.text
    assert "warning: pretrained_backbone is ignored" in caplog.text
    pixels = torch.randn(2, 3, 96, 130, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        expected = model(pixels)
        out, aux = torch.jit.load(str(repository / "deeplabv3_resnet50" / "1" / "model.pt"))(pixels)
        samples, ids = torch.zeros(2, 96, 130, 3, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.int64)
        logits, _ = torch.jit.load(str(repository / "core_resnet50" / "1" / "model.pt"))(samples, ids)
    assert logits.shape == (2, 3, 6, 9)
    for served, wanted in ((out, expected["out"]), (aux, expected["aux"])):
        assert float((served - wanted).abs().max()) <= 1e-4 * max(1.0, float(wanted.abs().max()))
    for name in ("core_resnet50", "deeplabv3_resnet50", "segment_resnet50"):
        config = (repository / name / "config.pbtxt").read_text()
        assert "mine.pth@sha256:" in config
        assert ('"aux"' in config) == (name == "deeplabv3_resnet50")
    for name in ("core_resnet50", "deeplabv3_resnet50", "segment_resnet50", "postprocess"):
        dims = [tensor.dims[0] for tensor in parsed(repository / name / "config.pbtxt").output]
        assert set(dims) <= {3, -1, 1}
        assert 3 in dims
    assert (repository / "postprocess" / "labels.txt").read_text() == "__background__\nclass_1\nclass_2\n"
    assert not (repository / "deeplabv3_resnet101").exists()
    # The same again is up to date, and with another ResNet it is not the same model.
    again, other = (plans(*chosen)[0] for chosen in (arguments, [*arguments[:-3], "false", "true", "true"]))
    assert read_record(repository / "deeplabv3_resnet50" / "1" / "model.pt") == record_of(again)
    assert record_of(other) != record_of(again)


def test_settings_survive_another_number_of_classes(tmp_path: Path) -> None:
    path = tmp_path / "postprocess" / "config.pbtxt"
    source = WeightsSource("none")
    build(tmp_path, [Plan("resnet50", source)], configs_only=True, settings={"postprocess.max_pixels": "1234"})
    before = parsed(path)
    build(tmp_path, [Plan("resnet50", source, ("sky", "sea"))], configs_only=True)
    changed = parsed(path)
    assert changed.parameters["max_pixels"].string_value == "1234"
    assert json.loads(changed.parameters["class_names"].string_value) == ["sky", "sea"]
    confidence = parsed(tmp_path / "confidence" / "config.pbtxt")
    assert confidence.parameters["max_pixels"].string_value == "1234"
    assert confidence.input[0].dims == [2, -1, -1]
    assert changed.input[0].dims == [2, -1, -1]
    assert changed.model_warmup[0].inputs["LOGITS"].dims == [2, 65, 65]
    build(tmp_path, [Plan("resnet50", source)], configs_only=True)
    assert parsed(path) == before


def fake_model(repository: Path, plan: Plan) -> Path:
    """Write files with a build's record and nothing else in them; return the core model's."""
    for model in plan.models:
        file = repository / model / "1" / "model.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(file, "w") as archive:
            for name, text in record_of(plan).as_extra_files().items():
                archive.writestr(f"model/extra/{name}", text)
    return repository / plan.core / "1" / "model.pt"


def test_models_for_direct_callers_can_be_left_out_and_come_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_small = ["--variant", "resnet50", "--weights", "none", *SMALL_OPTIONS, "--model-repository", str(tmp_path)]
    direct, core = tmp_path / "deeplabv3_resnet50", tmp_path / "core_resnet50" / "1" / "model.pt"
    assert build_models.main(build_small) == 0
    assert (direct / "1" / "model.pt").exists()
    built = core.stat().st_mtime_ns
    config = direct / "config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 3"))
    assert build_models.main([*build_small, "--no-direct"]) == 1
    assert f"{config}: edited by hand" in caplog.text
    assert (direct / "1" / "model.pt").exists()
    config.write_text(config.read_text().replace("count: 3", "count: 1"))
    assert build_models.main([*build_small, "--no-direct"]) == 0
    assert not direct.exists()
    assert core.stat().st_mtime_ns == built  # it is the same model
    assert build_models.main(build_small) == 0
    assert (direct / "1" / "model.pt").exists()


@pytest.mark.parametrize("foreign", ["notes.txt", "2/model.pt", "config.pbtxt"])
def test_what_no_build_has_made_is_not_removed(foreign: str, tmp_path: Path) -> None:
    plan = Plan("resnet50", WeightsSource("none"), direct=False)
    build(tmp_path, [Plan("resnet50", plan.source, direct=foreign != "config.pbtxt")], configs_only=True)
    file = tmp_path / "deeplabv3_resnet50" / foreign
    file.parent.mkdir(exist_ok=True)
    file.write_text('name: "mine"')
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(BuildError, match=r"would remove \S*deeplabv3_resnet50, but|edited by hand"):
        build(tmp_path, [plan], configs_only=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_model_of_an_older_version_beside_those_to_build_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its ensemble connects tensors that no step has now."""
    fake_model(tmp_path, Plan("resnet101", WeightsSource("none"))).unlink()
    command = ["--variant", "resnet50", "--weights", "none", "--model-repository", str(tmp_path)]
    assert build_models.main(command) == 1
    older = tmp_path / "deeplabv3_resnet101"
    assert f"{older}/1/model.pt exists without {tmp_path}/core_resnet101/1/model.pt" in caplog.text
    assert f"build both variants, or remove {older} and {tmp_path}/segment_resnet101" in caplog.text


def test_pixels_are_normalized_as_the_weights_were_trained(tmp_path: Path) -> None:
    own = ["--mean", "0.5,0.4,0.3", "--std", "0.5,0.25,1"]
    command = ["--variant", "resnet50", "--weights", "none", *SMALL_OPTIONS, *own, "--model-repository", str(tmp_path)]
    assert build_models.main(command) == 0
    core, direct = (
        torch.jit.load(str(tmp_path / name / "1" / "model.pt")) for name in ("core_resnet50", "deeplabv3_resnet50")
    )
    generator = torch.Generator().manual_seed(1)
    samples = torch.randint(0, 256, (1, 64, 64, 3), generator=generator).to(torch.uint8)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.5, 0.25, 1.0])
    with torch.inference_mode():
        logits = core(samples, torch.zeros(1, 1, dtype=torch.int64))[0]
        (out,) = direct(((samples / 255 - mean) / std).permute(0, 3, 1, 2))
    upsampled = torch.nn.functional.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(upsampled, out, rtol=0, atol=1e-4 * max(1.0, float(out.abs().max())))


def test_a_repository_has_one_list_of_classes(tmp_path: Path) -> None:
    other = fake_model(tmp_path, Plan("resnet101", WeightsSource("none")))
    custom = Plan("resnet50", WeightsSource("none"), ("sky", "sea"))
    with pytest.raises(
        BuildError, match=r"resnet101/1/model\.pt serves other classes \(__background__, aero.*build both"
    ):
        build(tmp_path, [custom], force=False, progress=False)
    other.write_bytes(b"damaged, or of an older version")
    with pytest.raises(BuildError, match=r"resnet101/1/model\.pt serves unknown classes.*build both"):
        build(tmp_path, [custom], force=False, progress=False)
    assert not (tmp_path / "postprocess").exists()


def test_where_one_of_two_models_fails_neither_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("sky", "sea")
    both = [Plan(variant, WeightsSource("none"), names) for variant in ("resnet50", "resnet101")]
    before = [fake_model(tmp_path, Plan(plan.variant, plan.source)).read_bytes() for plan in both]
    shutil.copytree(MODEL_REPOSITORY / "postprocess", tmp_path / "postprocess")

    def fail_at_the_second(partials: dict[str, Path], plan: Plan, *, progress: bool, **_: object) -> None:
        partials[plan.core].write_bytes(b"new")
        if plan.variant == "resnet101":
            raise BuildError(f"no {plan.variant} today, progress {progress}")

    monkeypatch.setattr(assembly, "write_models", fail_at_the_second)
    with pytest.raises(BuildError, match="today"):
        build(tmp_path / "new", both, force=False, progress=False)
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(BuildError, match="today"):
        build(tmp_path, both, force=False, progress=False)
    assert [(tmp_path / plan.core / "1" / "model.pt").read_bytes() for plan in both] == before
    assert not list(tmp_path.rglob("*.partial"))
    assert (tmp_path / "postprocess" / "labels.txt").read_text().split("\n")[:2] == ["__background__", "aeroplane"]


@pytest.fixture(scope="module")
def all_figures() -> dict[str, Any]:
    """Both variants' figures: four models are traced for them."""
    return describe(VARIANTS)


@pytest.fixture
def described_before(all_figures: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def found(variants: Sequence[str]) -> dict[str, Any]:
        return {variant: all_figures[variant] for variant in variants}

    monkeypatch.setattr(build_models, "describe", found)


@pytest.mark.usefixtures("described_before")
def test_the_figures_are_those_that_are_published(capsys: pytest.CaptureFixture[str]) -> None:
    assert build_models.main(["--describe", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert list(described) == ["resnet50", "resnet101"]
    # parameters, GFLOPS, MB of the checkpoint, mean IoU, pixel accuracy, as the models' documentation has them
    published = {
        "resnet50": (42_004_074, 178.72, 161, 66.4, 92.4),
        "resnet101": (60_996_202, 258.74, 233, 67.4, 92.4),
    }
    for variant, (parameters, gflops, megabytes, miou, accuracy) in published.items():
        figures = described[variant]
        values = {name: figure["value"] for name, figure in figures.items()}
        assert values["parameters"] == parameters
        assert round(values["gflops"], 2) == gflops
        assert round(values["checkpoint_megabytes"]) == megabytes
        # The file that is served folds the batch normalization away.
        assert megabytes - 2 < values["traced_megabytes"] < megabytes
        assert (values["miou"], values["pixel_accuracy"]) == (miou, accuracy)
        assert values["served_parameters"] < parameters
        for name in ("parameters", "gflops", "checkpoint_megabytes", "miou", "pixel_accuracy"):
            assert figures[name]["difference"] == 0
            assert figures[name]["rounded"] == figures[name]["published"]
        assert figures["traced_megabytes"]["difference"] == -1
    # The cost of the auxiliary head, which is served only on request.
    gflops = {name: described["resnet50"][name]["value"] for name in ("gflops", "served_gflops")}
    assert 1 - gflops["served_gflops"] / gflops["gflops"] == pytest.approx(0.056, abs=0.0005)


@pytest.mark.usefixtures("described_before")
def test_the_figures_are_a_table_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert build_models.main(["--describe", "--variant", "resnet50"]) == 0
    printed = capsys.readouterr().out
    assert "resnet101" not in printed
    assert "42,004,074" in printed
    assert re.search(r"mean IoU, % +│ +│ +66\.4 │ +│ not measured", printed), "only the published figure"
    assert max(map(len, printed.splitlines())) <= 80


@pytest.mark.parametrize(
    "place",
    [
        "core_resnet101",
        "deeplabv3_resnet101/1",
        "segment_resnet50",
        "segment_resnet101/1",
        "postprocess",
        "preprocess/1",
    ],
)
def test_a_folder_that_cannot_be_written_to_is_reported_before_tracing(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Root can write everywhere, so a file instead of a folder simulates a read-only folder."""
    monkeypatch.setattr(assembly, "write_models", traced_nothing)
    models = tmp_path / "models"
    (models / place).parent.mkdir(parents=True)
    (models / place).touch()
    assert build_models.main(["--weights", "none", "--model-repository", str(models)]) == 1
    (error,) = caplog.messages
    assert re.search(rf"cannot write to \S*{place}", error)
    assert [path for path in models.rglob("*") if path.is_file()] == [models / place]


def traced_nothing(*_: object, **__: object) -> None:
    raise AssertionError("a model is traced")


def leave(free: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limit the free space of disks, in bytes."""
    usage = shutil.disk_usage(folder)._replace(free=free)

    def disk_usage(_: Path) -> object:
        return usage

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)


def test_a_read_only_file_system_is_reported_before_tracing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(assembly, "write_models", traced_nothing)
    build(tmp_path, [Plan("resnet50", WeightsSource("none"))], configs_only=True)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "open", read_only)
    monkeypatch.setattr(assembly, "locked", contextlib.nullcontext)
    assert build_models.main(["--weights", "none", "--model-repository", str(tmp_path)]) == 1
    assert "Read-only file system; make it writable" in caplog.text


def test_what_is_up_to_date_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, because root can write everywhere: a read-only file system refuses to unlink even a missing file."""
    plan = Plan("resnet50", WeightsSource("none"))
    build(tmp_path, [plan], configs_only=True)
    fake_model(tmp_path, plan)

    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "unlink", read_only)
    build(tmp_path, [plan], configs_only=True)
    build(tmp_path, [plan])


@pytest.mark.parametrize(
    ("variants", "needed"), [(["resnet50"], "2 models need up to 520 MB"), ([], "4 models need up to 1040 MB")]
)
def test_a_full_disk_is_reported_before_tracing(
    variants: list[str],
    needed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(assembly, "write_models", traced_nothing)
    leave(250_000_000, tmp_path, monkeypatch)
    options = [f"--variant={variant}" for variant in variants]
    code = build_models.main(["--weights", "none", "--model-repository", str(tmp_path / "models"), *options])
    assert code == build_models.EXIT_TRY_AGAIN
    assert f"has 250 MB of free space, but {needed}; free some space" in caplog.text
    assert list((tmp_path / "models").iterdir()) == []


def test_an_up_to_date_build_reads_each_model_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are hundreds of megabytes, and may lie on a share."""
    for variant in ("resnet50", "resnet101"):
        fake_model(tmp_path, Plan(variant, WeightsSource("none")))
    read: list[str | None] = []
    testzip = zipfile.ZipFile.testzip

    def noted(archive: zipfile.ZipFile) -> str | None:
        read.append(archive.filename)
        return testzip(archive)

    monkeypatch.setattr(zipfile.ZipFile, "testzip", noted)
    monkeypatch.setattr(assembly, "write_models", traced_nothing)
    assert build_models.main(["--weights", "none", "--model-repository", str(tmp_path)]) == 0
    assert read == [
        str(tmp_path / f"{kind}_{variant}" / "1" / "model.pt")
        for variant in ("resnet50", "resnet101")
        for kind in ("core", "deeplabv3")
    ]


def test_what_is_up_to_date_needs_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = Plan("resnet50", WeightsSource("none"))
    fake_model(tmp_path, plan)
    leave(0, tmp_path, monkeypatch)
    monkeypatch.setattr(assembly, "write_models", traced_nothing)
    assert build_models.main(["--weights", "none", "--variant", "resnet50", "--model-repository", str(tmp_path)]) == 0
