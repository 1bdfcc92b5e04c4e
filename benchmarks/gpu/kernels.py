"""Where a model's time goes on the device: torch's profiler, kernel by kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bare import Contender, load, traced

if TYPE_CHECKING:
    from pathlib import Path

    from torchvision.models.segmentation.deeplabv3 import DeepLabV3

    from benchmarks.gpu.settings import Settings

_SHOWN = 12


def profile_kernels(model: DeepLabV3, settings: Settings, folder: Path, *, cudnn: str = "heuristic") -> dict[str, Any]:
    """Return the kernels that take most of the time of fp16 at 32 pictures, or the largest batch below that."""
    batch = max(batch for batch in settings.batches if batch <= 32)  # noqa: PLR2004  what the server makes
    module = load(traced(model, Contender("fp16", cudnn), folder / "model.pt"), settings.device)
    pixels = torch.randn((batch, 3, settings.size, settings.size), device=settings.device)
    calls = 3 if settings.on_gpu else 1
    activity = ProfilerActivity.CUDA if settings.on_gpu else ProfilerActivity.CPU
    with torch.inference_mode():
        for _ in range(calls):
            module(pixels)
        with profile(activities=[activity], acc_events=True) as profiler:
            for _ in range(calls):
                module(pixels)
            if settings.on_gpu:
                torch.cuda.synchronize()
    spent = "self_device_time_total" if settings.on_gpu else "self_cpu_time_total"
    events: list[Any] = sorted(profiler.key_averages(), key=lambda event: -getattr(event, spent))
    total = sum(getattr(event, spent) for event in events) or 1
    shown = [
        {
            "kernel": event.key[:120],
            "share": getattr(event, spent) / total,
            "milliseconds": getattr(event, spent) / 1e3 / calls,
            "calls": event.count // calls,
        }
        for event in events[:_SHOWN]
    ]
    return {"batch": batch, "cudnn": cudnn, "milliseconds": total / 1e3 / calls, "kernels": shown}
