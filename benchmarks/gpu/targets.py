"""What is to be reached on an H100, and whether what was measured reaches it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.gpu import bare

BARE_IMAGES_PER_SECOND = {"resnet50": 1000.0, "resnet101": 680.0}
BATCHING_GAIN = 4.0
END_TO_END_SHARE = 0.85

DYNAMIC, SINGLY = "dynamic batching", "one request at a time"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One target and what was found.

    Attributes:
        target: in words.
        required: the least value that reaches it.
        found: None where it was not measured.
        met: None where it was not measured, or not on a GPU.
        of: what the value was computed from.
    """

    target: str
    required: float
    found: float | None
    met: bool | None
    of: str


def verdicts(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Hold the results of a run against the targets; every ratio is of two numbers of that run."""
    on_gpu = found["device"] == "cuda"
    listed: list[Verdict] = []
    for variant, required in BARE_IMAGES_PER_SECOND.items():
        top = bare.best(found.get("bare", {}).get(variant, {"contenders": {}}))
        served = found.get("serving", {}).get(variant, {})
        dynamic = [best_served(each) for name, each in served.items() if name.startswith(DYNAMIC)]
        end_to_end = max((each[1] for each in dynamic if each), default=None)
        singly = best_served(served.get(SINGLY, {}))
        plain = best_served(served.get(DYNAMIC, {}))
        listed += [
            _verdict(
                f"{variant}: the bare model in fp16, images/s",
                required,
                top and top[2],
                f"{top[0]}, batch {top[1]}" if top else "",
                on_gpu=on_gpu,
            ),
            _verdict(
                f"{variant}: dynamic batching over one request at a time",
                BATCHING_GAIN,
                plain[1] / singly[1] if plain and singly and singly[1] else None,
                f"{plain[1]:.1f} / {singly[1]:.1f} images/s" if plain and singly else "",
                on_gpu=on_gpu,
            ),
            _verdict(
                f"{variant}: end to end over the bare model in fp16",
                END_TO_END_SHARE,
                end_to_end / top[2] if end_to_end is not None and top else None,
                f"{end_to_end:.1f} / {top[2]:.1f} images/s" if end_to_end is not None and top else "",
                on_gpu=on_gpu,
            ),
        ]
    return [asdict(each) for each in listed]


def _verdict(target: str, required: float, found: float | None, of: str, *, on_gpu: bool) -> Verdict:
    met = found >= required if found is not None and on_gpu else None
    return Verdict(target, required, found, met, of)


def best_served(serving: dict[str, Any]) -> tuple[str, float] | None:
    """Return the concurrency with the most images a second, and these."""
    rows = {key: row["images_per_second"] for key, row in serving.get("concurrencies", {}).items()}
    top = max(rows, key=lambda key: rows[key], default=None)
    return None if top is None else (top, rows[top])
