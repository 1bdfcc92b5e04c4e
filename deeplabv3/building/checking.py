"""Whether a saved file computes what PyTorch does."""

import io
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.models.segmentation.deeplabv3 import DeepLabV3

from deeplabv3.building.tracing import PRECISIONS, upsample, without_deprecation_warnings
from deeplabv3.errors import BuildError

VERIFY_SHAPE = (2, 3, 299, 421)
"""The saved file runs once more at another batch size and a shape that is not square and no multiple of the stride."""


def verify(file: Path, eager: DeepLabV3, *, aux: bool, precision: str = "fp32") -> str:
    """Run a saved file at VERIFY_SHAPE against torchvision's own float32 forward; return how far it is off.

    That is the largest difference of a logit, and the share of the pixels that get the same class. `precision` is one
    of PRECISIONS.

    Raises:
        OSError: what the storage says.
        BuildError: another signature, number of outputs or shape, or a difference above the precision's tolerance.
    """
    pixels = torch.randn(VERIFY_SHAPE, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), without_deprecation_warnings():
        # Read here: torch has an error of its own for storage that fails, and says nothing of the cause.
        module = torch.jit.load(io.BytesIO(file.read_bytes()), map_location="cpu")
        arguments = [argument.name for argument in module.forward.schema.arguments]
        if arguments != ["self", "input"]:
            raise BuildError(f"the traced forward takes {arguments}, and config.pbtxt names its tensor 'input'")
        reference = eager(pixels)
        out, logits_os8, *rest = module(pixels)
        pairs = {
            "out": (out, reference["out"]),
            "logits_os8": (upsample(logits_os8, pixels.shape[-2:]), reference["out"]),
        }
        if aux:
            pairs["aux"] = (rest[0], reference["aux"])
        if not all(bool(torch.isfinite(logits).all()) for logits in reference.values()):
            raise BuildError(
                "PyTorch itself finds logits that are not finite: the weights are broken, or trained with other "
                "options than these"
            )
        if not all(bool(torch.isfinite(logits).all()) for logits in (out, logits_os8, *rest)):
            raise BuildError(
                f"the saved file finds logits that are not finite in {precision}, where float32 finds finite ones; "
                f"take --precision {'bf16 or fp32' if precision == 'fp16' else 'fp32'}"
            )
    findings: list[str] = []
    for name, (served, expected) in pairs.items():
        if served.shape != expected.shape or served.dtype != torch.float32:
            raise BuildError(f"{name} is {served.dtype} {tuple(served.shape)} instead of {tuple(expected.shape)}")
        difference = float((served - expected).abs().max())
        bound = PRECISIONS[precision].tolerance * max(1.0, float(expected.abs().max()))
        if not difference <= bound:
            raise BuildError(f"{name} of the saved file is off PyTorch's by {difference:.2e}, more than {bound:.2e}")
        findings.append(f"{name} {difference:.1e} ({bound:.1e} allowed)")
    same = float((out.argmax(1) == reference["out"].argmax(1)).double().mean())
    return f"largest difference from PyTorch: {', '.join(findings)}; same class for {same:.3%} of the pixels"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How near a saved file comes to torchvision's own forward in float32.

    Attributes:
        same_class: the share of the pixels that get the same class, 0 to 1.
        error: the difference of the logits by the logits, both as root mean squares over classes and pixels.
        pictures: how many pictures were compared.
    """

    same_class: float
    error: float
    pictures: int


def agreement(file: Path, eager: DeepLabV3, pictures: Iterable[torch.Tensor]) -> Agreement:
    """Compare a saved file with torchvision's own float32 forward on pixels (1, 3, H, W) float32, normalized.

    Raises:
        OSError: what the storage says.
    """
    same, difference, total, count = 0.0, 0.0, 0.0, 0
    with torch.inference_mode(), without_deprecation_warnings():
        module = torch.jit.load(io.BytesIO(file.read_bytes()), map_location="cpu")
        for pixels in pictures:
            expected, found = eager(pixels)["out"], module(pixels)[0]
            same += float((found.argmax(1) == expected.argmax(1)).double().mean())
            difference += float((found - expected).double().square().mean())
            total += float(expected.double().square().mean())
            count += 1
    return Agreement(same / count, math.sqrt(difference / total), count)
