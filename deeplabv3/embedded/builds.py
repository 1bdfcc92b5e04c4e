"""Whether models and configs come from one build: the record in each model.pt against what stands around it."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deeplabv3.embedded.errors import StartError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

REMEDY = "run build_models.py with the options of that build, such as --weights none: it writes both"


@dataclass(frozen=True, slots=True)
class Build:
    """What build_models.py wrote into a model.pt; None for what it did not, as in a file of others."""

    weights: str | None
    class_names: tuple[str, ...] | None

    @classmethod
    def read(cls, model: Path) -> Build:
        """Read a model.pt, or raise when it is damaged."""
        try:
            with zipfile.ZipFile(model) as archive:
                if damaged := archive.testzip():
                    raise StartError(f"{model} is damaged in {damaged}; run build_models.py")
                entry = next((name for name in archive.namelist() if name.endswith("/extra/build.json")), None)
                record: Any = json.loads(archive.read(entry)) if entry else {}
        except (OSError, zipfile.BadZipFile, ValueError) as error:
            raise StartError(f"{model} is not a TorchScript file ({error}); run build_models.py") from error
        found: dict[str, Any] = record if isinstance(record, dict) else {}
        weights, names = found.get("weights"), found.get("class_names")
        if found and not isinstance(names, list):
            raise StartError(f"{model} was built by another version of build_models.py; run it again")
        return cls(
            weights if isinstance(weights, str) else None,
            tuple(str(name) for name in names) if isinstance(names, list) else None,
        )


def is_core(config: Any) -> bool:  # noqa: ANN401 - a protobuf message: tritonclient has no types
    """Tell whether a model is a TorchScript file."""
    return config.platform == "pytorch_libtorch" or config.backend == "pytorch"


def check_builds(repository: Path, configs: dict[str, Any]) -> None:
    """Raise when a core model, or an ensemble around one, is labelled with other weights or classes than it serves."""
    served: dict[str, str] = {}
    builds: dict[str, Build] = {}
    for name in filter(lambda name: is_core(configs[name]), configs):
        model = repository / name / "1" / "model.pt"
        builds[name] = Build.read(model)
        built, label = builds[name].weights, labelled_weights(configs[name])
        require_equal(name, label, built, source=f"{model} holds")
        if weights := built or label:
            served[name] = weights
    for name, config in configs.items():
        steps = [step.model_name for step in config.ensemble_scheduling.step]
        for step in steps:
            require_equal(name, labelled_weights(config), served.get(step), source=f"its step {step} has")
        for core in builds.keys() & set(steps):
            for file in label_files(repository, configs, steps):
                check_class_names(name, core, builds[core], file)


def labelled_weights(config: Any) -> str | None:  # noqa: ANN401 - a protobuf message
    """Return the name of the weights that a config.pbtxt states."""
    return config.parameters["weights"].string_value if "weights" in config.parameters else None


def require_equal(name: str, label: str | None, weights: str | None, *, source: str) -> None:
    """Raise when a model's label and the weights behind it are both known and differ."""
    if label is not None and weights is not None and label != weights:
        raise StartError(f"{name}: config.pbtxt says weights {label!r}, but {source} {weights!r}; {REMEDY}")


def label_files(repository: Path, configs: dict[str, Any], models: list[str]) -> Iterator[Path]:
    """Yield the label files of some models' outputs."""
    for model in models:
        for output in configs[model].output if model in configs else ():
            if output.label_filename:
                yield repository / model / output.label_filename


def check_class_names(ensemble: str, core: str, build: Build, file: Path) -> None:
    """Raise when an ensemble names the classes of its core model otherwise than the build did."""
    if build.class_names is None:
        return
    try:
        names = tuple(file.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"{file} cannot be read ({error}); {REMEDY}") from error
    if names != build.class_names:
        raise StartError(
            f"{ensemble}: {file} has {len(names)} class names, and they are not the {len(build.class_names)} that "
            f"{core} was built with; {REMEDY}"
        )
