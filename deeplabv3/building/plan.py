"""The plan of a build: a variant, its weights, its class names, and how it computes."""

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
"""The number of class ids that a UINT8 mask can hold."""

DEFAULT_PRECISIONS = {"cpu": "fp32", "cuda": "fp16"}
"""The values of --device, and the default precision of each."""

GPU_MAX_BATCH_SIZE = 32
"""The default largest batch of a core model on a GPU."""

GPU_INSTANCES = 2
"""The default number of instances of a core model per GPU.

While one instance computes, the other gathers its batch and copies it to the GPU, because Triton's PyTorch backend
copies in, computes and copies out one after the other, and waits for each.
"""

GPU_QUEUE_DELAY = 0.002
"""The default seconds that a core model on a GPU waits for more requests to fill a batch.

A batch uses a GPU better than a single picture, so a short wait pays off. A full batch does not wait.
"""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's statistics of R, G, B on the scale 0 to 1, with which the published weights were trained."""

MIN_AGREEMENT = 0.95
"""The default share of pixels with the same class as in fp32, below which an int8 model is refused."""

_log = logging.getLogger("build_models")


@dataclass(frozen=True, slots=True)
class Plan:
    """The plan of one variant: its core model, the ensemble around it, and the model for direct callers.

    Attributes:
        variant: one of VARIANTS.
        source: the weights.
        class_names: the name of each class, id 0 first.
        background: whether class 0 is a background.
        aux: whether the model for direct callers serves the auxiliary head's output.
        direct: whether there is a model for direct callers.
        mean: mean of the training pixels: R, G, B, on the scale 0 to 1.
        std: standard deviation of the training pixels, as `mean`.
        pretrained_backbone: whether an untrained model gets ImageNet weights in its backbone.
        resnet_options: arguments of torchvision's ResNet, with values that JSON can hold.
        device: the device on which Triton runs the models, "cpu" or "cuda".
        precision: precision of the computation, one of tracing.PRECISIONS.
        cudnn: how a GPU computes the convolutions, one of tracing.CUDNN_MODES; no effect on a CPU.
        max_batch_size: the largest batch of a core model on a GPU.
        instances: the number of instances of a core model per GPU.
        min_agreement: the least share of the pixels of held-out pictures, 0 to 1, that must get the same class in int8
            as in float32.
        max_queue_size: how many requests may wait for a core model on a GPU; 0 is no limit.
        queue_delay: seconds that a core model on a GPU waits for more requests to fill a batch.
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
        """The names of the models with a file: the core model and, if it is built, the model for direct callers."""
        return (self.core, self.direct_name) if self.direct else (self.core,)

    @property
    def ensemble(self) -> str:
        """The name of the ensemble."""
        return ensemble_name(self.variant)


def choose_class_names(given: tuple[str, ...] | None, count: int, *, background: bool = True) -> tuple[str, ...]:
    """Return the class names: those given, those of Pascal VOC for 21 classes, or names with the class ids.

    Args:
        given: the names, or None.
        count: the number of classes.
        background: whether class 0 is a background, as in Pascal VOC.

    Raises:
        BuildError: the number of names is not `count`, or `count` exceeds MAX_CLASSES.
    """
    if count > MAX_CLASSES:
        raise BuildError(
            f"the model has {count} classes, but at most {MAX_CLASSES} can be served, because masks are UINT8"
        )
    if given is not None:
        if len(given) != count:
            raise BuildError(
                f"--classes has {len(given)} names, but the model has {count} classes; give one name per class"
            )
        return given
    if count == len(VOC_CLASS_NAMES) and background:
        return VOC_CLASS_NAMES
    _log.info("no --classes: the names of the %d classes are made from their ids", count)
    first = "__background__" if background else "class_0"
    return (first, *(f"class_{number}" for number in range(1, count)))


def make_plans(options: argparse.Namespace) -> list[Plan]:
    """Return the plans for the options of the command line.

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
    # A checkpoint fits only one variant.
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
