"""DeepLabV3 in PyTorch, by the functions of mlverse's torchvision, and what makes Triton models of it.

from deeplabv3 import model_deeplabv3_resnet50

model = model_deeplabv3_resnet50(pretrained=True).eval()
out = model(batch)["out"]  # (N, 3, H, W) float32, normalised -> (N, 21, H, W) logits
"""

from deeplabv3.errors import (
    BuildError,
    CheckpointError,
    DeepLabV3Error,
    InvalidOptionError,
    RetryableBuildError,
    UnknownOptionError,
    WeightsUnavailableError,
)
from deeplabv3.models import VARIANTS, VOC_CLASS_NAMES, model_deeplabv3_resnet50, model_deeplabv3_resnet101
from deeplabv3.weights import PRETRAINED, UNTRAINED, WeightsSource

__all__ = [
    "PRETRAINED",
    "UNTRAINED",
    "VARIANTS",
    "VOC_CLASS_NAMES",
    "BuildError",
    "CheckpointError",
    "DeepLabV3Error",
    "InvalidOptionError",
    "RetryableBuildError",
    "UnknownOptionError",
    "WeightsSource",
    "WeightsUnavailableError",
    "model_deeplabv3_resnet50",
    "model_deeplabv3_resnet101",
]
