"""Load published weights and checkpoint files into modules."""

import contextlib
import hashlib
import pickle
import socket
import sys
import urllib.error
import urllib.parse
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torchvision.models import WeightsEnum

from deeplabv3.errors import CheckpointError, WeightsUnavailableError
from deeplabv3.models.checkpoints import COUNTER, read_checkpoint, shortened, variant_of
from deeplabv3.models.names import PRETRAINED, UNTRAINED

_DOWNLOAD_TIMEOUT_SECONDS = 30.0
# The bias of the classifier's last convolution, with one value per class.
_CLASSES_KEY = "classifier.4.bias"
_HEAD_PREFIX = "aux_classifier."


@dataclass(frozen=True, slots=True)
class WeightsSource:
    """Where a model's weights come from.

    Attributes:
        label: the label in the configs: PRETRAINED, UNTRAINED, or a file's name and the start of its hash.
        state: the state dict of a checkpoint file; None for PRETRAINED and UNTRAINED.
    """

    label: str
    state: Mapping[str, torch.Tensor] | None = None

    @classmethod
    def of(cls, weights: str) -> "WeightsSource":
        """Read PRETRAINED, UNTRAINED, or the path of a checkpoint in torchvision's format.

        A checkpoint is a state dict, or contains one: see `read_checkpoint`.

        Raises:
            CheckpointError: a ValueError. The file does not exist, is not a checkpoint, or is one of another model.
        """
        if weights in {PRETRAINED, UNTRAINED}:
            return cls(weights)
        path = Path(weights)
        if path.exists() and not path.is_file():
            raise CheckpointError(f"the weights {weights} are not a regular file; give the path of a checkpoint")
        try:
            with path.open("rb") as file:
                hasher = hashlib.sha256()
                while block := file.read(1 << 20):
                    hasher.update(block)
        except OSError as exc:
            raise CheckpointError(
                f"the weights {weights} cannot be read: {exc.strerror}; give {PRETRAINED}, a checkpoint file, or "
                f"{UNTRAINED}"
            ) from exc
        # The label goes into a protobuf, which must be UTF-8.
        name = path.name.encode("utf-8", "replace").decode("utf-8")
        return cls(f"{name}@sha256:{hasher.hexdigest()[:16]}", read_checkpoint(path))

    @property
    def class_count(self) -> int | None:
        """The number of classes of a checkpoint; None for other weights, or if it has no classifier."""
        bias = (self.state or {}).get(_CLASSES_KEY)
        return None if bias is None or bias.ndim != 1 else len(bias)

    @property
    def has_auxiliary_head(self) -> bool:
        """Whether the weights can fill an auxiliary head: always, except for a checkpoint without one."""
        return self.state is None or any(key.startswith(_HEAD_PREFIX) for key in self.state)

    @property
    def variant(self) -> str | None:
        """The variant of a checkpoint; None if its keys do not show it, or for other weights."""
        return variant_of(self.state or ())


def download(weights: WeightsEnum, *, progress: bool) -> dict[str, torch.Tensor]:
    """Return published weights, from torch's cache if they are in it; their hash is checked in either case.

    Raises:
        WeightsUnavailableError: an OSError. The download failed, or the file in the cache is damaged.
    """
    cache = Path(torch.hub.get_dir()) / "checkpoints"
    cached = cache / Path(urllib.parse.urlparse(weights.url).path).name
    try:
        if cached.exists():
            _check_hash(cached)
        # torch prints the start of a download to stdout.
        with _socket_timeout(_DOWNLOAD_TIMEOUT_SECONDS), contextlib.redirect_stdout(sys.stderr):
            return dict(weights.get_state_dict(progress=progress, check_hash=True, weights_only=True))
    except (urllib.error.URLError, TimeoutError, ConnectionError) as exc:
        raise WeightsUnavailableError(
            f"the weights at {weights.url} could not be downloaded: {exc}; put the file at {cached}"
        ) from exc
    except (RuntimeError, OSError, pickle.UnpicklingError) as exc:
        remedy = (
            f"replace {cached}" if cached.exists() else f"put the file at {cached}, or set TORCH_HOME to another folder"
        )
        raise WeightsUnavailableError(f"the weights at {weights.url} could not be loaded: {exc}; {remedy}") from exc


def _check_hash(cached: Path) -> None:
    """Compare a cached file with the start of its SHA-256 in its name, which torch does only after a download."""
    expected = cached.stem.rpartition("-")[2]
    actual = hashlib.sha256(cached.read_bytes()).hexdigest()
    if not actual.startswith(expected):
        raise OSError(f"{cached} is damaged (SHA-256 {actual[:8]}..., expected {expected}...)")


@contextlib.contextmanager
def _socket_timeout(seconds: float) -> Generator[None]:
    """Set a timeout for each read of torch's downloader, which has none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def load_state(module: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    """Load a state dict into a module.

    Raises:
        CheckpointError: a ValueError. Keys are missing, unexpected or of another shape; the message names them.
    """
    expected = module.state_dict()
    given = {key: value for key, value in state.items() if not key.endswith(COUNTER)}
    wanted = {key for key in expected if not key.endswith(COUNTER)}
    misshapen = [
        f"{key} {tuple(given[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in sorted(wanted & given.keys())
        if given[key].shape != expected[key].shape
    ]
    problems = {
        "missing": sorted(wanted - given.keys()),
        "unexpected": sorted(given.keys() - wanted),
        "of another shape": misshapen,
    }
    found = [f"{len(keys)} {kind} ({shortened(keys)})" for kind, keys in problems.items() if keys]
    if found:
        raise CheckpointError(
            f"the weights {source} do not fit the model: keys {', '.join(found)}; give the ResNet options of the "
            "training, such as width_per_group, or another checkpoint"
        )
    counters = {key: state[key] for key in state.keys() & expected.keys() if state[key].shape == expected[key].shape}
    module.load_state_dict(given | counters, strict=False)
