"""What preprocess and postprocess cost in one process, as they run on a CPU and as they run on a GPU."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.gpu.card import seconds_of
from benchmarks.gpu.picture import encoded
from benchmarks.gpu.settings import ROOT

if TYPE_CHECKING:
    from benchmarks.gpu.settings import Settings

# As Triton finds them: each in its model's folder.
sys.path[:0] = [str(ROOT / "model_repository" / name / "1") for name in ("preprocess", "postprocess")]

import image_ops  # noqa: E402  after the line above
import image_ops_cuda  # noqa: E402
import mask_ops  # noqa: E402
import mask_ops_cuda  # noqa: E402

_CLASSES = 21
_STRIDE = 8
_MAX_PIXELS = 50_000_000


def measure_steps(settings: Settings) -> dict[str, Any]:
    """Measure both steps both ways, with one thread, and compare what comes out."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {"preprocess": _preprocess(settings), "postprocess": _postprocess(settings)}
    finally:
        torch.set_num_threads(threads)


def _preprocess(settings: Settings) -> dict[str, Any]:
    parameters = {
        "mean": "0.485, 0.456, 0.406",
        "std": "0.229, 0.224, 0.225",
        "resize_mode": "square",
        "resize_size": str(settings.size),
        "max_pixels": str(_MAX_PIXELS),
        "max_resized_pixels": str(_MAX_PIXELS),
    }
    step = image_ops.Settings.from_parameters(parameters)
    on_device = image_ops_cuda.Preprocessor(torch.device(settings.device), step)
    data = encoded(settings.picture)

    def run() -> torch.Tensor:
        return _complete(on_device.preprocess([data])[0])

    expected = torch.from_numpy(image_ops.preprocess([data], step)[0])
    return {
        "cpu_ms": 1e3 * _seconds(lambda: image_ops.preprocess([data], step), settings),
        "device_ms": 1e3 * _seconds(run, settings),
        "agreement": float((run().cpu() - expected).abs().lt(1e-5).double().mean()),
        "largest_difference": float((run().cpu() - expected).abs().max()),
        "of": "samples",
    }


def _postprocess(settings: Settings) -> dict[str, Any]:
    side = -(-settings.size // _STRIDE)
    coarse = torch.randn((1, _CLASSES, 5, 5), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    width, height = settings.picture
    size = np.array([[height, width]], np.int32)
    masker = mask_ops_cuda.Masker(torch.device(settings.device), class_count=_CLASSES, max_pixels=_MAX_PIXELS)
    there = logits.to(settings.device)

    def run() -> mask_ops.Masks:
        masks = masker.start(there, size)
        masker.wait()
        return masks

    def run_on_cpu() -> mask_ops.Masks:
        return mask_ops.postprocess(logits.numpy(), size, class_count=_CLASSES, max_pixels=_MAX_PIXELS)

    return {
        "cpu_ms": 1e3 * _seconds(run_on_cpu, settings),
        "device_ms": 1e3 * _seconds(run, settings),
        "agreement": float((run().masks == run_on_cpu().masks).mean()),
        "of": "pixels",
    }


def _complete(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_cuda:
        torch.cuda.synchronize()
    return tensor


def _seconds(run: Any, settings: Settings) -> float:  # noqa: ANN401  any call
    """Return the median seconds by the clock on the wall, for a step's process waits for its GPU."""
    return seconds_of(run, device="cpu", seconds=settings.call_seconds)
