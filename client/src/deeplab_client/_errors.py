"""Everything this package raises, one leaf per thing that a caller can do about it.

```
SegmentationError
├── InvalidImageError        ValueError           the picture is refused, before sending or by the server
├── ServerUnavailableError   ConnectionError      nobody answers, or the server is going away
├── TLSError                 ConnectionError      no trusted connection: certificates, keys, or no TLS at all
├── ServerOverloadedError    RuntimeError         the server has more requests than it takes; try later
├── DeadlineExceededError    TimeoutError         no answer in time
├── ClientLimitError         OSError              a limit of this process or machine: open files, threads, memory, ports
├── AccessDeniedError        PermissionError      the server restricts this API
├── ModelNotFoundError       LookupError          no such model, or not loaded
├── ModelError               RuntimeError         the model failed, or does not keep the contract
├── MismatchedReplyError     RuntimeError         the reply belongs to another request; try again
├── UnsupportedError         NotImplementedError  the server does not have this API
├── ClientClosedError        RuntimeError         the client is used after close()
└── UnknownClassError        KeyError             the model has no class of that name
```
The middle column is the builtin that each one also is.
"""

from __future__ import annotations

from typing import Any


class SegmentationError(Exception):
    """Root of the errors of this package.

    Attributes:
        message: What happened, without the server's prefixes.
        model: The model that was asked, where one was.
        request_id: The id that the request carries in the server's log, where it was sent.
        retry_after: Seconds to wait before another try, 0 or more; None where the server named none.
        retryable: Whether the same call may succeed a little later. The client itself sends such requests again.
        status: The HTTP status, such as 503, or the name of the gRPC status, such as `UNAVAILABLE`; None where there is
            none.
    """

    # True where the request has not been worked on, or has no effect but its answer: asking again is safe. Everything
    # else fails the same way again, or would do a second time what has just cost the whole timeout.
    retryable: bool = False
    status: int | str | None = None

    def __init__(
        self,
        message: str,
        *,
        model: str | None = None,
        request_id: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.model = model
        self.request_id = request_id
        self.retry_after = retry_after

    def __str__(self) -> str:
        return self.message  # KeyError's own would add quotes

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message,), dict(self.__dict__)


def reason_of(error: BaseException) -> str:
    """Return what an error says; it always says something."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error).strip() or type(error).__name__


class InvalidImageError(SegmentationError, ValueError):
    """The picture cannot be segmented: wrong type, unreadable, not an image, too large."""


class ServerUnavailableError(SegmentationError, ConnectionError):
    """The server cannot be reached, or the connection was lost before it answered."""

    retryable = True


class TLSError(SegmentationError, ConnectionError):
    """No trusted connection: a certificate is not accepted on one side, a file of them is bad, or TLS is missing."""


class ServerOverloadedError(SegmentationError, RuntimeError):
    """The server is alive and takes no more requests for now."""

    retryable = True


class DeadlineExceededError(SegmentationError, TimeoutError):
    """The whole call, connecting included, took longer than its timeout."""


class ClientLimitError(SegmentationError, OSError):
    """This process or machine has no more open files, threads, memory or local ports to give; nothing else failed."""

    retryable = True


class AccessDeniedError(SegmentationError, PermissionError):
    """The server restricts this API, or a proxy before it asks for credentials."""


class ModelNotFoundError(SegmentationError, LookupError):
    """The server has no model of that name, or has not loaded it."""


class ModelError(SegmentationError, RuntimeError):
    """The model failed on the server, or its tensors are not those of a segmentation ensemble."""


class MismatchedReplyError(SegmentationError, RuntimeError):
    """The reply belongs to another request: its id, its IMAGE_ID or the size of its mask is not the one expected."""

    retryable = True


class UnsupportedError(SegmentationError, NotImplementedError):
    """The server does not implement what was asked."""


class ClientClosedError(SegmentationError, RuntimeError):
    """The client was used after close()."""


class UnknownClassError(SegmentationError, KeyError):
    """The model has no class of that name."""


def missing_extra(what: str, module: str, extra: str) -> ModuleNotFoundError:
    """Return the error for an optional dependency, with the extra that brings it."""
    # Not by the package's name: it is not on PyPI.
    message = (
        f"{what} needs {module}: pip install './client[{extra}]' in a checkout of the project, or pip install {module}"
    )
    return ModuleNotFoundError(message, name=module)
