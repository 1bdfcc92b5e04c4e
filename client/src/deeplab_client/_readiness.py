"""Check once, or wait until, a server and its model are ready: generators of steps, see `_steps`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from deeplab_client._deadline import Deadline
from deeplab_client._errors import (
    AccessDeniedError,
    ClientClosedError,
    ClientLimitError,
    DeadlineExceededError,
    ModelNotFoundError,
    SegmentationError,
    TLSError,
)
from deeplab_client._steps import Ask, Done, Pause

if TYPE_CHECKING:
    from deeplab_client._calls import Calls
    from deeplab_client._steps import Part, Steps

# Waiting does not help against these errors.
_FINAL_REFUSALS = (ClientClosedError, AccessDeniedError, TLSError)

_LONGEST_PROBE = 2.0  # seconds for one check
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0  # seconds between two checks

_logger = logging.getLogger("deeplab_client")


def is_ready(calls: Calls, model: str | None, timeout: float | None) -> Steps[bool]:
    """Check once whether the server and a model are ready."""
    calls.check_open()
    model, deadline = calls.model_or_own(model), calls.deadline(timeout)
    try:
        ready = yield Ask("is_ready", model, deadline)
    except (*_FINAL_REFUSALS, ClientLimitError):
        raise
    except SegmentationError as error:
        _logger.debug("not ready: %s", error)
        ready = False
    yield Done(ready)


def until_ready(calls: Calls, model: str | None, timeout: float) -> Steps[None]:
    """Wait until the server and a model are ready."""
    model, whole = calls.model_or_own(model), Deadline(timeout)
    reason = no_reason = f"the server reports itself or model {model!r} as not ready"
    pause = _FIRST_PAUSE
    while True:
        try:
            deadline = Deadline(min(whole.remaining(), _LONGEST_PROBE))
        except TimeoutError as error:
            message = f"{calls.endpoint} was not ready within {round(whole.seconds, 1):g} s: {reason}"
            raise DeadlineExceededError(message, model=model) from error
        try:
            if (yield Ask("is_ready", model, deadline)):
                break
            reason = (yield from _why_not(model, deadline)) or no_reason
        except _FINAL_REFUSALS:
            raise
        except SegmentationError as error:
            reason = str(error)
        yield Pause(pause, whole)
        pause = min(2 * pause, _LONGEST_PAUSE)
    yield Done(None)


def _why_not(model: str, deadline: Deadline) -> Part[str | None]:
    """Return the server's reason why a model is not ready; None if it gives none."""
    try:
        yield Ask("model_config", model, deadline)
    except ModelNotFoundError as refusal:
        return str(refusal)
    except SegmentationError as error:
        _logger.debug("%s is not ready, and its config is not available: %s", model, error)
    return None
