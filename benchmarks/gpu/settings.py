"""The settings of a run: sizes, batches, concurrencies and times."""

from __future__ import annotations

from dataclasses import dataclass

from deeplabv3.building.tracing import TRAINED_SIZE


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of a run.

    Attributes:
        device: "cuda", or "cpu" for a dry run whose figures mean nothing.
        variants: of VARIANTS, in the order of measurement.
        size: height and width of the core model's pictures.
        width: the channels of a group in ResNet's first stage: 64, or fewer for a dry run.
        batches: batch sizes of the bare model.
        concurrencies: of the load on the server.
        picture: width and height of the JPEG that the load sends.
        call_seconds: duration of the measurement of one contender at one batch size.
        sustained_seconds: duration of the second measurement of the fastest contender.
        load_seconds: duration of the measurement at one concurrency, after a ramp of a third of it.
        matrix: side of the matrices for the peak of the arithmetic.
        copy_bytes: size of the buffers for the peak of the memory.
        shared_memory_bytes: what the served models need in /dev/shm: 32 pictures for each of two instances of a core
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
        """Whether a GPU is measured."""
        return self.device == "cuda"


def quick(device: str, variants: tuple[str, ...]) -> Settings:
    """Return settings with which every section also runs on a laptop."""
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
