"""A build over a repository that another version made, and what its exit code says of one that failed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import build_models
from deeplabv3 import BuildError, CheckpointError, RetryableBuildError, WeightsUnavailableError
from deeplabv3.building import record, tracing
from deeplabv3.building.record import BuildRecord

if TYPE_CHECKING:
    from deeplabv3.building.plan import Plan

pytestmark = pytest.mark.build

STEPS = ("preprocess", "postprocess", "encode_mask")
NEW_OUTPUT = 'output {\n  name: "MASK_FOR_PNG"\n  data_type: TYPE_UINT8\n  dims: -1\n  dims: -1\n}\n'
# What an older version shipped: by step, what stands there now and what stood there then.
TENSORS = {"postprocess": (NEW_OUTPUT, ""), "encode_mask": ('"MASK"', '"MASK_IN"')}
SETTINGS = {"preprocess": ('"2163200"', '"1000000"'), "encode_mask": ("count: 1", "count: 4")}
COMMENT = {"preprocess": ("# ImageNet's statistics", "# The statistics")}
MINE = {"preprocess": ('"square"', '"shorter_side"'), "postprocess": ('"50000000"', '"999"')}
OPTIONS = ([], ["--num-classes", "3"], ["--device", "cuda", "--preprocess-device", "cuda", "--num-classes", "3"])


def build(repository: Path, *options: str) -> int:
    return build_models.main(["--configs-only", "--weights", "none", "--model-repository", str(repository), *options])


def change(repository: Path, changes: dict[str, tuple[str, str]]) -> None:
    for step, (now, then) in changes.items():
        path = repository / step / "config.pbtxt"
        assert now in path.read_text()
        path.write_text(path.read_text().replace(now, then))


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


def build_older(repository: Path, changes: dict[str, tuple[str, str]], *options: str) -> None:
    """Build with a version that ships other configs."""
    source = repository.with_name("older")
    shutil.copytree(build_models.MODEL_REPOSITORY, source, ignore=shutil.ignore_patterns("model.pt", "__pycache__"))
    change(source, changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_models, "MODEL_REPOSITORY", source)
        assert build(repository, *options) == 0


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
@pytest.mark.parametrize("older", [TENSORS, SETTINGS, COMMENT], ids=["tensors", "settings", "comment"])
def test_configs_that_nobody_edited_are_those_of_the_new_version(
    repository: Path, older: dict[str, tuple[str, str]], options: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    build_older(repository, older, *options)
    assert build(repository, *options) == 0
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert build(repository.with_name("fresh"), *options) == 0
    assert files(repository) == files(repository.with_name("fresh"))


def test_where_the_steps_run_may_be_set_by_hand_and_the_rest_follows_the_version(repository: Path) -> None:
    build_older(repository, TENSORS)
    change(repository, {"postprocess": ("count: 2", "count: 5")})
    assert build(repository) == 0
    text = (repository / "postprocess" / "config.pbtxt").read_text()
    shipped = (build_models.MODEL_REPOSITORY / "postprocess" / "config.pbtxt").read_text()
    assert text == shipped.replace("count: 2", "count: 5")


@pytest.mark.parametrize(
    ("older", "warned"),
    [({}, set[str]()), (SETTINGS, {"preprocess"})],
    ids=["the same version", "other settings"],
)
def test_an_edited_config_stays_where_its_tensors_fit(
    repository: Path, older: dict[str, tuple[str, str]], warned: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    build_older(repository, older)
    change(repository, MINE)
    mine = files(repository)
    for _ in range(2):
        caplog.clear()
        assert build(repository) == 0
        for step in MINE:
            name = f"{step}/config.pbtxt"
            assert files(repository)[name] == mine[name]
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert {step for step in STEPS if any(f"/{step}/config.pbtxt stays" in each for each in warnings)} == warned
        assert len(warnings) == len(warned)


@pytest.mark.parametrize("recorded", [True, False])
def test_an_edited_config_that_no_longer_fits_is_named_before_anything_is_changed(
    repository: Path, recorded: object, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(build_models, "stage", built)
    build_older(repository, TENSORS)
    change(repository, {"postprocess": ('"50000000"', '"999"')})
    if not recorded:
        for step in STEPS:
            (repository / step / ".config.pbtxt.shipped").unlink()
    before = files(repository)
    for options in ([], ["--configs-only"]):
        caplog.clear()
        command = ["--weights", "none", "--model-repository", str(repository), *options]
        assert build_models.main(command) == build_models.EXIT_FAILED
        assert f"{repository}/postprocess/config.pbtxt does not have" in caplog.text
        assert "no output MASK_FOR_PNG" in caplog.text
        assert files(repository) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("TYPE_FP32", "TYPE_FP16"), r"output PIXELS is TYPE_FP16 \[3, -1, -1\], not TYPE_FP32 \[3, -1, -1\]"),
        (("[ 3, -1, -1 ]", "[ -1, -1 ]"), r"output PIXELS is TYPE_FP32 \[-1, -1\], not"),
        (('name: "IMAGE"\n', 'name: "PICTURE"\n'), "no input IMAGE; nobody gives input PICTURE"),
    ],
)
def test_tensors_of_other_types_do_not_fit(
    repository: Path, wrong: tuple[str, str], message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert build(repository) == 0
    change(repository, {"preprocess": wrong})
    assert build(repository) == build_models.EXIT_FAILED
    assert re.search(message, caplog.text)


def test_a_repository_from_before_there_was_a_record(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_older(repository, SETTINGS | COMMENT)
    assert build(repository.with_name("fresh")) == 0
    for step in STEPS:
        (repository / step / ".config.pbtxt.shipped").unlink()
    assert build(repository) == 0
    # What differs may be somebody's; what does not is recorded.
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [each.split("/")[-2] for each in (line.split(" stays")[0] for line in warnings)] == [
        "preprocess",
        "encode_mask",
    ]
    assert [(repository / step / ".config.pbtxt.shipped").exists() for step in STEPS] == [False, True, False]
    for step in ("preprocess", "encode_mask"):  # what the warning says
        (repository / step / "config.pbtxt").unlink()
    assert build(repository) == 0
    assert files(repository) == files(repository.with_name("fresh"))


def test_the_ensemble_of_a_model_that_is_not_built_follows_the_steps(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(partial: Path, plan: Plan, *, progress: bool) -> None:
        del progress
        module = torch.jit.script(torch.nn.Identity())
        record = BuildRecord.of(plan)
        tracing.save(module, partial, {record.FILE: json.dumps(asdict(record))})

    monkeypatch.setattr(build_models, "stage", small)
    assert build_models.main(["--weights", "none", "--model-repository", str(repository)]) == 0
    fresh = files(repository)
    ensemble = repository / "segment_resnet101" / "config.pbtxt"
    ensemble.write_text(ensemble.read_text().replace("MASK_FOR_PNG", "OLD"))
    assert build(repository, "--variant", "resnet50") == 0
    assert files(repository) == fresh


def test_the_checkouts_own_configs_are_the_source_and_get_no_record(repository: Path) -> None:
    shutil.copytree(build_models.MODEL_REPOSITORY, repository, ignore=shutil.ignore_patterns("model.pt", "__pycache__"))
    change(repository, MINE)
    before = files(repository)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_models, "MODEL_REPOSITORY", repository)
        assert build(repository) == 0
    before_core = {name: text for name, text in before.items() if name.split("/")[0] in STEPS}
    assert {name: text for name, text in files(repository).items() if name.split("/")[0] in STEPS} == before_core


def wrapped(number: int) -> Exception:
    error = CheckpointError("the weights cannot be read")
    error.__cause__ = OSError(number, os.strerror(number))
    return error


@pytest.mark.parametrize(
    ("error", "code"),
    [
        *((OSError(number, os.strerror(number)), 4) for number in (errno.ESTALE, errno.EIO, errno.ENOSPC)),
        *((OSError(number, os.strerror(number)), 1) for number in (errno.EACCES, errno.EROFS, errno.ENOENT)),
        (wrapped(errno.EIO), 4),
        (wrapped(errno.ENOENT), 1),
        (RetryableBuildError("the disk is full"), 4),
        (BuildError("the checkpoint is of another model"), 1),
        (WeightsUnavailableError(errno.EIO, "no route"), 3),
    ],
    ids=repr,
)
def test_the_exit_code_tells_what_may_pass(
    repository: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(build_models, "stage", fail)
    assert build_models.main(["--weights", "none", "--model-repository", str(repository)]) == code


def test_help_has_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_models.parse_arguments(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 may succeed when tried again" in shown


def test_a_write_that_fails_is_an_error_and_not_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_SAVE_BYTES", 0)
    module = torch.jit.script(torch.nn.Identity())
    with pytest.raises(OSError, match="No space left on device"):
        tracing.save(module, Path("/dev/full"), {})


def test_a_read_that_fails_is_the_storages_error() -> None:
    unused: Any = None
    with pytest.raises(OSError, match="Input/output error"):
        tracing.verify(Path("/proc/self/mem"), unused, aux=False)


def test_configs_only_finds_what_it_cannot_change_before_it_changes_anything(repository: Path) -> None:
    assert build(repository) == 0
    one_way, another = (f"{begin}\n  kind: KIND_CPU\n  count: 2\n{end}\n" for begin, end in (("{", "}"), ("[{", "}]")))
    change(repository, {"preprocess": (f"instance_group {one_way}", f"instance_group {another}")})
    before = files(repository)
    assert build(repository, "--device", "cuda") == 1
    assert files(repository) == before


def test_the_record_of_a_model_on_storage_that_fails_is_not_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    assert BuildRecord.read(tmp_path / "model.pt") is None
    monkeypatch.setattr(record.zipfile, "ZipFile", stale)
    with pytest.raises(OSError, match="Stale"):
        BuildRecord.read(tmp_path / "model.pt")
