"""What builds have written into a repository: its settings, and the hash of every config.pbtxt, in repository.json.

A config.pbtxt that is not as a build wrote it was edited by hand. Builds write these files whole, and so refuse such an
edit, with the --set that says the same where there is one.
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

# Versions without repository.json kept the config that they had shipped beside that of each step.
_SHIPPED = ".config.pbtxt.shipped"
NORMALIZATION = ("mean", "std")
"""Parameters of preprocess in versions before the core models normalized."""


@dataclass(frozen=True, slots=True)
class Written:
    """What repository.json holds.

    Attributes:
        settings: of the steps, by name: what --set gave and later builds keep.
        sha256: the hashes of each config.pbtxt, by its path in the repository: two while a build replaces it.
        normalization: "mean" and "std", where a version whose preprocess normalized was told them by --set.
    """

    settings: dict[str, str] = field(default_factory=dict[str, str])
    sha256: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    normalization: dict[str, str] = field(default_factory=dict[str, str])

    FILE = "repository.json"

    @classmethod
    def read(cls, repository: Path) -> "Written":
        """Return what earlier builds have written into a repository; nothing where that is not recorded.

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
                f"{file} is not as a build wrote it ({exc}); move it away and build again, with --set for its settings"
            ) from exc

    def check_normalization(self, plans: Sequence[Plan]) -> None:
        """Check that the core models are to normalize as preprocess was told to by an older version.

        Raises:
            BuildError: they are not; it names the options.
        """
        for name, told in self.normalization.items():
            if any(getattr(plan, name) != tuple(map(float, told.split(","))) for plan in plans):
                raise BuildError(
                    f"{self.FILE} has preprocess.{name}={told} of a version whose preprocess normalized; the core "
                    f"models do it now: build with {_normalizing(self.normalization)}"
                )

    def without(self, names: Iterable[str]) -> "Written":
        """Return this without what is recorded of some files."""
        left_out = set(names)
        kept = {name: hashes for name, hashes in self.sha256.items() if name not in left_out}
        return Written(self.settings, kept, self.normalization)

    def after(self, texts: Mapping[str, str], settings: Mapping[str, str]) -> "Written":
        """Return what is recorded when a build has written texts, by path in the repository."""
        return Written(dict(settings), self.sha256 | {name: [_hash(text.encode())] for name, text in texts.items()})

    def during(self, repository: Path, texts: Mapping[str, str], settings: Mapping[str, str]) -> "Written":
        """Return what is recorded while a build writes: what is killed leaves files of both builds."""
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
    """Return the options for a mean and a standard deviation that a config.pbtxt or a setting had."""
    return " ".join(f"--{name}={''.join(value.split())}" for name, value in found.items())


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def refuse_edits(repository: Path, texts: Mapping[str, str], written: Written, given: Mapping[str, str]) -> None:
    """Refuse a build over a config.pbtxt that was edited by hand.

    Args:
        repository: the model repository.
        texts: what the build is to write, by path in the repository.
        written: what earlier builds have written.
        given: the settings of this build's --set, which replace an edit.

    Raises:
        BuildError: it names the files, and what to do.
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
            keeping += (
                "; with --device cuda, --instances, --max-batch-size, --queue-delay and --max-queue-size set a core"
            )
        if older:
            keeping += f"; the core models normalize now, with {_normalizing(older)}"
        raise BuildError(
            f"{', '.join(map(str, lost))}: edited by hand in a way that no --set says, or of another version; move "
            f"{them} away and build again{keeping}"
        )
    if replaceable:
        raise BuildError(
            f"{', '.join(replaceable)}: edited by hand, and a build writes these files whole; build with "
            f"{as_options(options)}, which says the same, or move what you edited away to drop the edit"
        )


def _edited(path: Path, text: str, hashes: list[str] | None, *, is_recorded: bool) -> Any:  # noqa: ANN401 - a protobuf message
    """Return the config in a config.pbtxt that is not as a build wrote or will write it, else None."""
    if path.name != "config.pbtxt" or not path.exists() or not path.stat().st_size:
        return None  # an empty file is what a full disk leaves
    # Versions without a record replaced the configs of core models and ensembles, whatever had been edited there.
    if hashes is None and not is_recorded and path.parent.name not in PLACEMENTS:
        return None
    if hashes is not None and _hash(path.read_bytes()) in hashes:
        return None
    try:
        found = read_config(path)
    except RepositoryError as exc:
        raise BuildError(f"{exc}; move it away and build again") from exc
    return None if found == parse_config(text) else found


def _edited_settings(path: Path, found: Any, new: Any, *, is_recorded: bool) -> dict[str, str]:  # noqa: ANN401
    """Return the settings of an edited config that neither a build of this version nor the one before it writes."""
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
    """Return whether a step's config is one that was shipped, but for its settings and what options of a build set."""
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
    """Return the configs of a step that were shipped: with this version, and with the one that built the repository."""
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
    """Remove what older versions kept in place of repository.json."""
    for step in PLACEMENTS:
        remove(repository / step / _SHIPPED)
