"""repository.json, which records what builds wrote into a repository: its settings and the hash of each config.pbtxt.

A config.pbtxt that a build did not write was edited by hand. Builds overwrite these files, so they refuse such an edit
and name the --set option with the same effect, if there is one.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deeplabv3.building import steps
from deeplabv3.building.plan import Plan
from deeplabv3.building.settings import apply_settings, as_options, parse_setting, settings_in
from deeplabv3.building.steps import (
    DERIVED_PARAMETERS,
    PLACEMENTS,
    class_count_of,
    placement_in,
    set_class_count,
    set_placement,
)
from deeplabv3.errors import BuildError, InvalidOptionError, RepositoryError
from deeplabv3.files import remove
from deeplabv3.models.names import VARIANTS, core_name
from deeplabv3.repository.config import parse_config, read_config

# Versions without repository.json kept the config that they shipped beside the config of each step.
_SHIPPED = ".config.pbtxt.shipped"
NORMALIZATION = ("mean", "std")
"""Parameters of preprocess in versions in which it normalized instead of the core models."""


@dataclass(frozen=True, slots=True)
class Written:
    """The content of repository.json.

    Attributes:
        settings: of the steps, by name; --set changes them and later builds keep them.
        sha256: the hashes of each config.pbtxt, by its path in the repository: two while a build replaces it.
        normalization: "mean" and "std", if they were given to an older version in which preprocess normalized.
    """

    settings: dict[str, str] = field(default_factory=dict[str, str])
    sha256: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    normalization: dict[str, str] = field(default_factory=dict[str, str])

    FILE = "repository.json"

    @classmethod
    def read(cls, repository: Path) -> "Written":
        """Return the record of earlier builds in a repository; an empty one if there is none.

        Raises:
            BuildError: the file is damaged.
        """
        file = repository / cls.FILE
        if not file.exists():
            return cls()
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            told = dict(content["settings"])
            normalization = {
                name: told.pop(f"preprocess.{name}") for name in NORMALIZATION if f"preprocess.{name}" in told
            }
            settings = dict(parse_setting(f"{name}={value}") for name, value in told.items())
            return cls(settings, {name: list(hashes) for name, hashes in content["sha256"].items()}, normalization)
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise BuildError(
                f"{file} is damaged or was edited ({exc}); move it elsewhere and build again, with --set for the "
                "settings in it"
            ) from exc

    def check_normalization(self, plans: Sequence[Plan]) -> None:
        """Check that the core models will normalize as preprocess did in an older version.

        Raises:
            BuildError: they will not; the message names the options.
        """
        for name, told in self.normalization.items():
            if any(getattr(plan, name) != tuple(map(float, told.split(","))) for plan in plans):
                raise BuildError(
                    f"{self.FILE} sets preprocess.{name}={told}, from an older version in which preprocess normalized; "
                    f"the core models do it now: build with {_normalizing(self.normalization)}"
                )

    def without(self, names: Iterable[str]) -> "Written":
        """Return a copy without the hashes of some files."""
        left_out = set(names)
        kept = {name: hashes for name, hashes in self.sha256.items() if name not in left_out}
        return Written(self.settings, kept, self.normalization)

    def after(self, texts: Mapping[str, str], settings: Mapping[str, str]) -> "Written":
        """Return the record after a build has written texts, given by path in the repository."""
        return Written(dict(settings), self.sha256 | {name: [_hash(text.encode())] for name, text in texts.items()})

    def during(self, repository: Path, texts: Mapping[str, str], settings: Mapping[str, str]) -> "Written":
        """Return the record while a build writes, which accepts old and new files in case the build is killed."""
        after = self.after(texts, settings)
        for name, hashes in after.sha256.items():
            path = repository / name
            if path.exists() and (found := _hash(path.read_bytes())) not in hashes:
                hashes.append(found)
        return after

    def text(self) -> str:
        """Return the content of the file."""
        return json.dumps({"settings": self.settings, "sha256": self.sha256}, indent=2, sort_keys=True) + "\n"


def _normalizing(found: Mapping[str, str]) -> str:
    """Return the options for the mean and standard deviation of an older config.pbtxt or setting."""
    return " ".join(f"--{name}={''.join(value.split())}" for name, value in found.items())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def refuse_edits(repository: Path, texts: Mapping[str, str], written: Written, given: Mapping[str, str]) -> None:
    """Refuse a build over a config.pbtxt that was edited by hand.

    Args:
        repository: the model repository.
        texts: the texts that the build will write, by path in the repository.
        written: the record of earlier builds.
        given: the settings of this build's --set, which replace an edit.

    Raises:
        BuildError: a file was edited; the message names the files and the remedy.
    """
    options: dict[str, str] = {}
    replaceable: list[str] = []
    lost: list[Path] = []
    older: dict[str, str] = {}
    for name, text in texts.items():
        path, hashes = repository / name, written.sha256.get(name)
        found = _edited(path, text, hashes, is_recorded=bool(written.sha256))
        if found is None:
            continue
        step = path.parent.name
        edits = _edited_settings(path, found, parse_config(text), is_recorded=hashes is not None)
        is_of_settings = step in PLACEMENTS and _is_shipped(found, path) and (edits or hashes is None)
        edits = {setting: value for setting, value in edits.items() if setting not in given}
        accepted = {setting: value for setting, value in edits.items() if _is_accepted(setting, value)}
        if not is_of_settings or accepted != edits:
            lost.append(path)
            older |= {name: found.parameters[name].string_value for name in NORMALIZATION if name in found.parameters}
        elif edits:
            replaceable.append(str(path))
        options |= accepted
    if lost:
        them = "it" if len(lost) == 1 else "them"
        keeping = f" with {as_options(options)}, which keeps the settings" if options else ""
        if any(path.parent.name in map(core_name, VARIANTS) for path in lost):
            options_of_cores = "--instances, --max-batch-size, --queue-delay or --max-queue-size"
            keeping += f"; for a core model, use {options_of_cores} with --device cuda"
        if older:
            keeping += f"; the core models normalize now, with {_normalizing(older)}"
        raise BuildError(
            f"{', '.join(map(str, lost))}: edited by hand in a way that --set cannot express, or written by another "
            f"version; move {them} elsewhere and build again{keeping}"
        )
    if replaceable:
        raise BuildError(
            f"{', '.join(replaceable)}: edited by hand, but a build overwrites these files; build with "
            f"{as_options(options)}, which has the same effect, or move the edited files elsewhere to discard the edits"
        )


def _edited(path: Path, text: str, hashes: list[str] | None, *, is_recorded: bool) -> Any:  # noqa: ANN401 - a protobuf message
    """Return the config in a config.pbtxt that a build neither wrote nor will write, else None."""
    if path.name != "config.pbtxt" or not path.exists() or not path.stat().st_size:
        return None  # a full disk leaves an empty file
    # Versions without a record replaced the configs of core models and ensembles even if they were edited.
    if hashes is None and not is_recorded and path.parent.name not in PLACEMENTS:
        return None
    if hashes is not None and _hash(path.read_bytes()) in hashes:
        return None
    try:
        found = read_config(path)
    except RepositoryError as exc:
        raise BuildError(f"{exc}; move it elsewhere and build again") from exc
    return None if found == parse_config(text) else found


def _edited_settings(path: Path, found: Any, new: Any, *, is_recorded: bool) -> dict[str, str]:  # noqa: ANN401
    """Return the settings of an edited config that no build of this or the previous version writes."""
    step = path.parent.name
    if step not in PLACEMENTS:
        return {}
    known = [settings_in(step, base) for base in ([new] if is_recorded else [new, *_shipped(path)])]
    edits = {
        setting: value
        for setting, value in settings_in(step, found).items()
        if all(base.get(setting) != value for base in known)
    }
    if not is_recorded:  # the options of the last build, such as --device cuda, are not known
        for placement in PLACEMENTS[step].values():
            for setting, value in (("instances", placement.count), ("max_batch_size", placement.max_batch_size)):
                if edits.get(f"{step}.{setting}") == str(value):
                    del edits[f"{step}.{setting}"]
    return edits


def _is_shipped(found: Any, path: Path) -> bool:  # noqa: ANN401 - a protobuf message
    """Return whether a step's config equals a shipped one, except for settings and the effects of build options."""
    step, placement = path.parent.name, placement_in(found)
    known = {(placed.kind, placed.inputs_on_gpu) for placed in PLACEMENTS[step].values()}
    if placement is None or (placement.kind, placement.inputs_on_gpu) not in known:
        return False
    for base in _shipped(path):
        set_class_count(base, class_count_of(found) or 0)
        set_placement(base, placement)
        apply_settings(step, base, settings_in(step, found))
        for name in DERIVED_PARAMETERS.get(step, ()):
            if name in base.parameters and name in found.parameters:
                base.parameters[name].CopyFrom(found.parameters[name])
        if base == found:
            return True
    return False


def _shipped(path: Path) -> list[Any]:
    """Return the shipped configs of a step: of this version, and of the version that built the repository."""
    configs = [read_config(steps.MODEL_REPOSITORY / path.parent.name / "config.pbtxt")]
    with contextlib.suppress(FileNotFoundError, RepositoryError):
        configs.append(read_config(path.with_name(_SHIPPED)))
    return configs


def _is_accepted(setting: str, value: str) -> bool:
    try:
        parse_setting(f"{setting}={value}")
    except InvalidOptionError:
        return False
    return True


def remove_older_records(repository: Path) -> None:
    """Remove the files that older versions kept instead of repository.json."""
    for step in PLACEMENTS:
        remove(repository / step / _SHIPPED)
