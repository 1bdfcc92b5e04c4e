"""Fake transports instead of a server, for tests of code that uses the client.

Example:
    Every picture gets this mask::

        transport = FakeTransport(mask=np.array([[0, 8], [8, 8]], np.uint8))
        client = SegmentationClient("grpc://fake", transport=transport)

To write your own fake, use the types of `deeplab_client.Transport`: `Request`, `Reply`, `ModelConfig`, `EnsembleStep`
and `Deadline`.
"""

from __future__ import annotations

import copy
import json
import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from deeplab_client import _wire, voc
from deeplab_client._deadline import Deadline
from deeplab_client._errors import DeadlineExceededError, ModelNotFoundError, SegmentationError
from deeplab_client._transport import EnsembleStep, ModelConfig, Reply, Request, ServerInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from numpy.typing import NDArray
    from PIL import Image

__all__ = [
    "Answer",
    "AsyncFakeTransport",
    "Deadline",
    "EnsembleStep",
    "FakeTransport",
    "Mask",
    "ModelConfig",
    "ReceivedRequest",
    "Reply",
    "Request",
]

Mask: TypeAlias = "NDArray[np.uint8] | Callable[[ReceivedRequest], NDArray[np.uint8]]"
"""Class ids, (H, W) uint8, or a function that returns them for a request and may raise a SegmentationError."""

Answer: TypeAlias = "Mask | SegmentationError"
"""A mask, a function that returns one for a request, or an error to raise."""


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request that a fake received.

    Attributes:
        model: Name of the ensemble.
        image: The encoded image as it was sent; arrays and PIL images are sent as PPM or PGM.
        request_id: Id of the request.
        seconds_left: Seconds left of the call's timeout.
    """

    model: str
    image: bytes
    request_id: str
    seconds_left: float

    @property
    def picture(self) -> Image.Image:
        """The image as the server decodes it, in RGB and upright.

        Raises:
            InvalidImageError: It cannot be decoded.
        """
        from deeplab_client import _picture  # noqa: PLC0415 - Pillow is loaded only where it is used

        return _picture.opened(self.image)

    def __repr__(self) -> str:
        return f"<ReceivedRequest {self.request_id}, {self.model}, {len(self.image)} bytes>"


class _FakeServer:
    """The common part of both fakes, which differ in their coroutine methods."""

    def __init__(
        self,
        mask: Mask | None = None,
        *,
        answers: Iterable[Answer] = (),
        class_names: Sequence[str] = voc.CLASS_NAMES,
        weights: str | None = "COCO_WITH_VOC_LABELS_V1",
        background: bool = True,
        confidence: Mask | None = None,
        model_version: str = "1",
        models: Collection[str] | None = None,
        ready: bool = True,
    ) -> None:
        self.requests: list[ReceivedRequest] = []
        self.closed = False
        self.ready = ready
        self._mask: Mask = _background if mask is None else mask
        self._answers = deque(answers)
        self._class_names = tuple(class_names)
        self._weights = weights
        self._background = background
        self._confidence = confidence
        self._model_version = model_version
        self._models = models
        self._lock = threading.Lock()
        for answer in (self._mask, *self._answers):
            if not callable(answer) and not isinstance(answer, SegmentationError):
                self._check(answer)

    def _infer(self, request: Request, deadline: Deadline) -> Reply:
        self._refuse(request.model, request.request_id)
        try:
            received = ReceivedRequest(request.model, request.image, request.request_id, deadline.remaining())
        except TimeoutError as error:
            raise _about(DeadlineExceededError(f"no answer within {deadline.seconds:g} s"), request) from error
        with self._lock:
            self.requests.append(received)
            answer = self._answers.popleft() if self._answers else self._mask
        if isinstance(answer, SegmentationError):
            raise _about(answer, request)
        try:
            mask = self._check(answer(received) if callable(answer) else answer)
        except SegmentationError as error:
            raise _about(error, request) from error
        outputs = self._outputs(mask) | {"IMAGE_ID": np.array([[_wire.image_id(request.image)]], np.int64)}
        if _wire.CONFIDENCE in request.outputs:
            outputs[_wire.CONFIDENCE] = self._certainty(received, mask)[np.newaxis]
        return Reply(outputs, request.model, self._model_version)

    def _config(self, model: str) -> ModelConfig:
        self._refuse(model, None)
        parameters = {
            _wire.BACKGROUND_PARAMETER: "true" if self._background else "false",
            "class_names": json.dumps(self._class_names),
            "precision": "fp32",
            "max_pixels": "50000000",
            "resize_mode": "fixed",
            "resize_size": "520",
        }
        if self._weights is not None:
            parameters[_wire.WEIGHTS_PARAMETER] = self._weights
        return ModelConfig(
            parameters,
            frozenset({_wire.IMAGE}),
            frozenset({"MASK", "MASK_PNG", "CLASS_PIXELS", "CLASS_NAMES", "IMAGE_ID", _wire.CONFIDENCE}),
        )

    def _versions(self) -> dict[str, str]:
        models = ("segment_resnet50", "segment_resnet101") if self._models is None else self._models
        return dict.fromkeys(models, self._model_version)

    def _is_ready(self, model: str) -> bool:
        return self.ready and (self._models is None or model in self._models)

    def _refuse(self, model: str, request_id: str | None) -> None:
        if self._models is not None and model not in self._models:
            message = f"the fake server does not serve model {model!r}"
            raise ModelNotFoundError(message, model=model, request_id=request_id)

    def _check(self, mask: object) -> NDArray[np.uint8]:
        """Refuse a mask that no server would send: this is a bug in the test, so not a SegmentationError."""
        if not isinstance(mask, np.ndarray):
            raise TypeError(f"the answer of a fake must be a mask or a SegmentationError, got {type(mask).__name__}")
        array: NDArray[Any] = mask
        if array.dtype != np.uint8 or array.ndim != 2 or array.size == 0:  # noqa: PLR2004 - height, width
            raise ValueError(f"a mask must be uint8 (H, W) with at least one pixel, got {array.dtype} {array.shape}")
        if array.max() >= len(self._class_names):
            raise ValueError(
                f"the mask contains class id {array.max()}, but there are {len(self._class_names)} class names"
            )
        return array

    def _outputs(self, mask: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        names = np.array([name.encode() for name in self._class_names], np.object_)
        return {"MASK": mask[np.newaxis], "CLASS_NAMES": names[np.newaxis]}

    def _certainty(self, received: ReceivedRequest, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        confidence = self._confidence(received) if callable(self._confidence) else self._confidence
        if confidence is None:
            return np.full(mask.shape, 255, np.uint8)
        if confidence.dtype != np.uint8 or confidence.shape != mask.shape:
            raise ValueError(
                f"the confidence must be uint8 of shape {mask.shape}, got {confidence.dtype} {confidence.shape}"
            )
        return confidence


class FakeTransport(_FakeServer):
    """A fake server with given answers, which records its requests; can be shared between threads.

    By default every pixel is background, and an image that cannot be decoded is refused, as by a real server.

    Args:
        mask: The answer to every request: a mask, or a function of the request.
        answers: Answers to the first requests in order, including errors; later requests get `mask`.
        class_names: Name of each class id.
        weights: Name of the weights; `none` for untrained weights, None for a server that does not report it.
        background: Whether class 0 is a background.
        confidence: Confidence of each pixel, (H, W) uint8, 255 is 1.0, or a function that returns it for a request;
            default: 255 everywhere. Only used for requests that ask for it.
        model_version: Version of every model.
        models: Names of the served models; default: any.
        ready: Whether the server is ready.

    Attributes:
        requests: The received requests, in order.
        closed: Whether a client was closed; the fake still answers other clients.
        ready: Whether the server is ready; may be set at any time.

    Raises:
        TypeError, ValueError: A mask is not uint8 (H, W), or contains an id without a class name.
    """

    def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Give the next answer."""
        return self._infer(request, deadline)

    def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        """Return a config with the class names, the weights and the background."""
        del deadline
        return self._config(model)

    def model_versions(self, *, deadline: Deadline) -> dict[str, str]:
        """Return the version of each served model; by default of both ensembles."""
        del deadline
        return self._versions()

    def server_info(self, *, deadline: Deadline) -> ServerInfo:
        """Return the name `fake`."""
        del deadline
        return ServerInfo("fake", "0")

    def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return `ready`, and False for a model that is not served."""
        del deadline
        return self._is_ready(model)

    def close(self) -> None:
        """Set `closed`."""
        self.closed = True


class AsyncFakeTransport(_FakeServer):
    """`FakeTransport` for the asynchronous client: the same arguments and attributes, with coroutine methods."""

    async def infer(self, request: Request, *, deadline: Deadline) -> Reply:
        """Give the next answer."""
        return self._infer(request, deadline)

    async def model_config(self, model: str, *, deadline: Deadline) -> ModelConfig:
        """Return a config with the class names, the weights and the background."""
        del deadline
        return self._config(model)

    async def model_versions(self, *, deadline: Deadline) -> dict[str, str]:
        """Return the version of each served model; by default of both ensembles."""
        del deadline
        return self._versions()

    async def server_info(self, *, deadline: Deadline) -> ServerInfo:
        """Return the name `fake`."""
        del deadline
        return ServerInfo("fake", "0")

    async def is_ready(self, model: str, *, deadline: Deadline) -> bool:
        """Return `ready`, and False for a model that is not served."""
        del deadline
        return self._is_ready(model)

    async def close(self) -> None:
        """Set `closed`."""
        self.closed = True


def _about(error: SegmentationError, request: Request) -> SegmentationError:
    """Return a copy with the request's id, because one error raised in many threads would collect all tracebacks."""
    named = copy.copy(error)
    named.model, named.request_id = error.model or request.model, error.request_id or request.request_id
    return named


def _background(request: ReceivedRequest) -> NDArray[np.uint8]:
    picture = request.picture
    return np.zeros((picture.height, picture.width), np.uint8)
