"""What one run measures: sizes, batches, concurrencies and times."""

from __future__ import annotations

from dataclasses import dataclass

from deeplabv3.building.tracing import TRAINED_SIZE


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
        sustained_seconds: how long the best of them is measured again.
        load_seconds: how long the load at one concurrency is measured, after a ramp of a third of it.
        matrix: side of the matrices whose product shows what the card can do.
        copy_bytes: of the buffers whose copy shows what its memory can do.
        shared_memory_bytes: that the served models need in /dev/shm: 32 pictures for each of two instances of a core
            model are 75 MB, their masks 60 MB, and the regions of the steps start at 1 MB and grow with the pictures.
    """

    device: str
    variants: tuple[str, ...]
    size: int = TRAINED_SIZE
    width: int = 64
    batches: tuple[int, ...] = (1, 4, 8, 16, 32, 64)
    concurrencies: tuple[int, ...] = (1, 32, 64, 128)
    picture: tuple[int, int] = (640, 480)
    call_seconds: float = 0.4
    sustained_seconds: float = 5.0
    load_seconds: float = 4.0
    matrix: int = 8192
    copy_bytes: int = 4 << 30
    shared_memory_bytes: int = 1 << 30

    @property
    def on_gpu(self) -> bool:
        """Whether what is measured is a GPU."""
        return self.device == "cuda"


def quick(device: str, variants: tuple[str, ...]) -> Settings:
    """Return what shows on a laptop too that every section runs."""
    return Settings(
        device,
        variants,
        size=32,
        width=4,
        batches=(1, 2),
        concurrencies=(4,),
        picture=(96, 72),
        call_seconds=0.01,
        sustained_seconds=0.1,
        load_seconds=0.5,
        matrix=128,
        copy_bytes=1 << 20,
        shared_memory_bytes=60_000_000,
    )
