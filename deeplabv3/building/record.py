"""What made a model.pt, kept inside the file."""

import hashlib
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torchvision

from deeplabv3.building.plan import Plan
from deeplabv3.errors import PASSING_ERRORS

_PROJECT = Path(__file__).resolve().parents[2]
# What a model.pt is made by: a change of one makes it out of date.
_SOURCES = (
    "build_models.py",
    "deeplabv3/models/checkpoints.py",
    "deeplabv3/building/fusion.py",
    "deeplabv3/models/variants.py",
    "deeplabv3/building/packing.py",
    "deeplabv3/building/plan.py",
    "deeplabv3/building/tracing.py",
    "deeplabv3/models/weights.py",
)


@dataclass(frozen=True, slots=True)
class BuildRecord:
    """What made a model.pt; it travels inside the file, where Triton ignores it and serve.py reads it."""

    variant: str
    weights: str
    class_names: tuple[str, ...]
    aux: bool
    pretrained_backbone: bool
    resnet_options: dict[str, Any]
    device: str
    precision: str
    cudnn: str
    torch: str
    torchvision: str
    sources_sha256: str

    FILE = "build.json"

    @classmethod
    def of(cls, plan: Plan) -> "BuildRecord":
        """Return the record that a build by these very sources would leave."""
        sources = hashlib.sha256()
        for name in _SOURCES:
            sources.update((_PROJECT / name).read_bytes())
        return cls(
            plan.variant,
            plan.source.label,
            plan.class_names,
            plan.aux,
            plan.pretrained_backbone,
            plan.resnet_options,
            plan.device,
            plan.precision,
            plan.cudnn,
            torch.__version__,
            torchvision.__version__,
            sources.hexdigest(),
        )

    @classmethod
    def read(cls, file: Path) -> "BuildRecord | None":
        """Return the record inside a model.pt, or None where there is none: no file, a damaged one, another build.

        Raises:
            OSError: the storage fails, one of PASSING_ERRORS.
        """
        try:
            with zipfile.ZipFile(file) as archive:
                if archive.testzip() is not None:
                    return None
                name = next(name for name in archive.namelist() if name.endswith(f"/extra/{cls.FILE}"))
                fields = json.loads(archive.read(name))
                return cls(**(fields | {"class_names": tuple(fields["class_names"])}))
        except OSError as exc:
            if exc.errno in PASSING_ERRORS:
                raise
            return None
        except (zipfile.BadZipFile, StopIteration, ValueError, TypeError, KeyError):
            return None
