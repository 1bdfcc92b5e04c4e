"""What is asked of a build: a variant, its weights, the classes under which it is served, and how it computes."""

import argparse
import logging
from dataclasses import dataclass, field
from typing import Any

from deeplabv3.building import tracing
from deeplabv3.errors import BuildError, RepositoryError
from deeplabv3.models.names import UNTRAINED, VARIANTS, core_name, direct_name, ensemble_name
from deeplabv3.models.variants import RESNET_OPTIONS, VOC_CLASS_NAMES, agreed_class_count
from deeplabv3.models.weights import WeightsSource
from deeplabv3.repository.class_names import read_class_names

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

GPU_QUEUE_DELAY = 0.002
"""The longest that a request waits for others to share its batch on a GPU, in seconds, unless another is asked for.

It pays because a batch uses a GPU better than a picture alone. A full batch leaves at once.
"""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's statistics of R, G, B on the scale 0 to 1, with which the published weights were trained."""

MIN_AGREEMENT = 0.95
"""The share of pixels below which an int8 model is refused, unless another is asked for."""

_log = logging.getLogger("build_models")


@dataclass(frozen=True, slots=True)
class Plan:
    """One variant as it is to be built: its core model, the ensemble around it, and the model for direct callers.

    Attributes:
        variant: one of VARIANTS.
        source: the weights.
        class_names: the name of each class, id 0 first.
        background: whether class 0 is a background.
        aux: whether the model for direct callers serves the auxiliary head's output.
        direct: whether there is a model for direct callers.
        mean: of the pixels with which the weights were trained: R, G, B, on the scale 0 to 1.
        std: their standard deviation, likewise.
        pretrained_backbone: whether an untrained model gets the ImageNet weights in its backbone.
        resnet_options: arguments of torchvision's ResNet; values that JSON can hold.
        device: where Triton runs it, "cpu" or "cuda".
        precision: in what it computes, one of tracing.PRECISIONS.
        cudnn: how a GPU computes its convolutions, one of tracing.CUDNN_MODES; without effect on a CPU.
        max_batch_size: the largest batch of a core model on a GPU.
        instances: of a core model on a GPU.
        min_agreement: the least share of the pixels of held-out pictures to which int8 gives the class that float32
            does.
        max_queue_size: the most requests that wait for a core model on a GPU, 0 for any number.
        queue_delay: the longest that a request waits for others to share its batch on a GPU, in seconds.
    """

    variant: str
    source: WeightsSource
    class_names: tuple[str, ...] = VOC_CLASS_NAMES
    background: bool = True
    aux: bool = False
    direct: bool = True
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    pretrained_backbone: bool = False
    resnet_options: dict[str, Any] = field(default_factory=dict[str, Any])
    device: str = "cpu"
    precision: str = DEFAULT_PRECISIONS["cpu"]
    cudnn: str = tracing.CUDNN_MODES[0]
    max_batch_size: int = GPU_MAX_BATCH_SIZE
    instances: int = GPU_INSTANCES
    max_queue_size: int = 0
    queue_delay: float = GPU_QUEUE_DELAY
    min_agreement: float = MIN_AGREEMENT

    @property
    def core(self) -> str:
        """The name of the core model."""
        return core_name(self.variant)

    @property
    def direct_name(self) -> str:
        """The name of the model for direct callers."""
        return direct_name(self.variant)

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the models with a file: the core model, and that for direct callers if there is one."""
        return (self.core, self.direct_name) if self.direct else (self.core,)

    @property
    def ensemble(self) -> str:
        """The name of the ensemble."""
        return ensemble_name(self.variant)


def choose_class_names(given: tuple[str, ...] | None, count: int, *, background: bool = True) -> tuple[str, ...]:
    """Return the names for a number of classes: those given, those of Pascal VOC for 21, or numbers.

    Args:
        given: the names, or None.
        count: of the classes.
        background: whether class 0 is a background, as in Pascal VOC.

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
    if count == len(VOC_CLASS_NAMES) and background:
        return VOC_CLASS_NAMES
    _log.info("no --classes: the %d classes are served under numbers", count)
    first = "__background__" if background else "class_0"
    return (first, *(f"class_{number}" for number in range(1, count)))


def make_plans(options: argparse.Namespace) -> list[Plan]:
    """Return the plans that the options ask for.

    Raises:
        DeepLabV3Error: the weights or the classes cannot be read, or do not fit each other.
    """
    source = WeightsSource.of(options.weights)
    names = None
    if options.classes is not None:
        try:
            names = read_class_names(options.classes)
        except RepositoryError as exc:
            raise BuildError(f"--classes {options.classes}: {exc}") from exc
    wanted = options.num_classes
    if wanted is None and names is not None and source.label == UNTRAINED:
        wanted = len(names)
    class_names = choose_class_names(names, agreed_class_count(source, wanted), background=not options.no_background)
    resnet_options = {name: getattr(options, name) for name in RESNET_OPTIONS if getattr(options, name) is not None}
    # A checkpoint fits one variant only.
    variants = options.variant or ([source.variant] if source.variant else VARIANTS)
    return [
        Plan(
            variant,
            source,
            class_names,
            background=not options.no_background,
            aux=options.aux_loss,
            direct=not options.no_direct,
            mean=options.mean,
            std=options.std,
            pretrained_backbone=options.pretrained_backbone,
            resnet_options=resnet_options,
            device=options.device,
            precision=options.precision or DEFAULT_PRECISIONS[options.device],
            cudnn=options.cudnn or tracing.CUDNN_MODES[0],
            max_batch_size=options.max_batch_size or GPU_MAX_BATCH_SIZE,
            instances=options.instances or GPU_INSTANCES,
            max_queue_size=options.max_queue_size or 0,
            queue_delay=GPU_QUEUE_DELAY if options.queue_delay is None else options.queue_delay,
            min_agreement=MIN_AGREEMENT if options.min_agreement is None else options.min_agreement,
        )
        for variant in dict.fromkeys(variants)
    ]
