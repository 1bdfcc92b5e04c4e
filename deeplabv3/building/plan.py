"""What is asked of a build: a variant, its weights, and the classes under which it is served."""

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from deeplabv3.errors import BuildError
from deeplabv3.models.variants import VOC_CLASS_NAMES
from deeplabv3.models.weights import WeightsSource

NORM_LAYERS: dict[str, type[nn.Module]] = {
    "BatchNorm2d": nn.BatchNorm2d,
    "FrozenBatchNorm2d": FrozenBatchNorm2d,
    "InstanceNorm2d": nn.InstanceNorm2d,
}
"""What --norm-layer may name."""

MAX_CLASSES = 256
"""The class ids that the UINT8 masks on the wire can hold."""

DEFAULT_PRECISIONS = {"cpu": "fp32", "cuda": "fp16"}
"""What --device may name, and the precision for each."""

GPU_MAX_BATCH_SIZE = 32
"""The largest batch of a core model on a GPU, unless another is asked for."""

GPU_INSTANCES = 2
"""The instances of a core model on a GPU, unless others are asked for.

While one computes, the other gathers its batch and copies it to the GPU: Triton's PyTorch backend copies in, computes
and copies out one after the other, waiting for each.
"""

_log = logging.getLogger("build_models")


@dataclass(frozen=True, slots=True)
class Plan:
    """One core model and the ensemble around it, as they are to be built.

    Attributes:
        variant: one of VARIANTS.
        source: the weights.
        class_names: the name of each class, the background first.
        aux: whether to serve the auxiliary head's output.
        pretrained_backbone: whether an untrained model gets the ImageNet weights in its backbone.
        resnet_options: arguments of torchvision's ResNet; values that JSON can hold.
        device: where Triton runs it, "cpu" or "cuda".
        precision: in what it computes, one of tracing.PRECISIONS.
        cudnn: how a GPU computes its convolutions, one of tracing.CUDNN_MODES; without effect on a CPU.
        max_batch_size: the largest batch of a core model on a GPU.
        instances: of a core model on a GPU.
        max_queue_size: the most requests that wait for a core model on a GPU, 0 for any number.
    """

    variant: str
    source: WeightsSource
    class_names: tuple[str, ...] = VOC_CLASS_NAMES
    aux: bool = False
    pretrained_backbone: bool = False
    resnet_options: dict[str, Any] = field(default_factory=dict[str, Any])
    device: str = "cpu"
    precision: str = "fp32"
    cudnn: str = "heuristic"
    max_batch_size: int = GPU_MAX_BATCH_SIZE
    instances: int = GPU_INSTANCES
    max_queue_size: int = 0

    @property
    def core(self) -> str:
        """The name of the core model."""
        return f"deeplabv3_{self.variant}"

    @property
    def ensemble(self) -> str:
        """The name of the ensemble."""
        return f"segment_{self.variant}"


def read_class_names(path: Path) -> tuple[str, ...]:
    """Read one class name a line, the background's first; blank lines at the end are none.

    Raises:
        BuildError: the file cannot be read, or has no name, an empty, a repeated or an unprintable one.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().split("\n")]
    except (OSError, UnicodeDecodeError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else f"no UTF-8 text ({exc})"
        raise BuildError(f"--classes {path}: {reason}; give a file with one class name a line") from exc
    if names == [""]:
        raise BuildError(f"--classes {path}: the file has no names; give one class name a line")
    for number, name in enumerate(names, start=1):
        if not name.isprintable():
            raise BuildError(f"--classes {path}: line {number} has characters that cannot be printed: {name!a}")
        first = names.index(name) + 1
        if not name or first != number:
            fault = f"repeats {name!r} of line {first}" if name else "is empty"
            raise BuildError(f"--classes {path}: line {number} {fault}; each class needs a name of its own")
    return tuple(names)


def choose_class_names(given: tuple[str, ...] | None, count: int) -> tuple[str, ...]:
    """Return the names for a number of classes: those given, those of Pascal VOC for 21, or numbers.

    Raises:
        BuildError: another number of names was given, or the masks cannot hold so many classes.
    """
    if count > MAX_CLASSES:
        raise BuildError(
            f"the model has {count} classes, and the masks on the wire are UINT8: at most {MAX_CLASSES} can be served"
        )
    if given is not None:
        if len(given) != count:
            raise BuildError(f"--classes has {len(given)} names, and the model has {count} classes; give one for each")
        return given
    if count == len(VOC_CLASS_NAMES):
        return VOC_CLASS_NAMES
    _log.info("no --classes: the %d classes are served under numbers", count)
    return ("__background__", *(f"class_{number}" for number in range(1, count)))
