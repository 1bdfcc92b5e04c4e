"""An untrained model whose batch normalisation fits its activations, as that of a trained one does.

With the statistics that layers start with, the values of an untrained ResNet-101 grow from block to block beyond what
fp16 can hold. A few passes in training mode set them, and the logits come out of order 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from deeplabv3 import WeightsSource
from deeplabv3.models.variants import load_model

if TYPE_CHECKING:
    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

_PASSES = 4
_BATCH = 4
_SIZE = 128


def calibrated(variant: str, *, width: int, device: str) -> DeepLabV3:
    """Return a model in inference mode on the CPU; the weights come from a fixed seed, the statistics from noise.

    Args:
        variant: one of VARIANTS.
        width: the channels of a group in ResNet's first stage; 64 is the published model.
        device: where the statistics are computed.
    """
    model = load_model(variant, WeightsSource("none"), resnet_options={"width_per_group": width})
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # the mean of all passes
        norm.reset_running_stats()
    generator = torch.Generator().manual_seed(0)
    model.to(device).train()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for _ in range(_PASSES):
            # Blobs with noise on them: pictures are smooth, and noise alone averages out.
            coarse = torch.randn((_BATCH, 3, 9, 9), generator=generator)
            fine = torch.randn((_BATCH, 3, _SIZE, _SIZE), generator=generator)
            smooth = nn.functional.interpolate(coarse, size=(_SIZE, _SIZE), mode="bicubic", align_corners=False)
            model((smooth + 0.2 * fine).to(device))
    return model.cpu().eval()
