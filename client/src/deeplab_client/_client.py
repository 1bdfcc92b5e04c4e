"""The client."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING
from uuid import uuid4

from deeplab_client._deadline import Deadline, check_timeout
from deeplab_client._endpoint import parse_url
from deeplab_client._errors import (
    AccessDeniedError,
    ClientClosedError,
    DeadlineExceededError,
    ModelNotFoundError,
    SegmentationError,
    ServerUnavailableError,
    UnsupportedError,
)
from deeplab_client._image import encode
from deeplab_client._transport import Request, open_transport
from deeplab_client._wire import WEIGHTS_PARAMETER, read_reply

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from deeplab_client._image import ImageLike
    from deeplab_client._segmentation import Segmentation
    from deeplab_client._transport import Transport

_logger = logging.getLogger("deeplab_client")


class SegmentationClient:
    """Segments images on a Triton server that serves DeepLabV3.

    Share one between threads; a client made before a fork works in the child too. Nothing is sent before the first
    call, and the protocol's library is loaded by it, outside its timeout.

    Args:
        url: `grpc://host:port`, `http://host:port`, or `host:port` for gRPC.
        model: The ensemble to ask.
        timeout: Seconds that a whole call may take, connecting included.
        transport: Asked in place of the server at `url`: the entry for a fake in tests.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str = "segment_resnet50",
        timeout: float = 30.0,
        transport: Transport | None = None,
    ) -> None:
        self._endpoint = parse_url(url)
        self._model = model
        self._timeout = check_timeout(timeout)
        self._transport = transport
        self._closed = False
        self._weights: dict[str, str | None] = {}

    def segment(self, image: ImageLike, *, model: str | None = None, timeout: float | None = None) -> Segmentation:
        """Segment one image.

        Args:
            image: A path, the bytes of an encoded image (JPEG, PNG, WebP, BMP, PPM), a PIL image, or a uint8 array of
                shape (H, W), (H, W, 1), (H, W, 3) in RGB order, or (H, W, 4), whose alpha is dropped.
            model: Asked in place of the client's own.
            timeout: Seconds, in place of the client's own.

        Raises:
            SegmentationError: One of its leaves.
            ValueError: The timeout is not a finite number of seconds greater than 0.
        """
        transport = self._open()
        deadline = Deadline(self._timeout if timeout is None else timeout)
        request = Request(self._model if model is None else model, encode(image), uuid4().hex)
        # A failure swaps the dict: what a thread learnt before it must not outlive it.
        known = self._weights
        try:
            weights = self._weights_of(request.model, transport, deadline, known)
            reply = transport.infer(request, deadline=deadline)
        except (ServerUnavailableError, DeadlineExceededError):
            self._weights = {}  # whoever answers next may serve something else
            raise
        result = read_reply(reply, weights=weights, request_id=request.request_id)
        if result.untrained and request.model not in known:
            _logger.warning("%s serves %s with untrained weights", self._endpoint, request.model)
        known[request.model] = weights
        _logger.debug("request %s, %d bytes sent: %r", request.request_id, len(request.image), result)
        return result

    def is_ready(self, *, model: str | None = None, timeout: float | None = None) -> bool:
        """Return whether the server is up and the model takes requests; False where nobody answers.

        Raises:
            ClientClosedError: The client was closed.
            ValueError: The timeout is not a finite number of seconds greater than 0.
        """
        transport = self._open()
        deadline = Deadline(self._timeout if timeout is None else timeout)
        try:
            return transport.is_ready(self._model if model is None else model, deadline=deadline)
        except ClientClosedError:
            raise
        except SegmentationError as error:
            _logger.debug("not ready: %s", error)
            return False

    def close(self) -> None:
        """Close the connections of this process; may be called twice."""
        self._closed = True
        if self._transport is not None:
            self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<SegmentationClient {self._endpoint}, {self._model}{', closed' if self._closed else ''}>"

    def _open(self) -> Transport:
        if self._closed:
            raise ClientClosedError(f"the client of {self._endpoint} is closed: make a new one")
        if self._transport is None:
            self._transport = open_transport(self._endpoint)
        return self._transport

    @staticmethod
    def _weights_of(model: str, transport: Transport, deadline: Deadline, known: dict[str, str | None]) -> str | None:
        if model in known:
            return known[model]
        try:
            return transport.model_parameters(model, deadline=deadline).get(WEIGHTS_PARAMETER)
        except (AccessDeniedError, UnsupportedError, ModelNotFoundError) as refusal:
            # Operators may restrict this API. Any other failure is raised: a hiccup must not hide that the weights
            # are untrained.
            _logger.debug("weights of %s unknown: %s", model, refusal)
            return None
