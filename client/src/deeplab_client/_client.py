"""The synchronous client."""

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
    """Client for a Triton server that segments images with DeepLabV3.

    A client can be shared between threads, and created before a fork. The constructor sends nothing. The first call
    loads the protocol's library, outside its timeout.

    Args:
        url: `grpc://host:port` or `host:port` for gRPC, `http://host:port` or `http://host:port/prefix` for HTTP,
            `grpcs://` or `https://` for TLS, or a Unix socket: `unix:///path` for gRPC, `http+unix:///path` for HTTP.
        model: Name of the ensemble.
        timeout: Seconds for a whole call, including connecting and retries.
        retries: Maximum number of retries after a retryable error, such as an unreachable or overloaded server; or a
            policy that also sets the pauses.
        on_retry: Called before each pause, in the thread that makes the call.
        on_request: Called before each attempt of an inference, in the thread that makes the call.
        on_response: Called after each attempt, in the same thread.
        mask_format: How masks are sent: `raw`, `png`, or `auto` for the faster one for the URL. The result is the same.
        tls: Trusted certificates and the client's own certificate, for `grpcs://` and `https://`.
        headers: Sent with every request; over gRPC as metadata.
        token: Sent as bearer token; a function is called before every request and returns the token.
        compression: `gzip` or `deflate`, for masks and images sent as pixels; over gRPC the server decides on masks.
        proxy: `http://host:port` of an HTTP proxy for a server at `http://` or `https://`, with `user:password@` if
            required; `env` for the proxy of HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
        transport: Used instead of the server at `url`, for example a fake in tests.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range, or `url` or `proxy` is not valid.
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
        """Create a client from `DEEPLAB_URL` and the other `DEEPLAB_` variables that the README lists.

        Args:
            arguments: Arguments of the constructor; they take precedence over the environment.

        Raises:
            ValueError: The URL is missing, or a variable is not valid.
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
        """Return a view of this client, whose calls use other options and the same connections.

        Closing a view, or leaving its `with` block, ends only the view. Closing the original client closes the
        connections and ends its views too. Creating a view takes a few microseconds.

        Args:
            headers: Sent in addition to the client's headers, and instead of those of the same name.
            retries: Replaces the client's retries.
            timeout: Seconds for a whole call; replaces the client's timeout.
            request_id: Id of the request in the server's log, the result's `request_id` and errors, the same for
                retries: 1 to 128 printable ASCII characters without spaces. `segment_many` appends the number of the
                image: `ID-1`, `ID-2`, ... If a request with this id is under way, the next one is sent as `ID-2`.

        Raises:
            ClientClosedError: The client is closed.
            TypeError: An option has the wrong type.
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
            image: A path, the bytes of an encoded image (JPEG, PNG, WebP, BMP, PPM, GIF, TIFF, AVIF, HEIC), a binary
                file object, a PIL image, or an array or tensor in CPU memory, uint8 or float from 0 to 1, of shape
                (H, W), (H, W, 1), (H, W, 3) in RGB order, or (H, W, 4), whose alpha is dropped.
            model: Name of the ensemble; default: the client's.
            timeout: Seconds for the whole call; default: the client's.
            confidence: Also request the confidence of each pixel, which is as much data as a raw mask.

        Returns:
            The mask, (H, W) uint8 class ids at the image's own size, with class names and model.

        Raises:
            SegmentationError: One of its subclasses.
            ValueError: `timeout` is not a finite number greater than 0, or `model` is not a name.
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
        """Segment images as they come, and yield the results in the order of the images.

        At most `concurrency` requests are under way, and at most twice as many images are read and not yet yielded. To
        stop early, close the generator or leave the loop: requests under way are cancelled.

        Args:
            images: Read in the thread that iterates. While the iterable waits for its next image, finished results
                wait too. For a slow source, such as a camera, call `segment`, or use the asynchronous client.
            raise_errors: Raise the first error, instead of yielding each error in the place of its result.
            with_source: Yield pairs of an image, as it came from `images`, and its result or error. The image is kept
                in memory until its pair is yielded.
            concurrency: Maximum number of concurrent requests, each in a thread; lowered if this process cannot
                open enough files.
            model: Name of the ensemble; default: the client's.
            timeout: Seconds for each image; default: the client's.
            confidence: Also request the confidence of each pixel.

        Raises:
            ClientClosedError: The client is closed, now or during the iteration.
            TypeError: `images` is one image, or not iterable.
            ValueError: `timeout` or `concurrency` is out of range, or `model` is not a name.
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

        Where tiles overlap, the class of the tile with the higher confidence wins. The call needs memory for the
        picture, its mask, its confidence and the tiles under way.

        A tile has no context beyond its border, so objects larger than a tile are found less well than by `segment`.
        The server resizes each tile like any picture: by default to 520 x 520 pixels, so a tile of 1040 to half its
        size.

        Args:
            image: Any image that `segment` takes. Encoded images are decoded on this side, by Pillow, whose limit
                `PIL.Image.MAX_IMAGE_PIXELS` applies; a HEIC picture needs the extra `heic`.
            tile: Width and height of a tile, in pixels of the picture, 64 or more. The last tile of each row and column
                is moved inwards. If a side of the picture is shorter, so are its tiles.
            overlap: Share of a tile that its neighbor also covers, at least 0 and less than 1.
            model: Name of the ensemble; default: the client's.
            timeout: Seconds for the whole call with all its tiles; default: the client's.
            confidence: Keep the joined confidence in the result.
            concurrency: Maximum number of concurrent requests, each in a thread; lowered if this process cannot
                open enough files.

        Returns:
            A result like that of `segment`. The ids of the requests are its `request_id` with the number of the tile:
            `ID-1`, `ID-2`, ..., or the `request_id` itself if one tile covers the picture. In its `timings`, `encode`
            is decoding the picture, `wait` is the time from then until the last tile, and `decode` is joining.

        Raises:
            SegmentationError: The error of the first tile that failed; its message names the tile. The other tiles
                are cancelled.
            TypeError: `tile`, `overlap` or `concurrency` is not a number.
            ValueError: `tile`, `overlap`, `concurrency` or `timeout` is out of range, or `model` is not a name.
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
        """Return the segmentation models of the server, sorted by name.

        No image is sent. The names come from Triton's statistics, and the details from the config of each model.

        Args:
            timeout: Seconds for all requests together; default: the client's.

        Raises:
            SegmentationError: One of its subclasses, such as AccessDeniedError if the server denies these requests.
            ValueError: `timeout` is not a finite number greater than 0.
        """
        return self._run(_steps.models(self._calls, self._calls.deadline(timeout)))

    def server(self, *, timeout: float | None = None) -> ServerInfo:
        """Return the name and the version of the server.

        Raises:
            SegmentationError: One of its subclasses.
            ValueError: `timeout` is not a finite number of seconds greater than 0.
        """
        return self._run(_steps.server(self._calls, self._calls.deadline(timeout)))

    def is_ready(self, *, model: str | None = None, timeout: float | None = None) -> bool:
        """Return whether the server and the model are ready; False if no server answers.

        Args:
            model: Name of the ensemble; default: the client's.
            timeout: Seconds for the whole call; default: the client's.

        Raises:
            AccessDeniedError, TLSError: The readiness is unknown, and waiting does not help.
            ClientClosedError: The client is closed.
            ClientLimitError: The readiness is unknown, because this process has met a limit of its own.
            ValueError: `timeout` is not a finite number greater than 0.
        """
        return self._run(_readiness.is_ready(self._calls, model, timeout))

    def wait_until_ready(self, *, model: str | None = None, timeout: float = 60.0) -> None:
        """Return as soon as the server and the model are ready.

        Args:
            model: Name of the ensemble; default: the client's.
            timeout: Seconds to wait at most.

        Raises:
            DeadlineExceededError: They are not ready after `timeout` seconds; the message has the last reason.
            AccessDeniedError, TLSError: Waiting does not help.
            ClientClosedError: The client is closed.
            ValueError: `timeout` is not a finite number greater than 0.
        """
        self._run(_readiness.until_ready(self._calls, model, timeout))

    def close(self) -> None:
        """Close the connections of this process; may be called twice. For views, see `with_options`."""
        if self._calls.close():
            self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # For copies and pickles: without connections and without any state that copies would share.
        return {**vars(self), "_calls": copy(self._calls), "_runner": copy(self._runner)}

    def __repr__(self) -> str:
        return self._calls.describe("SegmentationClient")

    def _run(self, steps: Steps[_T]) -> _T:
        return self._runner.run(steps, self._calls)
