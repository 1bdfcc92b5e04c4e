"""The clients under test behind one face, so that one body of tests runs on both."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from deeplab_client import AsyncSegmentationClient, SegmentationClient

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterable

    from deeplab_client import Segmentation, SegmentationError

Kind: TypeAlias = Literal["sync", "async"]


class Driver(Protocol):
    """What both clients can do, called from a thread."""

    def segment(self, image: Any, *, model: str | None = None, timeout: float | None = None) -> Segmentation: ...  # noqa: ANN401 wrong ones too

    def segment_many(
        self, images: Iterable[Any], *, concurrency: int = 8
    ) -> Iterable[Segmentation | SegmentationError]: ...

    def is_ready(self, *, model: str | None = None, timeout: float | None = None) -> bool: ...

    def wait_until_ready(self, *, model: str | None = None, timeout: float = 60.0) -> None: ...

    def close(self) -> None: ...


class AsyncDriver:
    """An AsyncSegmentationClient in an event loop of its own thread; the methods may be called by any thread."""

    def __init__(self, url: str, **options: Any) -> None:  # noqa: ANN401 the client's
        self.client = AsyncSegmentationClient(url, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 what the coroutine returns
        """Return what a coroutine returns that runs in the client's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def segment(self, image: Any, *, model: str | None = None, timeout: float | None = None) -> Segmentation:  # noqa: ANN401 wrong ones too
        return self.run(self.client.segment(image, model=model, timeout=timeout))

    def segment_many(
        self, images: Iterable[Any], *, concurrency: int = 8
    ) -> Iterable[Segmentation | SegmentationError]:
        async def collect() -> list[Segmentation | SegmentationError]:
            return [result async for result in self.client.segment_many(images, concurrency=concurrency)]

        return self.run(collect())

    def is_ready(self, *, model: str | None = None, timeout: float | None = None) -> bool:
        return self.run(self.client.is_ready(model=model, timeout=timeout))

    def wait_until_ready(self, *, model: str | None = None, timeout: float = 60.0) -> None:
        self.run(self.client.wait_until_ready(model=model, timeout=timeout))

    def close(self) -> None:
        self.run(self.client.close())

    def stop(self) -> None:
        """Close the client, end the thread, and with it everything that the loop had."""
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def connected(kind: Kind, url: str, **options: Any) -> Generator[Driver]:  # noqa: ANN401 the client's
    """Yield a client, to be closed at the end."""
    if kind == "sync":
        with SegmentationClient(url, **options) as client:
            yield client
    else:
        driver = AsyncDriver(url, **options)
        try:
            yield driver
        finally:
            driver.stop()
