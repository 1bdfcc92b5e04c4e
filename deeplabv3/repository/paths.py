"""Paths in a model repository."""

from pathlib import Path


def model_file(repository: Path, core: str) -> Path:
    """Return the path of a core model's TorchScript file."""
    return repository / core / "1" / "model.pt"
