"""What all calls of one client share: its checked settings, and what it has learnt of the models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deeplab_client import _wire
from deeplab_client._deadline import Deadline, check_timeout
from deeplab_client._endpoint import parse_url
from deeplab_client._errors import ClientClosedError
from deeplab_client._options import make_options
from deeplab_client._retry import check_retries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from deeplab_client._options import TLS, Compression
    from deeplab_client._retry import RetryHook, RetryPolicy
    from deeplab_client._wire import MaskChoice, ModelFacts


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
        proxy: str | None,
    ) -> None:
        if mask_format not in {"auto", "raw", "png"}:
            raise ValueError(f"mask_format must be 'auto', 'raw' or 'png'; found {mask_format!r}")
        self.endpoint = parse_url(url, proxy)
        self.options = make_options(
            encrypted=self.endpoint.is_encrypted, tls=tls, compression=compression, headers=headers, token=token
        )
        self.model = check_model(model)
        self.policy = check_retries(retries)
        self.on_retry = on_retry
        self.outputs = _wire.outputs_of(mask_format, self.endpoint)
        self.closed = False
        self._timeout = check_timeout(timeout)
        # A failure swaps the dict: what a thread learnt before it must not outlive it.
        self.facts: dict[str, ModelFacts] = {}
        self.pixel_limits: dict[str, int | None] = {}  # likewise

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "facts": {}, "pixel_limits": {}}  # a copy learns them anew

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
