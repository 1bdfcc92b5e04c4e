"""Compare a saved file with PyTorch."""

import io
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torchvision.models.segmentation.deeplabv3 import DeepLabV3
from torchvision.transforms import functional

from deeplabv3.building.plan import Plan
from deeplabv3.building.tracing import PRECISIONS, upsample, without_deprecation_warnings
from deeplabv3.errors import BuildError

VERIFY_SHAPE = (2, 3, 299, 421)
"""The shape at which saved files are checked: another batch size, not square, and no multiple of the stride."""


def verify(files: Mapping[str, Path], eager: DeepLabV3, plan: Plan) -> str:
    """Run the saved files of a plan at VERIFY_SHAPE against torchvision's own float32 forward.

    Args:
        files: the saved files, by the names in `plan.models`.
        eager: the model that they were traced from.
        plan: the plan of the variant.

    Returns:
        A text with the largest difference of a logit of each output, and the share of the pixels that get the same
        class.

    Raises:
        OSError: a file cannot be read.
        BuildError: the signature, the number of outputs or a shape is wrong, or a difference exceeds the tolerance.
    """
    samples = torch.randint(0, 256, VERIFY_SHAPE, generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    pixels = functional.normalize(samples.float() / 255, list(plan.mean), list(plan.std))
    with torch.inference_mode(), without_deprecation_warnings():
        reference = eager(pixels)
        if not all(bool(torch.isfinite(logits).all()) for logits in reference.values()):
            raise BuildError(
                "the model's logits are not finite in PyTorch either: the weights are broken, or were trained with "
                "other options; check both"
            )
        served = {"LOGITS": _core_logits(_load(files[plan.core], ["PIXELS", "IMAGE_ID"]), samples)}
        for name in plan.models[1:]:
            outputs = _load(files[name], ["input"])(pixels)
            served |= dict(zip(("out", "aux") if plan.aux else ("out",), outputs, strict=True))
    findings: list[str] = []
    for name, logits in served.items():
        expected = reference["aux" if name == "aux" else "out"]
        findings.append(_compare(name, logits, expected, plan.precision))
    same = float((served["LOGITS"].argmax(1) == reference["out"].argmax(1)).double().mean())
    return f"largest difference from PyTorch: {', '.join(findings)}; same class for {same:.3%} of the pixels"


def _load(file: Path, arguments: list[str]) -> Any:  # noqa: ANN401 - a module of TorchScript
    """Load a file on the CPU, and check that its forward takes these arguments."""
    # Read here, because torch hides the cause when the storage fails.
    module: Any = torch.jit.load(io.BytesIO(file.read_bytes()), map_location="cpu")
    found = [argument.name for argument in module.forward.schema.arguments][1:]
    if found != arguments:
        raise BuildError(f"the traced forward takes {found}, but the inputs in config.pbtxt are {arguments}")
    return module


def _core_logits(module: Any, samples: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - a module of TorchScript
    """Return the logits (N, C, H, W) float32 of a core model for samples (N, 3, H, W) uint8, upsampled to H and W."""
    ids = torch.arange(len(samples)).unsqueeze(1)
    logits, returned = module(samples.permute(0, 2, 3, 1).contiguous(), ids)
    if not torch.equal(returned, ids):
        raise BuildError(f"the saved file returns IMAGE_ID {returned.tolist()} instead of {ids.tolist()}")
    return upsample(logits, samples.shape[-2:])


def _compare(name: str, logits: torch.Tensor, expected: torch.Tensor, precision: str) -> str:
    """Return the largest difference of an output as text; raise BuildError if it exceeds the tolerance."""
    if logits.shape != expected.shape or logits.dtype != torch.float32:
        raise BuildError(
            f"{name} of the saved file is {logits.dtype} {tuple(logits.shape)} instead of {torch.float32} "
            f"{tuple(expected.shape)}"
        )
    if not bool(torch.isfinite(logits).all()):
        raise BuildError(
            f"{name} of the saved file is not finite in {precision}, but is in float32; "
            f"use --precision {'bf16 or fp32' if precision == 'fp16' else 'fp32'}"
        )
    difference = float((logits - expected).abs().max())
    bound = PRECISIONS[precision].tolerance * max(1.0, float(expected.abs().max()))
    if not difference <= bound:
        raise BuildError(
            f"{name} of the saved file differs from PyTorch by {difference:.2e}, more than the {bound:.2e} allowed; "
            "use another --precision"
        )
    return f"{name} {difference:.1e} ({bound:.1e} allowed)"


@dataclass(frozen=True, slots=True)
class Agreement:
    """The agreement of a saved file with torchvision's own forward in float32.

    Attributes:
        same_class: the share of the pixels that get the same class, 0 to 1.
        error: the RMS of the difference of the logits divided by the RMS of the logits, over classes and pixels.
        pictures: the number of pictures that were compared.
    """

    same_class: float
    error: float
    pictures: int


def agreement(file: Path, eager: DeepLabV3, pictures: Iterable[torch.Tensor], plan: Plan) -> Agreement:
    """Compare a core model's saved file with torchvision's own float32 forward on samples (1, 3, H, W) uint8.

    Raises:
        OSError: the file cannot be read.
    """
    same, difference, total, count = 0.0, 0.0, 0.0, 0
    with torch.inference_mode(), without_deprecation_warnings():
        module = _load(file, ["PIXELS", "IMAGE_ID"])
        for samples in pictures:
            pixels = functional.normalize(samples.float() / 255, list(plan.mean), list(plan.std))
            expected, found = eager(pixels)["out"], _core_logits(module, samples)
            same += float((found.argmax(1) == expected.argmax(1)).double().mean())
            difference += float((found - expected).double().square().mean())
            total += float(expected.double().square().mean())
            count += 1
    return Agreement(same / count, math.sqrt(difference / total), count)
