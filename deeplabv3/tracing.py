"""A DeepLabV3 as a TorchScript file that Triton serves, and the check that it computes what PyTorch does."""

import shutil
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torchvision.models.segmentation.deeplabv3 import DeepLabV3

from deeplabv3.errors import BuildError, InvalidOptionError

TRAINED_SIZE = 520
"""Height and width, in pixels, of the pictures that the published weights were trained with."""

VERIFY_SHAPE = (2, 3, 299, 421)
"""The saved file runs once more at another batch size and a shape that is not square and no multiple of the stride."""

TOLERANCE = 1e-4
"""Largest accepted |traced - eager| of any logit, for logits of order 1; it grows with the largest logit.

Folding the batch normalisation and channels-last sums change the order of float32 additions: 2e-5 is what that costs.
"""

# Room for the larger variant, 245 MB with its auxiliary head.
_SAVE_BYTES = 260_000_000


class ServedDeepLabV3(nn.Module):
    """DeepLabV3 as it is served: a tuple in the order of the config's outputs.

    The tuple is `out` (N, C, H, W), the logits at the input's size; `logits_os8` (N, C, H/8, W/8 rounded up), the same
    before the last upsampling; and, if asked for, `aux` (N, C, H, W). All float32. Triton's PyTorch backend takes no
    dict, which torchvision's model returns.
    """

    def __init__(self, model: DeepLabV3, *, aux: bool) -> None:
        super().__init__()
        if aux and model.aux_classifier is None:
            raise InvalidOptionError("aux_loss asks for the auxiliary head, and the checkpoint has none")
        self.backbone = model.backbone
        self.classifier = model.classifier
        self.aux_classifier = model.aux_classifier if aux else None

    def forward(self, input: torch.Tensor) -> tuple[torch.Tensor, ...]:  # noqa: A002  the tensor's name on the wire
        """Take (N, 3, H, W) float32, normalised with ImageNet's mean and standard deviation."""
        # The layout is part of the trace: Triton hands over contiguous NCHW, and its backend has no switch for it.
        features = self.backbone(input.contiguous(memory_format=torch.channels_last))
        size = input.shape[-2:]
        logits = self.classifier(features["out"])
        served = (_upsample(logits, size), logits)
        if self.aux_classifier is None:
            return served
        return (*served, _upsample(self.aux_classifier(features["aux"]), size))


def _upsample(logits: torch.Tensor, size: torch.Size) -> torch.Tensor:
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def trace(served: ServedDeepLabV3) -> torch.jit.ScriptModule:
    """Trace on the CPU and freeze: batch normalisation folds into the convolutions.

    Not `optimize_for_inference`: its CPU-only operators would not load on a GPU.
    """
    example = torch.randn(1, 3, TRAINED_SIZE, TRAINED_SIZE, generator=torch.Generator().manual_seed(0))
    served = served.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  no such overload
    with torch.inference_mode(mode=False), torch.no_grad(), warnings.catch_warnings():
        # TorchScript is deprecated and remains what Triton's PyTorch backend serves.
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        traced = torch.jit.trace(served, example, check_trace=False)
        return torch.jit.freeze(traced)


def save(module: torch.jit.ScriptModule, file: Path, extra: dict[str, str]) -> None:
    """Save a module; torch aborts the process when the disk is full, so look before."""
    free = shutil.disk_usage(file.parent).free
    if free < _SAVE_BYTES:
        raise BuildError(f"{file.parent} has {free / 1e6:.0f} MB left, and a model takes up to {_SAVE_BYTES / 1e6:.0f}")
    module.save(str(file), _extra_files=extra)


def verify(file: Path, eager: DeepLabV3, *, aux: bool) -> str:
    """Run a saved file at VERIFY_SHAPE against torchvision's own forward; return how far its logits are off.

    Raises:
        BuildError: another signature, number of outputs or shape, or a difference above TOLERANCE.
    """
    pixels = torch.randn(VERIFY_SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit.*", category=DeprecationWarning)
        module = torch.jit.load(str(file), map_location="cpu")
        arguments = [argument.name for argument in module.forward.schema.arguments]
        if arguments != ["self", "input"]:
            raise BuildError(f"the traced forward takes {arguments}, and config.pbtxt names its tensor 'input'")
        reference = eager(pixels)
        out, logits_os8, *rest = module(pixels)
        pairs = {"out": (out, reference["out"]), "logits_os8": (_upsample(logits_os8, pixels.shape[-2:]), out)}
        if aux:
            pairs["aux"] = (rest[0], reference["aux"])
        if not all(bool(torch.isfinite(logits).all()) for logits in reference.values()):
            raise BuildError(
                "PyTorch itself finds logits that are no finite numbers: the weights are broken, or trained with other "
                "options than these"
            )
    findings: list[str] = []
    for name, (served, expected) in pairs.items():
        if served.shape != expected.shape or served.dtype != torch.float32:
            raise BuildError(f"{name} is {served.dtype} {tuple(served.shape)} instead of {tuple(expected.shape)}")
        difference = float((served - expected).abs().max())
        bound = TOLERANCE * max(1.0, float(expected.abs().max()))
        if not difference <= bound:
            raise BuildError(f"{name} of the saved file is off PyTorch's by {difference:.2e}, more than {bound:.2e}")
        findings.append(f"{name} {difference:.1e} ({bound:.1e} allowed)")
    return "largest difference from PyTorch: " + ", ".join(findings)
