"""What is to be reached on an H100, and whether what was measured reaches it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.gpu.serving import DYNAMIC, SETUPS, SINGLY

if TYPE_CHECKING:
    from benchmarks.report import Report

BARE_IMAGES_PER_SECOND = {"resnet50": 1000.0, "resnet101": 680.0}
BATCHING_GAIN = 4.0
END_TO_END_SHARE = 0.85
# The contenders that are fp16.
_PRECISION = ("fp16", "fp16 fused", "fp16 benchmark")


def add_verdicts(report: Report, *, on_gpu: bool) -> None:
    """Hold the rows of a run against the targets; every ratio is of two numbers of that run."""
    for variant, required in BARE_IMAGES_PER_SECOND.items():
        bare = _best(report, "bare", variant, _PRECISION)
        singly = _best(report, "serving", variant, (SINGLY,))
        plain = _best(report, "serving", variant, (DYNAMIC,))
        served = _best(report, "serving", variant, tuple(setup.name for setup in SETUPS if setup.batches))
        for target, least, found, of in (
            ("the bare model in fp16, images/s", required, bare, 1.0),
            ("dynamic batching over one request at a time", BATCHING_GAIN, plain, singly),
            ("end to end over the bare model in fp16", END_TO_END_SHARE, served, bare),
        ):
            figures, verdict, of_text = {"required": least}, "not measured", ""
            if found and of:
                figures["found"] = found / of
                verdict = "no GPU" if not on_gpu else "met" if found / of >= least else "NOT MET"
                of_text = f"{found:.1f} / {of:.1f} images/s" if of != 1 else ""
            report.add("targets", target, {"variant": variant}, figures, verdict=verdict, of=of_text)


def _best(report: Report, section: str, variant: str, contenders: tuple[str, ...]) -> float | None:
    rows = [report.best(section, "rate", variant=variant, contender=name) for name in contenders]
    return max((row.figures["rate"].median for row in rows if row), default=None)
