"""A build from beginning to end: which files a model repository gets, and in which order.

The committed model_repository/ is source code: a build into it adds model.pt files and changes no other file. A
repository elsewhere is written as a whole.
"""

import contextlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deeplabv3.building import steps, tracing
from deeplabv3.building.calibration import Calibration, pixel_settings
from deeplabv3.building.configs import core_config, direct_config, ensemble_config
from deeplabv3.building.model_file import CALIBRATED_WITH, is_up_to_date, write_models
from deeplabv3.building.plan import Plan
from deeplabv3.building.settings import as_options, resized_sides
from deeplabv3.building.staging import locked, partial_file, try_writing
from deeplabv3.building.written import Written, refuse_edits, remove_older_records
from deeplabv3.errors import BuildError, RepositoryError
from deeplabv3.files import write_atomically
from deeplabv3.models.names import VARIANTS, core_name, direct_name, ensemble_name
from deeplabv3.models.weights import WeightsSource
from deeplabv3.repository.config import config_text, parameters_of, parse_config, pb, read_config
from deeplabv3.repository.paths import model_file
from deeplabv3.repository.record import BuildRecord, read_record

_NAMED_FILES = 3  # the log lists up to this many files, and otherwise their number

_log = logging.getLogger("build_models")


def is_source(repository: Path) -> bool:
    """Return whether a model repository is the committed one."""
    return repository.resolve() == steps.MODEL_REPOSITORY


def build(
    repository: Path,
    plans: Sequence[Plan],
    *,
    force: bool = False,
    progress: bool = True,
    configs_only: bool = False,
    step_devices: Mapping[str, str] = steps.STEP_DEVICES,
    calibration: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> None:
    """Build the models that are not up to date, and move them into place when all of them are done and checked.

    Args:
        repository: the folder to build into.
        plans: one per variant, all with the same classes.
        force: also build models that are up to date.
        progress: show a progress bar of a download on stderr.
        configs_only: write everything but the model.pt files.
        step_devices: "cpu" or "cuda" by step, for core models on a GPU.
        calibration: a folder of pictures for models in int8.
        settings: of the steps, as parse_setting returns them; other settings of earlier builds are kept.

    Raises:
        DeepLabV3Error: the build failed; the models in the repository are unchanged.
        OSError: the storage failed.
    """
    name = os.fsencode(repository)
    if name.decode("utf-8", "replace") != str(repository):
        raise BuildError(f"--model-repository {name!r} is not valid UTF-8, which torch requires; use another folder")
    if not is_source(repository):
        _keep_out_of_source(repository, plans)
    with locked(repository):
        records = _read_records(repository)
        others = _other_plans(repository, plans, records)
        written = Written.read(repository)
        given = settings or {}
        left_out = [plan.direct_name for plan in plans if not plan.direct]
        settings = written.settings | dict(given)
        texts = _texts(repository, plans, others, records, step_devices=step_devices, settings=settings)
        if not is_source(repository):
            written.check_normalization(plans)
            refuse_edits(repository, texts | dict.fromkeys(map(_config_of, left_out), ""), written, given)
            for name in left_out:
                _check_removal(repository / name, written)
        parameters = parameters_of(parse_config(texts["preprocess/config.pbtxt"]))
        found = Calibration.of(calibration, parameters) if calibration is not None and not configs_only else None
        _warn_of_other_pixels(others, records, parameters)
        with contextlib.ExitStack() as stack:
            staged = (
                {} if configs_only else _stage(repository, plans, records, found, stack, force=force, progress=progress)
            )
            changed: list[str] = []
            if not is_source(repository):
                changed += _write(repository, _step_files())
            for target, partial in staged.items():
                partial.replace(target)
            for name in left_out:
                _remove_model(repository / name)
            if not is_source(repository):
                changed += _write_texts(repository, texts, written.without(map(_config_of, left_out)), settings)
            elif configs_only:
                changed += _write(repository, _committed(texts))
        _log_written(repository, changed, settings, configs_only=configs_only)


def _keep_out_of_source(repository: Path, plans: Sequence[Plan]) -> None:
    """Refuse a folder inside of the committed model repository, and links into it, because its files would change."""
    models = [*steps.STEPS, *(name for plan in plans for name in (plan.core, plan.direct_name, plan.ensemble))]
    for folder in (repository, *(repository / name for name in models)):
        if folder.resolve().is_relative_to(steps.MODEL_REPOSITORY):
            raise BuildError(
                f"{folder} is inside {steps.MODEL_REPOSITORY}, whose files are source and must not change; build into "
                "a folder outside of it, without links into it"
            )


def _read_records(repository: Path) -> dict[str, BuildRecord]:
    """Return the build records by model. This reads every model.pt as a whole, so a build calls it once."""
    records: dict[str, BuildRecord] = {}
    for variant in VARIANTS:
        for name in (core_name(variant), direct_name(variant)):
            with contextlib.suppress(RepositoryError):
                if record := read_record(model_file(repository, name)):
                    records[name] = record
    return records


def _other_plans(repository: Path, plans: Sequence[Plan], records: Mapping[str, BuildRecord]) -> list[Plan]:
    """Return plans of the variants in the repository that are not built now, with all that their ensembles need.

    Both variants share postprocess and therefore the list of class names.

    Raises:
        BuildError: one of them has other classes, or its files are incomplete.
    """
    others: list[Plan] = []
    for variant in sorted(set(VARIANTS) - {plan.variant for plan in plans}):
        file, record = model_file(repository, core_name(variant)), records.get(core_name(variant))
        if not file.exists():
            older = model_file(repository, direct_name(variant))
            if older.exists() and not is_source(repository):
                raise BuildError(
                    f"{older} exists without {file}: an older version built it, and its ensemble would not load; build "
                    f"both variants, or remove {older.parents[1]} and {repository / ensemble_name(variant)}"
                )
            continue
        if record is None or record.class_names != plans[0].class_names:
            found = "unknown classes" if record is None else f"other classes ({', '.join(record.class_names)[:200]})"
            raise BuildError(
                f"{file} serves {found}, but all models of a repository must have the same classes; build both "
                "variants, remove that file, or use another --model-repository"
            )
        core = repository / _config_of(core_name(variant))
        if not core.exists():
            raise BuildError(
                f"{core} is missing, but its model.pt exists; build both variants, or remove {core.parent}"
            )
        largest = _read_config(core).max_batch_size
        others.append(
            Plan(
                variant,
                WeightsSource(record.weights or ""),
                record.class_names,
                background=record.background,
                max_batch_size=largest,
            )
        )
    return others


def _warn_of_other_pixels(
    others: Sequence[Plan], records: Mapping[str, BuildRecord], parameters: Mapping[str, str]
) -> None:
    for plan in others:
        calibrated = records[plan.core].fields.get(CALIBRATED_WITH)
        if calibrated not in (None, pixel_settings(parameters)):
            _log.warning(
                "%s: warning: this int8 model was calibrated with other settings of preprocess (%s); build it again",
                plan.core,
                ", ".join(f"{name}={value}" for name, value in calibrated.items()),
            )


def _texts(
    repository: Path,
    plans: Sequence[Plan],
    others: Sequence[Plan],
    records: Mapping[str, BuildRecord],
    *,
    step_devices: Mapping[str, str],
    settings: Mapping[str, str],
) -> dict[str, str]:
    """Return the texts that a build generates, by their path in the repository."""
    texts: dict[str, str] = {}
    for plan in plans:
        if plan.direct:
            texts[_config_of(plan.direct_name)] = config_text(direct_config(plan))
    for plan in (*plans, *others):  # the others may be from a version with other steps
        texts[f"{plan.ensemble}/config.pbtxt"] = config_text(ensemble_config(plan))
        texts[f"{plan.ensemble}/1/.gitkeep"] = ""  # Triton needs a version folder for an ensemble too
    planned = {plan.device for plan in plans}
    devices = planned | {records[plan.core].device for plan in others}
    if "cuda" in devices - planned:
        # The steps stay where the other build, for a GPU, has put them.
        step_devices = {
            step: _device_of(repository / step / "config.pbtxt", device) for step, device in step_devices.items()
        }
    class_names = plans[0].class_names
    for step in steps.STEPS:
        config = steps.step_config(
            step,
            class_names=class_names,
            device="cuda" if "cuda" in devices else "cpu",
            step_devices=step_devices,
            settings=settings,
        )
        texts[f"{step}/config.pbtxt"] = config_text(config)
        if step == "preprocess":
            sides = resized_sides(config)
            texts.update({_config_of(plan.core): config_text(core_config(plan, sides)) for plan in plans})
    texts[steps.LABELS] = "".join(f"{name}\n" for name in class_names)
    return texts


def _device_of(path: Path, default: str) -> str:
    """Return the device of the step with a config.pbtxt, "cpu" or "cuda"; the default if the file does not exist."""
    if not path.exists():
        return default
    on_gpu = any(group.kind == pb.ModelInstanceGroup.KIND_GPU for group in _read_config(path).instance_group)
    return "cuda" if on_gpu else "cpu"


def _config_of(model: str) -> str:
    return f"{model}/config.pbtxt"


def _check_removal(folder: Path, written: Written) -> None:
    """Refuse to remove a model's folder that no build has written or that has other files."""
    built = {folder / "config.pbtxt", model_file(folder.parent, folder.name)}
    others = sorted(path for path in folder.rglob("*") if not path.is_dir() and path not in built)
    if others or ((folder / "config.pbtxt").exists() and _config_of(folder.name) not in written.sha256):
        found = others[0] if others else folder
        raise BuildError(
            f"--no-direct would remove {folder}, but no build wrote {found}; move it elsewhere and build again"
        )


def _remove_model(folder: Path) -> None:
    """Remove the model of an earlier build that this build leaves out, because Triton would load it."""
    if folder.exists():
        shutil.rmtree(folder)
        _log.info("%s: removed, because --no-direct was given", folder)


def _read_config(path: Path) -> Any:  # noqa: ANN401 - a protobuf message: tritonclient has no types
    try:
        return read_config(path)
    except RepositoryError as exc:
        raise BuildError(f"{exc}; move it elsewhere and build again") from exc


def _stage(
    repository: Path,
    plans: Sequence[Plan],
    records: Mapping[str, BuildRecord],
    calibration: Calibration | None,
    stack: contextlib.ExitStack,
    *,
    force: bool,
    progress: bool,
) -> dict[Path, Path]:
    """Write the model.pt files that are not up to date; return their partial files by their final path."""
    partials = {
        name: stack.enter_context(partial_file(model_file(repository, name))) for plan in plans for name in plan.models
    }
    staged: list[Plan] = []
    for plan in plans:
        if force or not all(is_up_to_date(records.get(name), plan, calibration) for name in plan.models):
            staged.append(plan)
        else:
            _log.info("%s: up to date (weights %s)", plan.variant, plan.source.label)
    if staged:
        models = [*steps.STEPS, *(name for plan in staged for name in (*plan.models, plan.ensemble))]
        folders = [folder for name in models for folder in (repository / name, repository / name / "1")]
        try_writing([repository, *folders])
        tracing.check_room(repository, sum(len(plan.models) for plan in staged))
        for plan in staged:
            if plan.device == "cpu" and (missing := tracing.missing_on_this_cpu(plan.precision)):
                raise BuildError(f"{missing}; build on the machine that will serve the model, or use --precision fp32")
        if calibration is not None:
            calibration.check()
    for plan in staged:
        write_models(partials, plan, calibration=calibration, progress=progress)
    return {model_file(repository, name): partials[name] for plan in staged for name in plan.models}


def _step_files() -> dict[str, bytes]:
    """Return the code and the warm-up inputs of the steps, by their path in a repository."""
    contents: dict[str, bytes] = {}
    for step in steps.STEPS:
        for source in sorted((steps.MODEL_REPOSITORY / step).rglob("*")):
            name = str(source.relative_to(steps.MODEL_REPOSITORY))
            generated = source.name == "config.pbtxt" or name == steps.LABELS
            if source.is_file() and "__pycache__" not in source.parts and not generated:
                contents[name] = source.read_bytes()
    return contents


def _committed(texts: Mapping[str, str]) -> dict[str, bytes]:
    """Return the committed files that are generated; they change only when this code changes."""
    return {
        name: text.encode()
        for name, text in texts.items()
        if name.split("/")[0] not in steps.STEPS or name == steps.LABELS
    }


def _write_texts(
    repository: Path, texts: Mapping[str, str], written: Written, settings: Mapping[str, str]
) -> list[str]:
    configs = {name: text for name, text in texts.items() if name.endswith("config.pbtxt")}
    record = repository / Written.FILE
    write_atomically(record, written.during(repository, configs, settings).text().encode())
    changed = _write(repository, {name: text.encode() for name, text in texts.items()})
    write_atomically(record, written.after(configs, settings).text().encode())
    remove_older_records(repository)
    return changed


def _write(repository: Path, contents: Mapping[str, bytes]) -> list[str]:
    """Write files by their path in a repository; return those that have changed."""
    return [name for name, content in contents.items() if write_atomically(repository / name, content)]


def _log_written(repository: Path, changed: Sequence[str], settings: Mapping[str, str], *, configs_only: bool) -> None:
    """Log which files were written; models are logged while they are built."""
    with_settings = f", with {as_options(settings)}" if settings else ""
    if changed:
        what = ", ".join(changed) if len(changed) <= _NAMED_FILES else f"{len(changed)} files"
        _log.info("%s: wrote %s%s", repository, what, with_settings)
    elif configs_only:
        _log.info("%s: the config files are up to date%s", repository, with_settings)
