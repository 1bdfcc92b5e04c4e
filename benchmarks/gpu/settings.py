"""What one run measures: sizes, batches, concurrencies and the time that it may take."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Settings:
    """What one run measures.

    Attributes:
        device: "cuda", or "cpu" for a dry run whose figures mean nothing.
        variants: of VARIANTS, in the order in which they are measured.
        size: height and width of the core model's pictures.
        width: the channels of a group in ResNet's first stage: 64, or fewer for a dry run.
        batches: of the bare model.
        concurrencies: of the load on the server.
        picture: width and height of the JPEG that the load sends.
        call_seconds: how long one contender is measured at one batch.
        load_seconds: how long the load at one concurrency is measured, after a ramp of a third of it.
        matrix: side of the matrices whose product shows what the card can do.
        copy_bytes: of the buffers whose copy shows what its memory can do.
        output: the folder for the results.
    """

    device: str
    variants: tuple[str, ...]
    size: int = 520
    width: int = 64
    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    concurrencies: tuple[int, ...] = (1, 8, 32, 64, 128)
    picture: tuple[int, int] = (640, 480)
    call_seconds: float = 0.4
    load_seconds: float = 6.0
    matrix: int = 8192
    copy_bytes: int = 4 << 30
    output: Path = field(default=ROOT / "out" / "bench" / "gpu")

    @property
    def on_gpu(self) -> bool:
        """Whether what is measured is a GPU."""
        return self.device == "cuda"


def quick(device: str, variants: tuple[str, ...], output: Path) -> Settings:
    """Return what shows in a minute, on a laptop too, that every section runs."""
    return Settings(
        device,
        variants,
        size=64,
        width=4,
        batches=(1, 2),
        concurrencies=(1, 4),
        picture=(96, 72),
        call_seconds=0.02,
        load_seconds=1.0,
        matrix=256,
        copy_bytes=1 << 22,
        output=output,
    )


class Deadline:
    """The time that a run may take; a part that would not fit is left out, with a word about it."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left."""
        return self._end - time.monotonic()

    def allows(self, seconds: float) -> bool:
        """Tell whether a part that takes about so long still fits."""
        return self.left() >= seconds
