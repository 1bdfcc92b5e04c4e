"""The build record of a model.pt, stored inside the file, where Triton ignores it."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplabv3.errors import PASSING_ERRORS, RepositoryError


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """The options, versions and sources that made a model.pt.

    Attributes:
        fields: the content of build.json; other versions of build_models.py write other fields.
    """

    fields: Mapping[str, Any]

    FILE = "build.json"

    @property
    def weights(self) -> str | None:
        """The label of the weights, or None."""
        label = self.fields.get("weights")
        return label if isinstance(label, str) else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """The name of each class, id 0 first."""
        return tuple(map(str, self.fields["class_names"]))

    @property
    def background(self) -> bool:
        """Whether class 0 is a background."""
        return bool(self.fields.get("background", True))

    @property
    def device(self) -> str:
        """The device of the model, "cpu" or "cuda"."""
        return str(self.fields.get("device", "cpu"))

    def as_extra_files(self) -> dict[str, str]:
        """Return the extra files for torch.jit.save."""
        return {self.FILE: json.dumps(dict(self.fields), indent=2)}


def read_record(model: Path) -> BuildRecord | None:
    """Return the build record in a model.pt, or None if there is none because another program wrote it.

    This reads the whole file and compares the checksum of each part.

    Raises:
        RepositoryError: a ValueError. The file does not exist, is damaged, or is of another version of the build.
        OSError: the storage failed with one of PASSING_ERRORS.
    """
    try:
        with zipfile.ZipFile(model) as archive:
            if damaged := archive.testzip():
                raise RepositoryError(f"{model} is damaged in {damaged}; run build_models.py")
            entry = next((name for name in archive.namelist() if name.endswith(f"/extra/{BuildRecord.FILE}")), None)
            fields: Any = json.loads(archive.read(entry)) if entry else None
    except OSError as exc:
        if exc.errno in PASSING_ERRORS:
            raise
        raise RepositoryError(f"{model} is not a TorchScript file ({exc}); run build_models.py") from exc
    except (zipfile.BadZipFile, UnicodeDecodeError, json.JSONDecodeError) as exc:
        raise RepositoryError(f"{model} is not a TorchScript file ({exc}); run build_models.py") from exc
    if not isinstance(fields, dict) or not fields:
        return None
    record = BuildRecord(fields)  # pyright: ignore[reportUnknownArgumentType] - JSON
    if not isinstance(record.fields.get("class_names"), list):
        raise RepositoryError(f"{model} was built by another version of build_models.py; run it again")
    return record
