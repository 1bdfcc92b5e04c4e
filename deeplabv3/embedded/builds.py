"""Check that models and configs are from one build, by the record in each model.pt."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from deeplabv3.embedded.errors import StartError
from deeplabv3.errors import RepositoryError
from deeplabv3.repository.class_names import read_class_names
from deeplabv3.repository.paths import model_file
from deeplabv3.repository.record import BuildRecord, read_record

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REMEDY = "run build_models.py again for this --model-repository, with the options of the earlier build"


def is_core(config: Any) -> bool:  # noqa: ANN401 - a protobuf message: tritonclient has no types
    """Return whether a model is a TorchScript file."""
    return config.platform == "pytorch_libtorch" or config.backend == "pytorch"


def check_builds(repository: Path, configs: dict[str, Any]) -> None:
    """Raise StartError if a core model or an ensemble around one names other weights or classes than it serves."""
    served: dict[str, str] = {}
    builds: dict[str, BuildRecord] = {}
    for name in filter(lambda name: is_core(configs[name]), configs):
        model = model_file(repository, name)
        record = _read_record(model)
        if record is not None:
            builds[name] = record
        built, label = record and record.weights, parameter_of("weights", configs[name])
        require_equal(name, label, built, source=f"{model} holds")
        if weights := built or label:
            served[name] = weights
    for name, config in configs.items():
        steps = [step.model_name for step in config.ensemble_scheduling.step]
        for step in steps:
            require_equal(name, parameter_of("weights", config), served.get(step), source=f"its step {step} has")
        for core in builds.keys() & set(steps):
            for step in filter(configs.__contains__, steps):
                for source, names in named_classes(repository / step, configs[step]):
                    check_class_names(name, core, builds[core], source, names)


def _read_record(model: Path) -> BuildRecord | None:
    try:
        return read_record(model)
    except RepositoryError as error:
        raise StartError(str(error)) from error
    except OSError as error:
        raise StartError(f"{model} cannot be read ({error}); check the storage") from error


def parameter_of(name: str, config: Any) -> str | None:  # noqa: ANN401 - a protobuf message
    """Return a string parameter of a config, or None."""
    return config.parameters[name].string_value if name in config.parameters else None


def require_equal(name: str, label: str | None, weights: str | None, *, source: str) -> None:
    """Raise StartError if a model's label and its actual weights are both known and differ."""
    if label is not None and weights is not None and label != weights:
        raise StartError(f"{name}: config.pbtxt names the weights {label!r}, but {source} {weights!r}; {REMEDY}")


def named_classes(model: Path, config: Any) -> Iterator[tuple[str, tuple[str, ...]]]:  # noqa: ANN401 - a protobuf message
    """Yield each source of class names of a model and the names: parameter class_names, label files of outputs."""
    if (text := parameter_of("class_names", config)) is not None:
        where = f"class_names of {model / 'config.pbtxt'}"
        try:
            yield where, tuple(map(str, json.loads(text)))
        except (ValueError, TypeError) as error:
            raise StartError(f"{where} cannot be read ({error}); {REMEDY}") from error
    for output in config.output:
        if output.label_filename:
            file = model / output.label_filename
            try:
                yield str(file), read_class_names(file)
            except RepositoryError as error:
                raise StartError(f"{file} cannot be read ({error}); {REMEDY}") from error


def check_class_names(ensemble: str, core: str, record: BuildRecord, source: str, names: tuple[str, ...]) -> None:
    """Raise StartError if an ensemble has other class names than the build of its core model."""
    if names != record.class_names:
        raise StartError(
            f"{ensemble}: the {len(names)} class names in {source} differ from the {len(record.class_names)} with "
            f"which {core} was built; {REMEDY}"
        )
