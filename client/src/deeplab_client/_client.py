"""The client for threads."""

from __future__ import annotations

import contextlib
import os
from copy import copy
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from deeplab_client import _environment, _many, _readiness, _steps, _tiles
from deeplab_client._calls import Calls
from deeplab_client._options import is_coroutine_function
from deeplab_client._running import Runner

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping
    from types import TracebackType

    from typing_extensions import Self, Unpack

    from deeplab_client._deadline import AbortableDeadline
    from deeplab_client._errors import SegmentationError
    from deeplab_client._hooks import RequestHook, ResponseHook, RetryHook
    from deeplab_client._image import ImageLike
    from deeplab_client._models import ModelInfo
    from deeplab_client._options import TLS, ClientArguments, Compression, Token
    from deeplab_client._retry import RetryPolicy
    from deeplab_client._segmentation import Segmentation
    from deeplab_client._steps import Steps
    from deeplab_client._transport import ServerInfo, Transport
    from deeplab_client._wire import MaskChoice

_T = TypeVar("_T")
_ImageT = TypeVar("_ImageT", bound="ImageLike")


class SegmentationClient:
    """Segments images on a Triton server that serves DeepLabV3.

    Share one between threads; a client made before a fork works in the child too. Nothing is sent before the first
    call, and the protocol's library is loaded by it, outside its timeout.

    Args:
        url: `grpc://host:port`, `http://host:port` or `http://host:port/prefix`, with TLS `grpcs://` or `https://`,
            `host:port` for gRPC, or a Unix socket, `unix:///path` for gRPC and `http+unix:///path`.
        model: The ensemble to ask.
        timeout: Seconds that a whole call may take, connecting and retries included.
        retries: How often a request is sent again that found no server, or one with too much to do, or got the reply to
            another request; or a policy with the pauses too.
        on_retry: Called before each pause, by the thread that makes the call.
        on_request: Called before each attempt of an inference, by the thread that makes the call.
        on_response: Called after each attempt, with its error or None.
        mask_format: How masks travel: `raw`, `png`, or what is faster for the URL. The result is the same.
        tls: Trusted certificates and the client's own, for `grpcs://` and `https://`.
        headers: Sent with every request, as metadata over gRPC.
        token: Sent as bearer token; a function is called for one before every request.
        compression: `gzip` or `deflate`, of masks and of images that are not encoded; over gRPC the server alone
            decides on masks.
        proxy: `http://host:port` of an HTTP proxy before a server at `http://` or `https://`, with `user:password@`
            where it asks for them; `env` for that of HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
        transport: Asked in place of the server at `url`: the entry for a fake in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "segment_resnet50",
        timeout: float = 30.0,
        retries: int | RetryPolicy = 2,
        on_retry: RetryHook | None = None,
        on_request: RequestHook | None = None,
        on_response: ResponseHook | None = None,
        mask_format: MaskChoice = "auto",
        tls: TLS | None = None,
        headers: Mapping[str, str] | None = None,
        token: Token | None = None,
        compression: Compression | None = None,
        proxy: str | None = None,
        transport: Transport | None = None,
    ) -> None:
        functions = {"on_retry": on_retry, "on_request": on_request, "on_response": on_response, "token": token}
        for name, function in functions.items():
            if is_coroutine_function(function):
                raise TypeError(
                    f"{name} must be a plain function, got a coroutine function, which AsyncSegmentationClient takes"
                )
        self._calls = Calls(
            url,
            model=model,
            timeout=timeout,
            retries=retries,
            on_retry=on_retry,
            on_request=on_request,
            on_response=on_response,
            mask_format=mask_format,
            tls=tls,
            headers=headers,
            token=token,
            compression=compression,
            proxy=proxy,
        )
        self._runner = Runner(transport)

    @classmethod
    def from_env(cls, **arguments: Unpack[ClientArguments]) -> Self:
        """Make a client from DEEPLAB_URL and the other DEEPLAB_ variables that the README lists.

        Args:
            arguments: Of the constructor; they win over the environment.

        Raises:
            ValueError: There is no URL, or a variable cannot be used.
        """
        return cls(**_environment.arguments_from(os.environ, arguments))

    def with_options(
        self,
        *,
        headers: Mapping[str, str] | None = None,
        retries: int | RetryPolicy | None = None,
        timeout: float | None = None,
        request_id: str | None = None,
    ) -> Self:
        """Return a view of this client, whose calls have other options and share its connections.

        Closing a view, or leaving its `with` block, ends the view alone. Closing the client that was made by its
        constructor closes the connections, and ends its views too. To make a view costs a few microseconds.

        Args:
            headers: Sent in addition to the client's own, and in their place where they have the same name.
            retries: In place of the client's own.
            timeout: Seconds that a whole call may take, instead of the client's own.
            request_id: What the server's log, the result's `request_id` and errors call a request, retries included: 1
                to 128 printable ASCII characters without blanks. `segment_many` adds the number of the image: `ID-1`,
                `ID-2`, ... If a request of that id is under way already, the next one is `ID-2`.

        Raises:
            ClientClosedError: The client is closed.
            ValueError: An option is out of range, or a header cannot be sent.
        """
        view = object.__new__(type(self))
        vars(view).update(vars(self))
        view._calls = self._calls.with_options(headers=headers, retries=retries, timeout=timeout, request_id=request_id)
        return view

    def segment(
        self, image: ImageLike, *, model: str | None = None, timeout: float | None = None, confidence: bool = False
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: A path, the bytes of an encoded image (JPEG, PNG, WebP, BMP, PPM, GIF, TIFF, AVIF, HEIC) or a binary
                file of them, a PIL image, or an array or tensor, uint8 or float from 0 to 1, of shape (H, W),
                (H, W, 1), (H, W, 3) in RGB order, or (H, W, 4), whose alpha is dropped.
            model: The ensemble to ask; the client's own by default.
            timeout: Seconds; the client's own by default.
            confidence: Ask for the confidence of each pixel too, as much data again as a raw mask.

        Raises:
            SegmentationError: One of its leaves.
            ValueError: The timeout is not a finite number of seconds greater than 0.
        """
        return self._run(
            _steps.segment(self._calls, image, model, self._calls.deadline(timeout), confidence=confidence)
        )

    @overload
    def segment_many(
        self,
        images: Iterable[_ImageT],
        *,
        raise_errors: Literal[True],
        with_source: Literal[True],
        concurrency: int = ...,
        model: str | None = ...,
        timeout: float | None = ...,
        confidence: bool = ...,
    ) -> Generator[tuple[_ImageT, Segmentation]]: ...

    @overload
    def segment_many(
        self,
        images: Iterable[_ImageT],
        *,
        raise_errors: bool = ...,
        with_source: Literal[True],
        concurrency: int = ...,
        model: str | None = ...,
        timeout: float | None = ...,
        confidence: bool = ...,
    ) -> Generator[tuple[_ImageT, Segmentation | SegmentationError]]: ...

    @overload
    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        raise_errors: Literal[True],
        with_source: Literal[False] = ...,
        concurrency: int = ...,
        model: str | None = ...,
        timeout: float | None = ...,
        confidence: bool = ...,
    ) -> Generator[Segmentation]: ...

    @overload
    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        raise_errors: bool = ...,
        with_source: Literal[False] = ...,
        concurrency: int = ...,
        model: str | None = ...,
        timeout: float | None = ...,
        confidence: bool = ...,
    ) -> Generator[Segmentation | SegmentationError]: ...

    def segment_many(
        self,
        images: Iterable[ImageLike],
        *,
        raise_errors: bool = False,
        with_source: bool = False,
        concurrency: int = 8,
        model: str | None = None,
        timeout: float | None = None,
        confidence: bool = False,
    ) -> Generator[Any]:
        """Segment images as they come, and yield their results in their order.

        At most `concurrency` requests are under way, and at most twice as many images read and not yet yielded. To
        stop early, close the generator or leave the loop: requests under way are cancelled.

        Args:
            images: Read by the iterating thread, when there is room: while an iterable waits for its next image,
                results that are done wait too. From a slow source, such as a camera or a queue, take images one by one,
                or use the asynchronous client.
            raise_errors: Raise the first error, in place of yielding each where its result would be.
            with_source: Yield pairs of an image, as `images` gave it, and its result or error. An image is then held
                until its pair is yielded.
            concurrency: Requests at a time, each in a thread; fewer where this process may not open enough files.
            model: The ensemble to ask; the client's own by default.
            timeout: Seconds for each image; the client's own by default.
            confidence: Ask for the confidence of each pixel too.

        Raises:
            ClientClosedError: The client is closed, or becomes so.
            TypeError: `images` is one image, or nothing to iterate over.
            ValueError: `timeout` or `concurrency` is out of range, or `model` no name.
        """
        self._calls.check_open()
        _many.check_images(images)
        model = self._calls.model_or_own(model)
        pairs = _many.in_order(
            lambda image, number, deadline: self._run(
                _steps.segment(
                    self._calls,
                    image,
                    model,
                    deadline,
                    confidence=confidence,
                    in_batch=True,
                    request_id=self._calls.numbered_id(number),
                )
            ),
            images,
            concurrency=_many.check_concurrency(concurrency),
            keep_images=with_source,
            seconds=self._calls.seconds(timeout),
        )
        return _many.taken(pairs, raise_errors=raise_errors, with_source=with_source)

    def segment_tiles(
        self,
        image: ImageLike,
        *,
        tile: int = 1040,
        overlap: float = 0.25,
        model: str | None = None,
        timeout: float | None = None,
        confidence: bool = False,
        concurrency: int = 8,
    ) -> Segmentation:
        """Segment a large picture in overlapping tiles, and join their masks to one of the picture's own size.

        Where tiles overlap, the class of the tile with the higher confidence wins. The memory needed is that of the
        picture, its mask, its confidence and the tiles under way.

        A tile sees only its own surroundings: objects larger than a tile are found less well than by `segment`. The
        server resizes each tile as any picture, by default to 520 x 520 pixels: a tile of 1040 to half its size.

        Args:
            image: What `segment` takes. Encoded images are decoded here, by Pillow, whose limit
                `PIL.Image.MAX_IMAGE_PIXELS` holds; a HEIC picture needs the extra `heic`.
            tile: Width and height of a tile, in pixels of the picture, 64 or more. The last tile of a row and of a
                column is moved inwards, and a side of the picture that is shorter is that of its tiles.
            overlap: How much of a tile its neighbor covers too, at least 0 and less than 1.
            model: The ensemble to ask; the client's own by default.
            timeout: Seconds for the whole call with all its tiles; the client's own by default.
            confidence: Keep the joined confidence in the result.
            concurrency: Requests at a time, each in a thread; fewer where this process may not open enough files.

        Returns:
            A result as of `segment`. The ids of the requests are its `request_id` and the number of the tile:
            `ID-1`, `ID-2`, ..., or the `request_id` itself where one tile holds the picture. In its `timings`,
            `encode` is decoding the picture, `wait` is from then on to the last tile, and `decode` is joining.

        Raises:
            SegmentationError: One of its leaves: that of the first tile which fails, and its message names the tile.
                The other tiles are cancelled.
            TypeError: `tile`, `overlap` or `concurrency` is not a number.
            ValueError: `tile`, `overlap`, `concurrency` or `timeout` is out of range, or `model` no name.
        """
        concurrency = _many.check_concurrency(concurrency)
        whole = self._calls.deadline(timeout)
        mosaic = self._run(
            _tiles.cut(self._calls, image, model, whole, tile=tile, overlap=overlap, confidence=confidence)
        )

        def segment(tile: ImageLike, number: int, deadline: AbortableDeadline) -> Segmentation:
            deadline.end_by(whole)
            return self._run(mosaic.segment(tile, number, deadline))

        pairs = _many.in_order(
            segment, mosaic.tiles(), concurrency=concurrency, keep_images=False, seconds=whole.seconds
        )
        with contextlib.closing(pairs):
            for _, result in pairs:
                self._run(mosaic.join(result))
        return mosaic.result()

    def models(self, *, timeout: float | None = None) -> list[ModelInfo]:
        """Return the server's models that segment images, by name.

        No image is sent: Triton is asked which models are loaded (its statistics) and for the config of each.

        Args:
            timeout: Seconds for all questions together; the client's own by default.

        Raises:
            SegmentationError: One of its leaves; AccessDeniedError where the server closes these questions to us.
            ValueError: The timeout is not a finite number of seconds greater than 0.
        """
        return self._run(_steps.models(self._calls, self._calls.deadline(timeout)))

    def server(self, *, timeout: float | None = None) -> ServerInfo:
        """Return the name and the version of the server.

        Raises:
            SegmentationError: One of its leaves.
            ValueError: The timeout is not a finite number of seconds greater than 0.
        """
        return self._run(_steps.server(self._calls, self._calls.deadline(timeout)))

    def is_ready(self, *, model: str | None = None, timeout: float | None = None) -> bool:
        """Return whether the server is up and the model takes requests; False where nobody answers.

        Raises:
            AccessDeniedError, TLSError: There is no telling, and waiting will not help.
            ClientClosedError: The client was closed.
            ClientLimitError: There is no telling, since this process has met a limit of its own.
            ValueError: The timeout is not a finite number of seconds greater than 0.
        """
        return self._run(_readiness.is_ready(self._calls, model, timeout))

    def wait_until_ready(self, *, model: str | None = None, timeout: float = 60.0) -> None:
        """Return as soon as the server is up and the model takes requests.

        Raises:
            DeadlineExceededError: That is not so after `timeout` seconds; the message tells the last reason.
            AccessDeniedError, TLSError: Waiting will not help.
            ClientClosedError: The client was closed.
            ValueError: The timeout is not a finite number of seconds greater than 0.
        """
        self._run(_readiness.until_ready(self._calls, model, timeout))

    def close(self) -> None:
        """Close the connections of this process; may be called twice. See `with_options` for what it returned."""
        if self._calls.close():
            self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # What a copy or a pickle is made of: no connections, and nothing that one copy would change for the other.
        return {**vars(self), "_calls": copy(self._calls), "_runner": copy(self._runner)}

    def __repr__(self) -> str:
        return self._calls.describe("SegmentationClient")

    def _run(self, steps: Steps[_T]) -> _T:
        return self._runner.run(steps, self._calls)
