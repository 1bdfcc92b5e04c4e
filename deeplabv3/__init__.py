"""DeepLabV3 in PyTorch, with the functions of mlverse's torchvision, and the code that makes Triton models of it.

from deeplabv3 import model_deeplabv3_resnet50

model = model_deeplabv3_resnet50(pretrained=True).eval()
out = model(batch)["out"]  # (N, 3, H, W) float32, normalized -> (N, 21, H, W) logits
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deeplabv3.errors import (
        BuildError,
        CheckpointError,
        DeepLabV3Error,
        InvalidOptionError,
        RetryableBuildError,
        UnknownOptionError,
        WeightsUnavailableError,
    )
    from deeplabv3.models.names import PRETRAINED, UNTRAINED, VARIANTS
    from deeplabv3.models.variants import VOC_CLASS_NAMES, model_deeplabv3_resnet50, model_deeplabv3_resnet101
    from deeplabv3.models.weights import WeightsSource

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


def __getattr__(name: str) -> object:
    """Import the module of a name at its first use, because `deeplabv3.environment` runs without torch installed."""
    if name in __all__:
        for module in ("errors", "models.names", "models.weights", "models.variants"):
            found = vars(import_module(f"{__name__}.{module}"))
            if name in found:
                globals()[name] = found[name]
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
