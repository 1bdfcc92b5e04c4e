"""The logic of each call, shared by both clients: generators of steps, without I/O.

A client runs each step and sends its result, or throws its error, into the generator. After `Done` it returns. Retries,
hooks, spans and the facts about models are handled here.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar

from deeplab_client import _tracing, _wire
from deeplab_client._errors import (
    AccessDeniedError,
    ClientLimitError,
    DeadlineExceededError,
    InvalidImageError,
    ModelError,
    ModelNotFoundError,
    SegmentationError,
    ServerUnavailableError,
    UnsupportedError,
)
from deeplab_client._hooks import RequestInfo, ResponseInfo
from deeplab_client._image import encode
from deeplab_client._models import max_pixels_of, model_infos
from deeplab_client._retry import Attempts
from deeplab_client._segmentation import Timings
from deeplab_client._transport import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from deeplab_client._calls import Calls
    from deeplab_client._deadline import Deadline
    from deeplab_client._hooks import HookArgument
    from deeplab_client._image import ImageLike
    from deeplab_client._models import ModelInfo
    from deeplab_client._segmentation import Segmentation
    from deeplab_client._transport import ModelConfig, Reply, ServerInfo
    from deeplab_client._wire import ModelFacts

_T = TypeVar("_T")

# Operators may restrict the API with the weights and the background. Any other error is raised, because a temporary
# failure must not hide that the weights are untrained.
_FACTS_UNAVAILABLE = (AccessDeniedError, UnsupportedError, ModelNotFoundError)
# Images with at most so many pixels are sent without requesting the model's limit, whose default is 50 million.
_ALWAYS_SENT = 10_000_000
_SMALL_FILE = 1_000_000  # bytes; the server refuses a smaller file quickly

_logger = logging.getLogger("deeplab_client")


@dataclass(frozen=True, slots=True)
class Ask:
    """Call a method of the transport: `transport.METHOD(about, deadline=deadline)`, without `about` if it is None."""

    method: Literal["infer", "model_config", "is_ready", "model_versions", "server_info"]
    about: Request | str | None
    deadline: Deadline


@dataclass(frozen=True, slots=True)
class Work:
    """Call a function that reads an image or a reply, which may take long."""

    function: Callable[[Any], object]
    argument: object
    deadline: Deadline


@dataclass(frozen=True, slots=True)
class CallHook:
    """Call a hook of the caller, and await its result if it is awaitable.

    An exception of the hook ends the call, and is not thrown into the steps.
    """

    hook: Callable[[Any], object]
    about: HookArgument
    deadline: Deadline


@dataclass(frozen=True, slots=True)
class Pause:
    """Sleep, but not beyond the deadline."""

    seconds: float
    deadline: Deadline


@dataclass(frozen=True, slots=True)
class Done(Generic[_T]):
    """Return the value; the last step."""

    value: _T


Step: TypeAlias = Ask | Work | CallHook | Pause
Steps: TypeAlias = Generator[Step | Done[_T], Any, None]
Part: TypeAlias = Generator[Step, Any, _T]


def segment(
    calls: Calls,
    image: ImageLike,
    model: str | None,
    deadline: Deadline,
    *,
    confidence: bool = False,
    in_batch: bool = False,
    request_id: str | None = None,
) -> Steps[Segmentation]:
    """Segment one image."""
    calls.check_open()
    with calls.own_id(request_id or calls.request_id()) as own_id:
        call = _Call(calls, model, deadline, confidence=confidence, in_batch=in_batch, request_id=own_id)
        result = yield from call.retried(partial(call.segment, image))
    yield Done(result)


def models(calls: Calls, deadline: Deadline) -> Steps[list[ModelInfo]]:
    """Get the segmentation models of the server."""
    calls.check_open()
    call = _Call(calls, None, deadline)
    yield Done((yield from call.retried(call.ask_models)))


def server(calls: Calls, deadline: Deadline) -> Steps[ServerInfo]:
    """Get name and version of the server."""
    calls.check_open()
    call = _Call(calls, None, deadline)
    yield Done((yield from call.retried(call.ask_server)))


class _Call:
    """One call with its retries."""

    def __init__(
        self,
        calls: Calls,
        model: str | None,
        deadline: Deadline,
        *,
        confidence: bool = False,
        in_batch: bool = False,
        request_id: str | None = None,
    ) -> None:
        self._model = calls.model_or_own(model)
        self._calls = calls
        self._deadline = deadline
        self._attempts = Attempts(calls.policy, deadline, in_batch=in_batch)
        self._confidence = confidence
        self._known = calls.facts
        self._facts = _wire.ModelFacts()
        self._request: Request | None = None
        self._request_id = request_id or calls.request_id()
        self._marks = [time.perf_counter()]

    def retried(self, attempt: Callable[[], Part[_T]]) -> Part[_T]:
        """Make attempts until one succeeds or fails permanently."""
        limits: list[ClientLimitError] = []
        while True:
            try:
                return (yield from attempt())
            except SegmentationError as error:
                if isinstance(error, DeadlineExceededError) and limits and self._request is None:
                    break  # nothing was sent: the limit that kept the image from being read is the reason
                pause = yield from self._after(error)
                if pause is None:
                    raise
                limits = [error] if isinstance(error, ClientLimitError) else []
            yield pause
        raise limits.pop()

    def segment(self, image: ImageLike) -> Part[Segmentation]:
        """Make one attempt; the first one reads the image."""
        request = self._request
        if request is None:
            request = self._request = yield Work(self._encoded, image, self._deadline)
            self._deadline.finish_reading()
        yield from self._check_pixels(request)
        about = RequestInfo(request.model, request.request_id, self._attempts.number, len(request.image))
        yield from self._call_hook(self._calls.on_request, about)
        start = time.perf_counter()
        try:
            with _tracing.attempt(self._calls.endpoint, about):
                result = yield from self._infer(request)
        except SegmentationError as error:
            yield from self._call_hook(self._calls.on_response, ResponseInfo(about, time.perf_counter() - start, error))
            raise
        yield from self._call_hook(self._calls.on_response, ResponseInfo(about, time.perf_counter() - start, None))
        return result

    def _call_hook(self, hook: Callable[[Any], object] | None, about: HookArgument) -> Part[None]:
        if hook is not None:
            yield CallHook(hook, about, self._deadline)

    def _infer(self, request: Request) -> Part[Segmentation]:
        # Replies do not contain the facts. A client requests them once for each model: 0.3 ms over HTTP, 0.9 over gRPC.
        # A failure replaces the dict, because facts from before the failure may no longer be true.
        self._known = self._calls.facts
        self._facts = self._known[self._model] if self._model in self._known else (yield from self.ask_facts())
        reply = yield from self._ask_reply(request)
        del self._marks[2:]  # `wait` ends with the last reply
        self._mark()
        return (yield Work(self._result, reply, self._deadline))

    def _ask_reply(self, request: Request) -> Part[Reply]:
        try:
            return (yield Ask("infer", request, self._deadline))
        except ModelError as refusal:
            # Triton: unexpected inference output 'CONFIDENCE'
            if not self._confidence or f"output '{_wire.CONFIDENCE}'" not in refusal.message:
                raise
        raise _wire.without_confidence(self._model, self._request_id)

    def ask_facts(self) -> Part[ModelFacts]:
        """Get the facts from the model's config; return the defaults if the server denies access to it."""
        try:
            config: ModelConfig = yield Ask("model_config", self._model, self._deadline)
        except _FACTS_UNAVAILABLE as refusal:
            _logger.debug("weights of %s unknown: %s", self._model, refusal)
            return _wire.ModelFacts()
        return _wire.facts_of(config.parameters)

    def _check_pixels(self, request: Request) -> Part[None]:
        """Refuse an image that is too large before it is sent; if its size or the limit is unknown, the server decides.

        Raises:
            InvalidImageError: It has more pixels than the model accepts.
        """
        size = self._sent.size
        if size is None and len(request.image) > _SMALL_FILE:
            size = yield Work(_declared_size, request.image, self._deadline)
        height, width = size or (0, 0)
        taken = self._calls.pixels_taken
        if height * width <= taken.get(self._model, _ALWAYS_SENT):
            return
        # Requested again before each refusal, because the model may have been rebuilt.
        limit = yield from self._ask_pixel_limit()
        taken[self._model] = sys.maxsize if limit is None else limit
        if limit is not None and height * width > limit:
            found = (
                f"the image has {width} x {height} = {width * height} pixels, but {self._model!r} takes at most {limit}"
            )
            raise InvalidImageError(f"{found}: use segment_tiles, or scale it down", model=self._model)

    def _ask_pixel_limit(self) -> Part[int | None]:
        """Get the pixel limit of the step that reads the image; None if the server denies access to it."""
        try:
            config: ModelConfig = yield Ask("model_config", self._model, self._deadline)
            reader = next((step.model for step in config.steps if _wire.IMAGE in step.inputs), None)
            if reader is not None:
                config = yield Ask("model_config", reader, self._deadline)
        except _FACTS_UNAVAILABLE as refusal:
            _logger.debug("pixel limit of %s unknown: %s", self._model, refusal)
            return None
        return max_pixels_of(config)

    def ask_models(self) -> Part[list[ModelInfo]]:
        """Get the loaded models and the config of each."""
        versions: Mapping[str, str] = yield Ask("model_versions", None, self._deadline)
        configs: dict[str, ModelConfig] = {}
        for name in versions:
            with contextlib.suppress(ModelNotFoundError):  # unloaded in the meantime
                configs[name] = yield Ask("model_config", name, self._deadline)
        return model_infos(versions, configs)

    def ask_server(self) -> Part[ServerInfo]:
        """Get name and version of the server."""
        return (yield Ask("server_info", None, self._deadline))

    # A separate generator, because the attempt holds the error, whose traceback holds the frame of the attempt.
    def _after(self, error: SegmentationError) -> Part[Pause | None]:
        """Record a failed attempt and call the hook; return the pause before the retry, None if there is none."""
        if isinstance(error, (ServerUnavailableError, DeadlineExceededError)):
            self._calls.forget_facts()
        attempt = self._attempts.after(error)
        if attempt is None:
            return None
        _logger.info(
            "request %s, attempt %d: retry in %.2f s: %s", self._request_id, attempt.number, attempt.delay, error
        )
        yield from self._call_hook(self._calls.on_retry, attempt)
        return Pause(attempt.delay, self._deadline)

    def _encoded(self, image: ImageLike) -> Request:
        upload = encode(image)
        self._sent = _wire.Sent(_wire.image_id(upload.data), upload.size)
        self._mark()
        outputs = (*self._calls.outputs, _wire.CONFIDENCE) if self._confidence else self._calls.outputs
        return Request(self._model, upload.data, self._request_id, outputs)

    def _result(self, reply: Reply) -> Segmentation:
        """Create the result.

        Raises:
            MismatchedReplyError: The reply belongs to another request.
            ModelError: The reply is not that of a segmentation ensemble.
            UnsupportedError: It has no confidence, which was requested.
        """
        result = _wire.read_reply(
            reply, self._sent, facts=self._facts, confidence=self._confidence, request_id=self._request_id
        )
        if result.untrained and self._model not in self._known:
            _logger.warning(
                "%s serves %s with untrained weights: its masks are noise", self._calls.endpoint, self._model
            )
        self._known[self._model] = self._facts
        self._mark()
        start, encoded, answered, end = self._marks
        timings = Timings(encode=encoded - start, wait=answered - encoded, decode=end - answered)
        _logger.debug("request %s: %r in %s", self._request_id, result, timings)
        return replace(result, timings=timings)

    def _mark(self) -> None:
        self._marks.append(time.perf_counter())


def _declared_size(encoded: bytes) -> tuple[int, int] | None:
    from deeplab_client import _picture  # noqa: PLC0415 - Pillow is loaded only where it is used

    return _picture.declared_size(encoded)
