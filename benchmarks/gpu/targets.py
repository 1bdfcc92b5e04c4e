"""The targets for an H100, and whether a run meets them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.gpu.bare import fastest
from benchmarks.gpu.serving import DYNAMIC, SETUPS, SINGLY

if TYPE_CHECKING:
    from benchmarks.report import Report

# 36 % of the 989 TFLOP/s in fp16 that NVIDIA's data sheet gives the H100 SXM.
BARE_FLOPS_PER_SECOND = 356e12
_FLOPS = {"resnet50": 2 * 168.73e9, "resnet101": 2 * 248.75e9}  # per picture, without the auxiliary head
BARE_IMAGES_PER_SECOND = {variant: float(round(BARE_FLOPS_PER_SECOND / flops)) for variant, flops in _FLOPS.items()}
BATCHING_GAIN = 4.0
END_TO_END_SHARE = 0.85


def add_verdicts(report: Report, *, on_gpu: bool) -> None:
    """Compare the rows of a run with the targets. Every ratio has two figures of that run."""
    for variant, required in BARE_IMAGES_PER_SECOND.items():
        top = fastest(report, variant)
        bare = top.figures["rate"].median if top else None
        singly = _served(report, variant, (SINGLY,))
        plain = _served(report, variant, (DYNAMIC,))
        served = _served(report, variant, tuple(setup.name for setup in SETUPS if setup.batches))
        for target, least, found, of in (
            ("bare model in fp16, images/s", required, bare, 1.0),
            ("dynamic batching / one request at a time", BATCHING_GAIN, plain, singly),
            ("end to end / bare model in fp16", END_TO_END_SHARE, served, bare),
        ):
            figures, verdict, of_text = {"required": least}, "not measured", ""
            if found and of:
                figures["found"] = found / of
                verdict = "no GPU" if not on_gpu else "met" if found / of >= least else "NOT MET"
                of_text = f"{found:.1f} / {of:.1f} images/s" if of != 1 else ""
            report.add("targets", target, {"variant": variant}, figures, verdict=verdict, of=of_text)


def _served(report: Report, variant: str, setups: tuple[str, ...]) -> float | None:
    rows = [report.best("serving", "rate", variant=variant, contender=name) for name in setups]
    return max((row.figures["rate"].median for row in rows if row), default=None)
