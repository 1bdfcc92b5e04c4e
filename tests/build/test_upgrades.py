"""Builds over a repository of another version or with edits; exit codes of failures."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from google.protobuf import text_format

import build_models
from deeplabv3 import BuildError, CheckpointError, RetryableBuildError, WeightsUnavailableError
from deeplabv3.building import assembly, checking, steps, tracing
from deeplabv3.building.model_file import record_of
from deeplabv3.errors import RepositoryError
from deeplabv3.repository import record
from deeplabv3.repository.config import parse_config, read_config
from deeplabv3.repository.record import read_record

if TYPE_CHECKING:
    from deeplabv3.building.plan import Plan

pytestmark = pytest.mark.build

STEPS = ("preprocess", "postprocess", "encode_mask", "confidence")
SHIPPED = ".config.pbtxt.shipped"
NEW_OUTPUT = 'output {\n  name: "MASK_FOR_PNG"\n  data_type: TYPE_UINT8\n  dims: -1\n  dims: -1\n}\n'
# The differences of an older version, by step: the present text, and the text at that time.
TENSORS = {"postprocess": (NEW_OUTPUT, ""), "encode_mask": ('"MASK"', '"MASK_IN"')}
SETTINGS = {"preprocess": ('"2163200"', '"1000000"'), "encode_mask": ("count: 1", "count: 4")}
COMMENT = {"preprocess": ("# Larger images are refused", "# Larger pictures are refused")}
MINE = {"preprocess": ('"fixed"', '"shorter_side"'), "postprocess": ('"50000000"', '"999"')}
MY_SETTINGS = ["--set", "preprocess.resize_mode=shorter_side", "--set", "postprocess.max_pixels=999"]
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


def read_configs(repository: Path) -> dict[str, Any]:
    return {path.parent.name: read_config(path) for path in repository.glob("*/config.pbtxt")}


def advised(message: str) -> list[str]:
    """Return the options that an error advises."""
    found = re.search(r"build (?:again )?with (--set .+?), which", message)
    assert found is not None, message
    return shlex.split(found[1])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "models"


def build_older(repository: Path, changes: dict[str, tuple[str, str]], *options: str) -> None:
    """Build with a version that ships other configs."""
    source = repository.with_name("older")
    shutil.copytree(steps.MODEL_REPOSITORY, source, ignore=shutil.ignore_patterns("model.pt", "__pycache__"))
    change(source, changes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(steps, "MODEL_REPOSITORY", source)
        assert build(repository, *options) == 0


def forget(repository: Path, *, shipped: bool) -> None:
    """Make of what build_older has built what a version without repository.json left, and one without any record."""
    (repository / "repository.json").unlink()
    for step in STEPS:
        # As those versions did it: the text as it was shipped, and a copy in which a build has set what it had to.
        text = (repository.with_name("older") / step / "config.pbtxt").read_text()
        if parse_config(text) == read_config(repository / step / "config.pbtxt"):
            (repository / step / "config.pbtxt").write_text(text)
        if shipped:
            (repository / step / SHIPPED).write_text(text)


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
@pytest.mark.parametrize("older", [TENSORS, SETTINGS, COMMENT], ids=["tensors", "settings", "comment"])
@pytest.mark.parametrize("recorded", [True, False], ids=["repository.json", "shipped"])
def test_unedited_configs_are_updated_to_the_new_version(
    repository: Path,
    older: dict[str, tuple[str, str]],
    options: list[str],
    caplog: pytest.LogCaptureFixture,
    *,
    recorded: bool,
) -> None:
    build_older(repository, older, *options)
    if not recorded:
        forget(repository, shipped=True)
    caplog.clear()
    assert build(repository, *options) == 0
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert build(repository.with_name("fresh"), *options) == 0
    assert files(repository) == files(repository.with_name("fresh"))


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
@pytest.mark.parametrize(
    ("older", "recorded"),
    [({}, True), ({}, False), (TENSORS, False), (SETTINGS, False)],
    ids=["this version", "the version before", "other tensors", "other settings"],
)
def test_an_edit_is_refused_with_the_options_that_replace_it(
    repository: Path,
    older: dict[str, tuple[str, str]],
    options: list[str],
    caplog: pytest.LogCaptureFixture,
    *,
    recorded: bool,
) -> None:
    build_older(repository, older, *options)
    if not recorded:
        forget(repository, shipped=True)
    change(repository, MINE)
    before = files(repository)
    assert build(repository, *options) == build_models.EXIT_FAILED
    assert files(repository) == before
    (message,) = caplog.messages
    assert advised(message) == MY_SETTINGS
    for step in STEPS:
        assert (f"{repository}/{step}/config.pbtxt" in message) == (step in MINE)
    assert build(repository, *options, *advised(message)) == 0
    assert build(repository, *options) == 0, "the settings are kept"
    assert build(repository.with_name("fresh"), *options, *MY_SETTINGS) == 0
    assert files(repository) == files(repository.with_name("fresh"))


@pytest.mark.parametrize("recorded", [True, False], ids=["repository.json", "shipped"])
def test_more_instances_are_an_edit_that_a_setting_replaces(
    repository: Path, caplog: pytest.LogCaptureFixture, *, recorded: bool
) -> None:
    build_older(repository, {}, "--device", "cuda")
    if not recorded:
        forget(repository, shipped=True)
    change(repository, {"postprocess": ("count: 2", "count: 5")})
    assert build(repository, "--device", "cuda") == build_models.EXIT_FAILED
    assert advised(caplog.messages[-1]) == ["--set", "postprocess.instances=5"]
    assert build(repository, "--device", "cuda", "--set", "postprocess.instances=4") == 0, "given anew, it may differ"
    assert read_configs(repository)["postprocess"].instance_group[0].count == 4


@pytest.mark.parametrize("recorded", [True, False], ids=["repository.json", "shipped"])
@pytest.mark.parametrize(
    ("edit", "advice"),
    [
        (("TYPE_FP32", "TYPE_FP16"), []),
        (("KIND_CPU", "KIND_MODEL"), []),
        (("max_batch_size: 8", "max_batch_size: 4"), []),
        (
            ('"50000000"', '"999" } } parameters { key: "mine" value { string_value: "1"'),
            ["postprocess.max_pixels=999"],
        ),
        (("instance_group {", "instance_group { gpus: 1 "), []),
        (("instance_group {", "instance_group { kind: KIND_GPU } instance_group {"), []),
    ],
)
def test_an_edit_that_no_setting_replaces_is_named_before_anything_is_changed(
    repository: Path,
    edit: tuple[str, str],
    advice: list[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    *,
    recorded: bool,
) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr(assembly, "write_models", built)
    build_older(repository, {})
    if not recorded:
        forget(repository, shipped=True)
    change(repository, {"postprocess": edit})
    before = files(repository)
    for options in ([], ["--configs-only"]):
        caplog.clear()
        command = ["--weights", "none", "--model-repository", str(repository), *options]
        assert build_models.main(command) == build_models.EXIT_FAILED
        (message,) = caplog.messages
        assert message.startswith(
            f"build_models.py: {repository}/postprocess/config.pbtxt: edited by hand in a way that"
        )
        assert "--instances" not in message
        assert files(repository) == before
    settings = advised(message) if advice else []
    assert settings[1::2] == advice
    (repository / "postprocess" / "config.pbtxt").unlink()  # what the message says
    assert build(repository, *settings) == 0
    assert build(repository.with_name("fresh"), *settings) == 0
    assert files(repository) == files(repository.with_name("fresh"))


def test_an_edited_core_model_is_refused_and_one_of_an_older_version_replaced(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    build_older(repository, {})
    fresh = files(repository)
    edit = {"core_resnet50": ("count: 1", "count: 2")}
    change(repository, edit)
    assert build(repository) == build_models.EXIT_FAILED
    assert f"{repository}/core_resnet50/config.pbtxt: edited by hand" in caplog.text
    assert "for a core model, use --instances, --max-batch-size, --queue-delay or --max-queue-size" in caplog.text
    forget(repository, shipped=True)
    assert build(repository) == 0  # those versions did so at every build
    assert files(repository) == fresh


def test_a_mean_that_preprocess_had_becomes_the_core_models(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A version whose preprocess normalized kept its mean and standard deviation as settings."""
    assert build(repository) == 0
    record = repository / "repository.json"
    content = json.loads(record.read_text())
    content["settings"] |= {"preprocess.mean": "0.5, 0.5, 0.5", "preprocess.std": "0.2, 0.2, 0.2"}
    record.write_text(json.dumps(content))
    assert build(repository) == build_models.EXIT_FAILED
    options = ["--mean=0.5,0.5,0.5", "--std=0.2,0.2,0.2"]
    assert f"build with {' '.join(options)}" in caplog.messages[-1]
    assert build(repository, options[0]) == build_models.EXIT_FAILED
    assert build(repository, *options) == 0
    assert build(repository, *options) == 0
    assert "mean" not in record.read_text()


def test_an_edited_mean_of_an_older_preprocess_is_named_as_options(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert build(repository) == 0
    mean = 'parameters { key: "mean" value { string_value: "0.5, 0.4, 0.3" } }'
    config = repository / "preprocess" / "config.pbtxt"
    config.write_text(config.read_text() + mean)
    assert build(repository) == build_models.EXIT_FAILED
    assert "the core models normalize now, with --mean=0.5,0.4,0.3" in caplog.messages[-1]


def test_what_is_no_config_is_refused(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert build(repository) == 0
    change(repository, {"preprocess": ("max_batch_size: 8", "max_batch_size: many")})
    assert build(repository) == build_models.EXIT_FAILED
    assert f"{repository}/preprocess/config.pbtxt is not a model configuration: " in caplog.text
    assert "move it elsewhere and build again" in caplog.text


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"settings": {"preprocess.size": "1"}, "sha256": {}}'])
def test_a_damaged_record_is_refused(repository: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    assert build(repository, *MY_SETTINGS) == 0
    fresh = files(repository)
    (repository / "repository.json").write_text(content)
    assert build(repository) == build_models.EXIT_FAILED
    assert f"{repository}/repository.json is damaged or was edited" in caplog.text
    (repository / "repository.json").unlink()  # what the message says
    assert build(repository) == build_models.EXIT_FAILED
    assert advised(caplog.messages[-1]) == MY_SETTINGS
    assert build(repository, *MY_SETTINGS) == 0
    assert files(repository) == fresh


def test_a_repository_from_before_there_was_a_record(repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    build_older(repository, SETTINGS | TENSORS)
    forget(repository, shipped=False)
    assert build(repository) == build_models.EXIT_FAILED
    # A config that differs in more than settings may have been edited.
    (message,) = caplog.messages
    named = [step for step in STEPS if f"{repository}/{step}/config.pbtxt" in message]
    assert named == ["postprocess", "encode_mask"]
    for step in named:
        (repository / step / "config.pbtxt").unlink()
    assert build(repository, *advised(message)) == 0
    assert read_configs(repository)["preprocess"].parameters["max_resized_pixels"].string_value == "1000000"


@pytest.mark.parametrize("recorded", [True, False], ids=["repository.json", "shipped"])
@pytest.mark.parametrize("killed_after", range(2, 7))
def test_a_build_that_is_killed_while_it_writes_leaves_nothing_that_looks_edited(
    repository: Path, killed_after: int, monkeypatch: pytest.MonkeyPatch, *, recorded: bool
) -> None:
    build_older(repository, {})
    if not recorded:
        forget(repository, shipped=True)
    written = 0
    write = assembly.write_atomically

    def kill(path: Path, content: bytes) -> None:
        nonlocal written
        if not path.exists() or path.read_bytes() != content:
            written += 1
            if written == killed_after:
                raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(assembly, "write_atomically", kill)
    assert build(repository, "--device", "cuda", *MY_SETTINGS) != 0
    monkeypatch.undo()
    assert build(repository, "--num-classes", "3") == 0
    assert build(repository.with_name("fresh"), "--num-classes", "3", *MY_SETTINGS) == 0
    assert files(repository) == files(repository.with_name("fresh"))


def test_the_ensemble_of_a_model_that_is_not_built_follows_the_steps(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small(partials: dict[str, Path], plan: Plan, **_: object) -> None:
        for name in plan.models:
            tracing.save(torch.jit.script(torch.nn.Identity()), partials[name], record_of(plan).as_extra_files())

    def older_config(plan: Plan) -> Any:  # noqa: ANN401 - a protobuf message: tritonclient has no types
        return parse_config(text_format.MessageToString(ensemble_config(plan)).replace("MASK_FOR_PNG", "OLD"))

    ensemble_config = assembly.ensemble_config
    monkeypatch.setattr(assembly, "write_models", small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "ensemble_config", older_config)
        assert build_models.main(["--weights", "none", "--model-repository", str(repository)]) == 0
    assert "OLD" in (repository / "segment_resnet101" / "config.pbtxt").read_text()
    assert build(repository, "--variant", "resnet50") == 0
    assert build_models.main(["--weights", "none", "--model-repository", str(repository.with_name("fresh"))]) == 0
    assert files(repository) == files(repository.with_name("fresh"))


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
def test_the_exit_code_separates_temporary_from_permanent_failures(
    repository: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(assembly, "write_models", fail)
    assert build_models.main(["--weights", "none", "--model-repository", str(repository)]) == code


def test_help_has_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_models.parse_arguments(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "4 a retry may succeed" in shown


def test_a_write_that_fails_is_an_error_and_not_the_end_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "_SAVE_BYTES", 0)
    module = torch.jit.script(torch.nn.Identity())
    with pytest.raises(OSError, match="No space left on device"):
        tracing.save(module, Path("/dev/full"), {})


def test_a_read_that_fails_is_the_storages_error() -> None:
    unused: Any = None
    with pytest.raises(OSError, match="Input/output error"):
        checking.agreement(Path("/proc/self/mem"), unused, [], unused)


def test_the_record_of_a_model_on_storage_that_fails_is_not_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    with pytest.raises(RepositoryError, match="No such file"):
        read_record(tmp_path / "model.pt")
    monkeypatch.setattr(record.zipfile, "ZipFile", stale)
    with pytest.raises(OSError, match="Stale"):
        read_record(tmp_path / "model.pt")
