"""The exceptions of this package, one class per remedy.

```
SegmentationError
├── InvalidImageError        ValueError           the image is refused, by the client or by the server
├── ServerUnavailableError   ConnectionError      no server answers, or it is shutting down
├── TLSError                 ConnectionError      no TLS connection: certificates, keys, or a server without TLS
├── ServerOverloadedError    RuntimeError         the server accepts no more requests for now; retry later
├── DeadlineExceededError    TimeoutError         no reply in time
├── ClientLimitError         OSError              a limit of this process or machine: open files, threads, memory, ports
├── AccessDeniedError        PermissionError      the server or a proxy denies access
├── ModelNotFoundError       LookupError          the model does not exist, or is not loaded
├── ModelError               RuntimeError         the model failed, or is not a segmentation ensemble
├── MismatchedReplyError     RuntimeError         the reply belongs to another request; retry
├── UnsupportedError         NotImplementedError  the server does not have this API or output
├── ClientClosedError        RuntimeError         the client is used after close()
└── UnknownClassError        KeyError             the model has no class of that name
```
The middle column is the builtin class that each one also inherits from.
"""

from __future__ import annotations

from typing import Any


class SegmentationError(Exception):
    """Base class of the exceptions of this package.

    Attributes:
        message: The text of the error, without the server's prefixes.
        model: Name of the requested model, or None.
        request_id: Id of the request in the server's log; None if nothing was sent.
        retry_after: Seconds to wait before another attempt, 0 or more; None if the server asks for no wait.
        retryable: Whether the same call may succeed a little later. The client itself retries such requests.
        status: HTTP status, such as 503, or name of the gRPC status, such as `UNAVAILABLE`; None if there is none.
    """

    # Retrying is safe, because inference changes nothing on the server. Errors that are not retryable would occur
    # again, or would take the whole timeout again.
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
    """Return the text of an error, or the name of its class if it has no text."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error).strip() or type(error).__name__


class InvalidImageError(SegmentationError, ValueError):
    """The image cannot be segmented: wrong type, unreadable, not an image, or too large."""


class ServerUnavailableError(SegmentationError, ConnectionError):
    """The server cannot be reached, or the connection was lost before it answered."""

    retryable = True


class TLSError(SegmentationError, ConnectionError):
    """No TLS connection: one side refuses a certificate, a certificate file is not valid, or TLS is missing."""


class ServerOverloadedError(SegmentationError, RuntimeError):
    """The server is running and accepts no more requests for now."""

    retryable = True


class DeadlineExceededError(SegmentationError, TimeoutError):
    """The whole call, connecting included, took longer than its timeout."""


class ClientLimitError(SegmentationError, OSError):
    """This process or machine has run out of open files, threads, memory or local ports; nothing else failed."""

    retryable = True


class AccessDeniedError(SegmentationError, PermissionError):
    """The server denies access to this API, or a proxy asks for credentials."""


class ModelNotFoundError(SegmentationError, LookupError):
    """The server has no model of that name, or has not loaded it.

    `retryable` is True where the server has the model and has unloaded it, as a server that stops does.
    """


class ModelError(SegmentationError, RuntimeError):
    """The model failed on the server, or its tensors are not those of a segmentation ensemble."""


class MismatchedReplyError(SegmentationError, RuntimeError):
    """The reply belongs to another request: its id, its IMAGE_ID or the size of its mask is wrong."""

    retryable = True


class UnsupportedError(SegmentationError, NotImplementedError):
    """The server does not have this API, or the ensemble does not have this output."""


class ClientClosedError(SegmentationError, RuntimeError):
    """The client was used after close()."""


class UnknownClassError(SegmentationError, KeyError):
    """The model has no class of that name, or a mask contains an id without a name."""


def missing_extra(what: str, module: str, extra: str) -> ModuleNotFoundError:
    """Return the error for a missing optional dependency, with the extra that installs it."""
    # With a path instead of the package's name, because the package is not on PyPI.
    message = (
        f"{what} needs {module}: pip install './client[{extra}]' in a checkout of the project, or pip install {module}"
    )
    return ModuleNotFoundError(message, name=module)
