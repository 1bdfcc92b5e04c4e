"""What a client does around its transport, without any I/O: requests, retries, weights, results."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import uuid4

from deeplab_client import _wire
from deeplab_client._deadline import Deadline, check_timeout
from deeplab_client._endpoint import parse_url
from deeplab_client._errors import (
    AccessDeniedError,
    ClientClosedError,
    DeadlineExceededError,
    ModelNotFoundError,
    ServerUnavailableError,
    TLSError,
    UnsupportedError,
)
from deeplab_client._options import make_options
from deeplab_client._retry import Attempts, check_retries
from deeplab_client._timings import Timings
from deeplab_client._transport import Request

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from deeplab_client._errors import SegmentationError
    from deeplab_client._image import Upload
    from deeplab_client._options import TLS, Compression
    from deeplab_client._retry import RetryAttempt, RetryHook, RetryPolicy
    from deeplab_client._segmentation import Segmentation
    from deeplab_client._transport import Reply

MaskChoice: TypeAlias = Literal["auto", "raw", "png"]

# Operators may restrict the API that tells the weights. Any other failure is raised: a hiccup must not hide that the
# weights are untrained.
NO_WEIGHTS_TOLD = (AccessDeniedError, UnsupportedError, ModelNotFoundError)
# Waiting for the server does not help against these.
FINAL_REFUSALS = (ClientClosedError, AccessDeniedError, TLSError)

_LONGEST_PROBE = 2.0  # seconds that one question for readiness may take
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two of them

_logger = logging.getLogger("deeplab_client")


class Calls:
    """What all calls of one client share."""

    def __init__(
        self,
        url: str,
        *,
        model: str,
        timeout: float,
        retries: int | RetryPolicy,
        on_retry: RetryHook | None,
        mask_format: MaskChoice,
        tls: TLS | None,
        headers: Mapping[str, str] | None,
        token: str | Callable[[], str | Awaitable[str]] | None,
        compression: Compression | None,
    ) -> None:
        if mask_format not in {"auto", "raw", "png"}:
            raise ValueError(f"mask_format must be 'auto', 'raw' or 'png'; found {mask_format!r}")
        self.endpoint = parse_url(url)
        self.options = make_options(
            encrypted=self.endpoint.is_encrypted, tls=tls, compression=compression, headers=headers, token=token
        )
        self.model = check_model(model)
        self.policy = check_retries(retries)
        self.on_retry = on_retry
        self.outputs = _wire.outputs_of(
            _wire.choose_mask_format(self.endpoint) if mask_format == "auto" else mask_format
        )
        self.closed = False
        self._timeout = check_timeout(timeout)
        # A failure swaps the dict: what a thread learnt before it must not outlive it.
        self.weights: dict[str, str | None] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "weights": {}}  # a copy learns them anew

    def deadline(self, timeout: float | None) -> Deadline:
        """Return the moment by which a call must end that begins now."""
        return Deadline(self.seconds(timeout))

    def seconds(self, timeout: float | None) -> float:
        """Return the timeout of a call.

        Raises:
            ValueError: It is not a finite number of seconds greater than 0.
        """
        return self._timeout if timeout is None else check_timeout(timeout)

    def model_or_own(self, model: str | None) -> str:
        """Return the model of a call.

        Raises:
            TypeError: It is no string.
            ValueError: It cannot be a name.
        """
        return self.model if model is None else check_model(model)

    def check_open(self) -> None:
        """Refuse to work for a closed client.

        Raises:
            ClientClosedError: It is.
        """
        if self.closed:
            raise ClientClosedError(f"the client of {self.endpoint} is closed: make a new one")

    def describe(self, kind: str) -> str:
        """Return a client's representation, without anything that could be a secret."""
        return f"<{kind} {self.endpoint}, {self.model}{', closed' if self.closed else ''}>"


def check_model(model: object) -> str:
    """Return a model's name.

    Raises:
        TypeError: It is no string.
        ValueError: It is empty, or holds characters that cannot be sent.
    """
    if not isinstance(model, str):
        raise TypeError(f"model must be a string, the name of an ensemble; found {model!r}")
    if not model or not model.isprintable():
        raise ValueError(f"model must be the name of an ensemble, of printable characters; found {model!r}")
    return model


class Call:
    """One image on its way.

    Attributes:
        model: The model that is asked.
    """

    __slots__ = ("_attempts", "_calls", "_known", "_learnt", "_marks", "_request_id", "_sent", "model")

    def __init__(self, calls: Calls, model: str | None, deadline: Deadline, *, in_batch: bool = False) -> None:
        self.model = calls.model_or_own(model)
        self._calls = calls
        self._attempts = Attempts(calls.policy, deadline, in_batch=in_batch)
        self._known = calls.weights
        self._learnt: str | None = None
        self._request_id = uuid4().hex
        self._marks = [time.perf_counter()]

    def request(self, upload: Upload) -> Request:
        """Return the request for an image; encoding ends here."""
        self._sent = _wire.Sent(_wire.image_id(upload.data), upload.size)
        self._mark()
        return Request(self.model, upload.data, self._request_id, self._calls.outputs)

    def knows_weights(self) -> bool:
        """Return whether an attempt that begins now knows what the model's weights are."""
        self._known = self._calls.weights
        self._learnt = self._known.get(self.model)
        return self.model in self._known

    def learn_weights(self, parameters: Mapping[str, str]) -> None:
        """Take the weights from a model's parameters."""
        self._learnt = parameters.get(_wire.WEIGHTS_PARAMETER)

    def no_weights(self, refusal: SegmentationError) -> None:
        """Take note that the server does not tell."""
        _logger.debug("weights of %s unknown: %s", self.model, refusal)

    def attempt_after(self, error: SegmentationError) -> RetryAttempt | None:
        """Take note of a failed attempt; return what to tell of it before the next, None where it is final."""
        if isinstance(error, (ServerUnavailableError, DeadlineExceededError)):
            self._calls.weights = {}  # whoever answers next may serve something else
        attempt = self._attempts.after(error)
        if attempt is not None:
            _logger.info(
                "request %s, attempt %d: retry in %.2f s: %s", self._request_id, attempt.number, attempt.delay, error
            )
        return attempt

    def answered(self) -> None:
        """Take note that a reply is here; waiting ends with the last."""
        del self._marks[2:]
        self._mark()

    def result(self, reply: Reply) -> Segmentation:
        """Make the result.

        Raises:
            MismatchedReplyError: The reply belongs to another request.
            ModelError: The reply does not keep the contract.
        """
        result = _wire.read_reply(reply, self._sent, weights=self._learnt, request_id=self._request_id)
        if result.untrained and self.model not in self._known:
            _logger.warning("%s serves %s with untrained weights", self._calls.endpoint, self.model)
        self._known[self.model] = self._learnt
        self._mark()
        start, encoded, answered, end = self._marks
        timings = Timings(encode=encoded - start, wait=answered - encoded, decode=end - answered)
        _logger.debug("request %s: %r in %s", self._request_id, result, timings)
        return replace(result, timings=timings)

    def _mark(self) -> None:
        self._marks.append(time.perf_counter())


class Probes:
    """The questions for readiness until a server is there."""

    def __init__(self, calls: Calls, model: str | None, timeout: float) -> None:
        self.model = calls.model_or_own(model)
        self._calls = calls
        self._deadline = Deadline(timeout)
        self._pause = _FIRST_PAUSE
        self._not_said = f"it does not call itself and model {self.model!r} ready"
        self._last = self._not_said

    def deadline(self) -> Deadline:
        """Return the deadline of the next question.

        Raises:
            DeadlineExceededError: The time is up.
        """
        try:
            return Deadline(min(self._deadline.remaining(), _LONGEST_PROBE))
        except TimeoutError as error:
            message = f"{self._calls.endpoint} is not ready within {round(self._deadline.seconds, 1):g} s: {self._last}"
            raise DeadlineExceededError(message, model=self.model) from error

    def pause_after(self, reason: str | None) -> float:
        """Take note of an answer that is no yes; return the seconds until the next question."""
        self._last = self._not_said if reason is None else reason
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        try:
            return min(pause, self._deadline.remaining())
        except TimeoutError:
            return 0.0
