"""The clients under test behind one face, so that one body of tests runs on both."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from deeplab_client import AsyncSegmentationClient, SegmentationClient

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterable, Mapping, Sequence

    from deeplab_client import ModelInfo, RetryPolicy, Segmentation, SegmentationError, ServerInfo, Transport
    from deeplab_client.testing import Deadline, ModelConfig, Reply, Request

Kind: TypeAlias = Literal["sync", "async"]


class Driver(Protocol):
    """What both clients can do, called from a thread."""

    def segment(
        self,
        image: Any,  # noqa: ANN401 - wrong ones too
        *,
        model: str | None = None,
        timeout: float | None = None,
        confidence: bool = False,
    ) -> Segmentation: ...

    def segment_many(
        self, images: Iterable[Any], *, concurrency: int = 8, confidence: bool = False
    ) -> Iterable[Segmentation | SegmentationError]: ...

    def segment_tiles(
        self,
        image: Any,  # noqa: ANN401 - wrong ones too
        *,
        tile: int = 1040,
        overlap: float = 0.25,
        timeout: float | None = None,
        confidence: bool = False,
        concurrency: int = 8,
    ) -> Segmentation: ...

    def is_ready(self, *, model: str | None = None, timeout: float | None = None) -> bool: ...

    def wait_until_ready(self, *, model: str | None = None, timeout: float = 60.0) -> None: ...

    def models(self, *, timeout: float | None = None) -> list[ModelInfo]: ...

    def server(self, *, timeout: float | None = None) -> ServerInfo: ...

    def with_options(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        retries: int | RetryPolicy | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Driver: ...

    def close(self) -> None: ...


class AsyncDriver:
    """An AsyncSegmentationClient in an event loop of its own thread; the methods may be called by any thread."""

    def __init__(self, url: str, **options: Any) -> None:  # noqa: ANN401 - the client's
        self.client = AsyncSegmentationClient(url, **options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:  # noqa: ANN401 - what the coroutine returns
        """Return what a coroutine returns that runs in the client's loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def segment(
        self,
        image: Any,  # noqa: ANN401 - wrong ones too
        *,
        model: str | None = None,
        timeout: float | None = None,
        confidence: bool = False,
    ) -> Segmentation:
        return self.run(self.client.segment(image, model=model, timeout=timeout, confidence=confidence))

    def segment_many(
        self, images: Iterable[Any], *, concurrency: int = 8, confidence: bool = False
    ) -> Iterable[Segmentation | SegmentationError]:
        async def collect() -> list[Segmentation | SegmentationError]:
            results = self.client.segment_many(images, concurrency=concurrency, confidence=confidence)
            return [result async for result in results]

        return self.run(collect())

    def segment_tiles(
        self,
        image: Any,  # noqa: ANN401 - wrong ones too
        *,
        tile: int = 1040,
        overlap: float = 0.25,
        timeout: float | None = None,
        confidence: bool = False,
        concurrency: int = 8,
    ) -> Segmentation:
        work = self.client.segment_tiles(
            image, tile=tile, overlap=overlap, timeout=timeout, confidence=confidence, concurrency=concurrency
        )
        return self.run(work)

    def is_ready(self, *, model: str | None = None, timeout: float | None = None) -> bool:
        return self.run(self.client.is_ready(model=model, timeout=timeout))

    def wait_until_ready(self, *, model: str | None = None, timeout: float = 60.0) -> None:
        self.run(self.client.wait_until_ready(model=model, timeout=timeout))

    def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        return self.run(self.client.models(timeout=timeout))

    def server(self, *, timeout: float | None = None) -> ServerInfo:
        return self.run(self.client.server(timeout=timeout))

    def with_options(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        retries: int | RetryPolicy | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> AsyncDriver:
        """Return a driver of the view, in the same loop; to be closed, not stopped."""
        view = copy.copy(self)
        view.client = self.client.with_options(headers=headers, retries=retries, timeout=timeout, request_id=request_id)
        return view

    def close(self) -> None:
        self.run(self.client.close())

    def stop(self) -> None:
        """Close the client, end the thread, and with it everything that the loop had."""
        self.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def connected(kind: Kind, url: str, **options: Any) -> Generator[Driver]:  # noqa: ANN401 - the client's
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


class Awaited:
    """A transport for coroutines that asks one for threads; in a thread where that one may wait."""

    def __init__(self, transport: Transport, *, waits: bool = False) -> None:
        self._transport = transport
        self._waits = waits

    async def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        if self._waits:
            return await asyncio.to_thread(self._transport.infer, request, deadline=deadline)
        return self._transport.infer(request, deadline=deadline)

    async def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        return self._transport.model_config(model, deadline=deadline)

    async def model_versions(self, *, deadline: Deadline) -> Mapping[str, str]:
        return self._transport.model_versions(deadline=deadline)

    async def server_info(self, *, deadline: Deadline) -> ServerInfo:
        return self._transport.server_info(deadline=deadline)

    async def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        return self._transport.is_ready(model, deadline=deadline)

    async def close(self) -> None:
        self._transport.close()


class Stuck:
    """A file object that is read for ever, or until the test ends."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.reads = 0

    def read(self) -> bytes:
        self.reads += 1
        self.release.wait(60)
        return b"late"


def python(code: str, *arguments: str, flags: Sequence[str] = (), **options: Any) -> subprocess.CompletedProcess[str]:  # noqa: ANN401 - those of run
    """Run code in an interpreter of its own, to its end."""
    command = [sys.executable, *flags, "-c", textwrap.dedent(code), *arguments]
    options = {"timeout": 120, "check": False, **options}
    return subprocess.run(command, capture_output=True, text=True, **options)  # noqa: PLW1510 - among the options
