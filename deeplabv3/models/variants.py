"""The model functions of mlverse's torchvision, in PyTorch."""

import inspect
import operator
import warnings
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex, cast

import torch
from torchvision.models import (
    ResNet,
    ResNet50_Weights,
    ResNet101_Weights,
    WeightsEnum,
    resnet50,
    resnet101,
)

# torchvision's own DeepLabV3 uses this class of a private module.
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation import DeepLabV3_ResNet50_Weights, DeepLabV3_ResNet101_Weights
from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
from torchvision.models.segmentation.fcn import FCNHead

from deeplabv3.errors import InvalidOptionError, UnknownOptionError
from deeplabv3.models.names import PRETRAINED
from deeplabv3.models.weights import WeightsSource, download, load_state

_BACKBONES: dict[str, Callable[..., ResNet]] = {"resnet50": resnet50, "resnet101": resnet101}
_BACKBONE_WEIGHTS: dict[str, WeightsEnum] = {
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "resnet101": ResNet101_Weights.IMAGENET1K_V1,
}
PUBLISHED_WEIGHTS: dict[str, WeightsEnum] = {
    "resnet50": DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1,
    "resnet101": DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1,
}

VOC_CLASS_NAMES: tuple[str, ...] = tuple(PUBLISHED_WEIGHTS["resnet50"].meta["categories"])
"""The 21 classes of the published weights, which both variants share: the background, then 20 of Pascal VOC."""

BACKBONE_WEIGHTS_NAME = "IMAGENET1K_V1"

# The channels of ResNet's third and fourth stage, which do not depend on `groups` and `width_per_group`.
_AUX_CHANNELS = 1024
_OUT_CHANNELS = 2048

_BACKBONE_IGNORED = "pretrained_backbone is ignored, because the weights include a backbone"
# Any seed works; with this one the masks of the demo's cat do not look like a success.
_UNTRAINED_SEED = 5

# The arguments of torchvision's ResNet that the variant determines; the others may be given as options.
_FIXED = {"self", "block", "layers", "num_classes"}
RESNET_OPTIONS: tuple[str, ...] = tuple(
    name for name in inspect.signature(ResNet.__init__).parameters if name not in _FIXED
)
OWN_OPTIONS = ("pretrained", "progress", "num_classes", "aux_loss", "pretrained_backbone")
# Output stride 8 instead of 32: the third and fourth stage dilate.
_DILATION = (False, True, True)


def model_deeplabv3_resnet50(
    *,
    pretrained: bool = False,
    progress: bool = True,
    num_classes: int | None = 21,
    aux_loss: bool | None = None,
    pretrained_backbone: bool = False,
    **resnet_options: Any,  # noqa: ANN401 - any argument of torchvision's ResNet
) -> DeepLabV3:
    """Make a DeepLabV3 with a ResNet-50 backbone, in training mode as torchvision's functions do.

    Its forward takes (N, 3, H, W) float32, normalized with ImageNet's mean and standard deviation, and returns a dict
    of float32 logits (N, num_classes, H, W): `out`, and `aux` if there is an auxiliary head.

    Args:
        pretrained: load the COCO_WITH_VOC_LABELS_V1 weights into the whole model; their hash is checked.
        progress: show a progress bar of a download on stderr.
        num_classes: the number of classes including the background; None is the number of the weights, else 21.
        aux_loss: whether to add an FCN head on the third stage. None adds it if `pretrained`, because the weights have
            it; False with `pretrained` drops it after loading, which does not change `out`.
        pretrained_backbone: load IMAGENET1K_V1 into the backbone; ignored, with a warning, if `pretrained`.
        resnet_options: passed to torchvision's ResNet: groups, width_per_group, replace_stride_with_dilation (default
            False, True, True: output stride 8), norm_layer, zero_init_residual.

    Raises:
        InvalidOptionError: a ValueError. `num_classes` is below 1 or not that of the weights, or the ResNet refuses an
            option's value.
        UnknownOptionError: a TypeError. ResNet does not have an option.
        CheckpointError: a ValueError. The pretrained weights do not fit a ResNet with these options.
        WeightsUnavailableError: an OSError. A download failed, or the file in the cache is damaged.
    """
    return make_model(
        "resnet50",
        pretrained=pretrained,
        progress=progress,
        num_classes=num_classes,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        resnet_options=resnet_options,
    )


def model_deeplabv3_resnet101(
    *,
    pretrained: bool = False,
    progress: bool = True,
    num_classes: int | None = 21,
    aux_loss: bool | None = None,
    pretrained_backbone: bool = False,
    **resnet_options: Any,  # noqa: ANN401 - any argument of torchvision's ResNet
) -> DeepLabV3:
    """Make a DeepLabV3 with a ResNet-101 backbone; see `model_deeplabv3_resnet50` for arguments and errors."""
    return make_model(
        "resnet101",
        pretrained=pretrained,
        progress=progress,
        num_classes=num_classes,
        aux_loss=aux_loss,
        pretrained_backbone=pretrained_backbone,
        resnet_options=resnet_options,
    )


def make_model(
    variant: str,
    *,
    pretrained: bool,
    progress: bool,
    num_classes: int | None,
    aux_loss: bool | None,
    pretrained_backbone: bool,
    resnet_options: Mapping[str, Any],
) -> DeepLabV3:
    """Make the DeepLabV3 of one of VARIANTS; see `model_deeplabv3_resnet50`."""
    classes = _class_count(num_classes, pretrained=pretrained)
    backbone = _resnet(variant, resnet_options)
    if pretrained and pretrained_backbone:
        warnings.warn(_BACKBONE_IGNORED, UserWarning, stacklevel=3)
    elif pretrained_backbone:
        state = download(_BACKBONE_WEIGHTS[variant], progress=progress)
        load_state(backbone, state, f"{BACKBONE_WEIGHTS_NAME} of the backbone")
    # In the order of torchvision's own function, so that a seed gives the same untrained weights.
    features = IntermediateLayerGetter(backbone, return_layers={"layer4": "out", "layer3": "aux"})
    # The published weights always have the head: it is created for loading, and dropped afterwards if not wanted.
    aux_classifier = FCNHead(_AUX_CHANNELS, classes) if aux_loss or pretrained else None
    model = DeepLabV3(features, DeepLabHead(_OUT_CHANNELS, classes), aux_classifier)
    if pretrained:
        load_state(model, download(PUBLISHED_WEIGHTS[variant], progress=progress), PRETRAINED)
    if aux_classifier is None or aux_loss is False:
        drop_auxiliary_head(model)
    return model


def drop_auxiliary_head(model: DeepLabV3) -> None:
    """Remove the auxiliary head, so that forward computes and returns only `out`."""
    model.aux_classifier = None
    features = cast("IntermediateLayerGetter", model.backbone)
    features.return_layers = {"layer4": "out"}


def _class_count(num_classes: int | None, *, pretrained: bool) -> int:
    trained = len(VOC_CLASS_NAMES)
    if num_classes is None:
        return trained
    if not _is_positive(num_classes):
        raise InvalidOptionError(f"num_classes must be an integer from 1, or None, got {num_classes!r}")
    if pretrained and num_classes != trained:
        raise InvalidOptionError(
            f"num_classes={num_classes} does not fit the pretrained weights {PRETRAINED}, which have {trained} "
            "classes; leave it out, or use only a pretrained backbone"
        )
    return num_classes


def _is_positive(value: object) -> bool:
    """Return whether a value is an integer from 1, of Python or numpy."""
    return isinstance(value, SupportsIndex) and not isinstance(value, bool) and operator.index(value) > 0


def _resnet(variant: str, options: Mapping[str, Any]) -> ResNet:
    unknown = sorted(options.keys() - set(RESNET_OPTIONS))
    if unknown:
        raise UnknownOptionError(
            f"unknown argument {', '.join(unknown)}; use {', '.join(OWN_OPTIONS)}, or one of the ResNet: "
            f"{', '.join(RESNET_OPTIONS)}"
        )
    for name in ("groups", "width_per_group"):  # torch accepts 0 and makes convolutions without channels
        if not _is_positive(options.get(name, 1)):
            raise InvalidOptionError(f"{name} must be an integer from 1, got {options[name]!r}")
    try:
        return _BACKBONES[variant](**{"replace_stride_with_dilation": list(_DILATION), **options})
    except Exception as exc:  # the type of torch's error depends on the option and the type of its value
        given = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise InvalidOptionError(f"torchvision's ResNet cannot be made with {given}: {exc}") from exc


def load_model(
    variant: str,
    source: WeightsSource,
    *,
    num_classes: int | None = None,
    pretrained_backbone: bool = False,
    progress: bool = True,
    resnet_options: Mapping[str, Any] | None = None,
) -> DeepLabV3:
    """Return a model ready for inference, with an auxiliary head if the weights have one.

    Args:
        variant: one of VARIANTS.
        source: its weights; UNTRAINED weights come from a fixed seed, so that two models are equal.
        num_classes: the number of classes; None is the number of the weights, else 21.
        pretrained_backbone: load IMAGENET1K_V1 into the backbone of an untrained model; ignored, with a warning, for
            weights that include a backbone.
        progress: show a progress bar of a download on stderr.
        resnet_options: passed to torchvision's ResNet.

    Raises:
        DeepLabV3Error: as in `model_deeplabv3_resnet50`.
    """
    options = resnet_options or {}
    if source.label == PRETRAINED:
        model = make_model(
            variant,
            pretrained=True,
            progress=progress,
            num_classes=num_classes,
            aux_loss=True,
            pretrained_backbone=pretrained_backbone,
            resnet_options=options,
        )
        return model.eval()
    if source.variant not in {None, variant}:
        raise InvalidOptionError(
            f"the weights {source.label} are for {source.variant}, not for {variant}; build {source.variant}"
        )
    if source.state is not None and pretrained_backbone:
        warnings.warn(_BACKBONE_IGNORED, UserWarning, stacklevel=2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_UNTRAINED_SEED)
        model = make_model(
            variant,
            pretrained=False,
            progress=progress,
            num_classes=agreed_class_count(source, num_classes),
            aux_loss=source.has_auxiliary_head,
            pretrained_backbone=pretrained_backbone and source.state is None,
            resnet_options=options,
        )
    if source.state is not None:
        load_state(model, source.state, source.label)
    return model.eval()


def agreed_class_count(source: WeightsSource, num_classes: int | None) -> int:
    """Return the number of classes that weights and argument agree on.

    Raises:
        InvalidOptionError: a ValueError. They do not agree, or the number is below 1.
    """
    if source.label == PRETRAINED:
        return _class_count(num_classes, pretrained=True)
    trained = source.class_count
    if num_classes is not None and trained not in {None, num_classes}:
        raise InvalidOptionError(
            f"num_classes={num_classes} does not fit the weights {source.label}, which have {trained} classes; leave "
            "num_classes out"
        )
    return _class_count(trained if num_classes is None else num_classes, pretrained=False)
