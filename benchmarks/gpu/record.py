"""What a run found, on disk after every step, and where it ran."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from benchmarks.gpu.settings import Settings

NO_GPU = (
    "MEASURED ON A CPU: a dry run of the script. None of its figures is one of a GPU, and none tells anything of one."
)


class Record:
    """The results so far. What is added is written at once, so that a run that is cut off loses nothing.

    Attributes:
        found: section -> what it found, values that JSON can hold.
    """

    def __init__(self, settings: Settings) -> None:
        self.found: dict[str, Any] = {"device": settings.device, "environment": environment(settings.device)}
        if not settings.on_gpu:
            self.found["warning"] = NO_GPU
        self._file = settings.output / "gpu.json"
        settings.output.mkdir(parents=True, exist_ok=True)

    def add(self, section: str, found: object) -> None:
        """Add what a section found, or what it has found so far."""
        self.found[section] = found
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps(self.found, indent=2) + "\n", encoding="utf-8")
        partial.replace(self._file)

    def skip(self, section: str, reason: str) -> None:
        """Note why a section, or a part of one, was not measured."""
        self.add("skipped", {**self.found.get("skipped", {}), section: reason})


def environment(device: str) -> dict[str, Any]:
    """Return what the figures depend on: the card, its driver, and the versions of the software."""
    found: dict[str, Any] = {
        "at": dt.datetime.now(dt.timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "numpy": _version("numpy"),
        "tritonserver": {"0.7.0": "2.51.0"}.get(_version("nvidia-pytriton") or "", _version("nvidia-pytriton")),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "cores": len(os.sched_getaffinity(0)),
        "shared_memory_bytes": shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,  # noqa: S108
    }
    if device == "cuda":
        properties: Any = torch.cuda.get_device_properties(0)
        found |= {
            "card": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "nvidia-smi": _nvidia_smi(),
        }
    return found


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _nvidia_smi() -> str | None:
    """Return the driver, the clocks and the power limit, which decide what a card can do."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    fields = "name,driver_version,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu"
    done = subprocess.run(  # noqa: S603  the driver's own program
        [program, f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or None
