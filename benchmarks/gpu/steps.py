"""The time of preprocess and postprocess in one process, with their code for a CPU and with their code for a GPU."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import torch

from benchmarks.gpu.card import seconds_of
from benchmarks.harness import ROOT
from deeplabv3.repository.config import read_config

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from benchmarks.gpu.settings import Settings
    from benchmarks.report import Report

# As in Triton: each module is in its model's folder.
sys.path[:0] = [str(ROOT / "model_repository" / name / "1") for name in ("preprocess", "postprocess")]

import image_ops  # noqa: E402 - needs the line above
import image_ops_cuda  # noqa: E402 - likewise
import mask_ops  # noqa: E402 - likewise
import mask_ops_cuda  # noqa: E402 - likewise

_CLASSES = 21
_STRIDE = 8


def measure_steps(report: Report, settings: Settings, picture: Path) -> None:
    """Measure both steps with both codes, with one thread, and compare the results."""
    parameters = read_config(ROOT / "model_repository" / "preprocess" / "config.pbtxt").parameters
    values = {name: value.string_value for name, value in parameters.items()} | {"resize_size": str(settings.size)}
    step = image_ops.Settings.from_parameters(values)
    device = torch.device(settings.device)
    data = [picture.read_bytes()]
    preprocessor = image_ops_cuda.Preprocessor(device, step)

    def preprocess() -> torch.Tensor:
        pixels = preprocessor.preprocess(data)[0]
        if pixels.is_cuda:
            torch.cuda.synchronize()
        return pixels

    expected = torch.from_numpy(image_ops.preprocess(data, step)[0])
    difference = (preprocess().cpu().int() - expected.int()).abs()
    _add(report, "preprocess, samples", lambda: image_ops.preprocess(data, step), preprocess, settings)
    agreement = {"equal": float(difference.eq(0).double().mean()), "largest_difference": float(difference.max())}
    report.add("steps agree", "preprocess, samples", {}, agreement)

    side = -(-settings.size // _STRIDE)
    coarse = torch.randn((1, _CLASSES, 5, 5), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    there = logits.to(settings.device)
    width, height = settings.picture
    size = np.array([[height, width]], np.int32)
    masker = mask_ops_cuda.Masker(device, class_count=_CLASSES, max_pixels=step.max_pixels)

    def postprocess() -> mask_ops.Masks:
        masks = masker.start(there, size)
        masker.wait()
        return masks

    def on_cpu() -> mask_ops.Masks:
        return mask_ops.postprocess(logits.numpy(), size, class_count=_CLASSES, max_pixels=step.max_pixels)

    _add(report, "postprocess, pixels", on_cpu, postprocess, settings)
    report.add(
        "steps agree", "postprocess, pixels", {}, {"equal": float((postprocess().masks == on_cpu().masks).mean())}
    )


def _add(
    report: Report, step: str, on_cpu: Callable[[], object], on_device: Callable[[], object], settings: Settings
) -> None:
    figures = {
        name: 1e3 * seconds_of(run, settings.call_seconds)
        for name, run in (("cpu_ms", on_cpu), ("device_ms", on_device))
    }
    report.add("steps", step, {}, figures)
