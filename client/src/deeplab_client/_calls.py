"""State that all calls of one client share: its checked settings, and what it knows about the models."""

from __future__ import annotations

import contextlib
import itertools
import re
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from deeplab_client import _wire
from deeplab_client._deadline import Deadline, check_timeout
from deeplab_client._endpoint import parse_url
from deeplab_client._errors import ClientClosedError
from deeplab_client._options import added_headers, check_headers, make_options
from deeplab_client._retry import check_retries

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Mapping

    from typing_extensions import Self

    from deeplab_client._hooks import RequestHook, ResponseHook, RetryHook
    from deeplab_client._options import TLS, Compression
    from deeplab_client._retry import RetryPolicy
    from deeplab_client._wire import MaskChoice, ModelFacts

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class _Shared:
    """State that a client shares with its views, see `with_options`."""

    def __init__(self, *, closed: bool = False) -> None:
        self.closed = closed
        # A failure replaces the dict, because facts from before the failure may no longer be true.
        self.facts: dict[str, ModelFacts] = {}
        self.pixels_taken: dict[str, int] = {}  # the same
        # The ids of the requests under way. A dict because its setdefault is atomic: there are no locks here.
        self.request_ids: dict[str, object] = {}


class Calls:
    """Settings and state that all calls of one client share."""

    def __init__(
        self,
        url: str,
        *,
        model: str,
        timeout: float,
        retries: int | RetryPolicy,
        on_retry: RetryHook | None,
        on_request: RequestHook | None,
        on_response: ResponseHook | None,
        mask_format: MaskChoice,
        tls: TLS | None,
        headers: Mapping[str, str] | None,
        token: str | Callable[[], str | Awaitable[str]] | None,
        compression: Compression | None,
        proxy: str | None,
    ) -> None:
        if mask_format not in {"auto", "raw", "png"}:
            raise ValueError(f"mask_format must be 'auto', 'raw' or 'png', got {mask_format!r}")
        self.endpoint = parse_url(url, proxy)
        self.options = make_options(
            encrypted=self.endpoint.is_encrypted, tls=tls, compression=compression, headers=headers, token=token
        )
        self.model = check_model(model)
        self.policy = check_retries(retries)
        self.on_retry = on_retry
        self.on_request = on_request
        self.on_response = on_response
        self.outputs = _wire.outputs_of(mask_format, self.endpoint)
        self._timeout = check_timeout(timeout)
        self._shared = _Shared()
        # Options of `with_options`.
        self._is_view = self._closed = False
        self._headers: Mapping[str, str] = {}
        self._request_id: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy is an independent client, and asks for the facts again.
        return {**vars(self), "_shared": _Shared(closed=self.closed), "_is_view": False}

    def with_options(
        self,
        *,
        headers: Mapping[str, str] | None,
        retries: int | RetryPolicy | None,
        timeout: float | None,
        request_id: str | None,
    ) -> Self:
        """Return a view: other options for calls over the same connections; an option that is None is unchanged.

        Raises:
            ClientClosedError: The client is closed.
            TypeError, ValueError: An option is not valid.
        """
        self.check_open()
        view = object.__new__(type(self))
        vars(view).update(vars(self))
        view._is_view = True
        view._headers = {**self._headers, **check_headers(headers or {}, token=self.options.token)}
        view.policy = self.policy if retries is None else check_retries(retries)
        view._timeout = self.seconds(timeout)
        view._request_id = self._request_id if request_id is None else _check_request_id(request_id)
        return view

    @property
    def facts(self) -> dict[str, ModelFacts]:
        """The known facts about the models, by name."""
        return self._shared.facts

    @property
    def pixels_taken(self) -> dict[str, int]:
        """The most pixels that each model accepts, by its name, once the server has been asked."""
        return self._shared.pixels_taken

    def forget_facts(self) -> None:
        """Forget the facts, because the server that answers next may serve other models."""
        self._shared.facts, self._shared.pixels_taken = {}, {}

    @property
    def closed(self) -> bool:
        """Whether no more calls may be made."""
        return self._closed or self._shared.closed

    def close(self) -> bool:
        """Refuse further calls, also of a client's views; return whether the connections must be closed."""
        if self._is_view:
            self._closed = True
            return False
        self._shared.closed = True
        return True

    @contextlib.contextmanager
    def adding_headers(self) -> Generator[None]:
        """Add the headers of `with_options` to the requests in this context."""
        token = added_headers.set(self._headers)
        try:
            yield
        finally:
            added_headers.reset(token)

    def request_id(self) -> str:
        """Return the id of a call."""
        return self._request_id or uuid4().hex

    def numbered_id(self, number: int) -> str:
        """Return the id of one request of many, the first being 1."""
        return uuid4().hex if self._request_id is None else f"{self._request_id}-{number}"

    @contextlib.contextmanager
    def own_id(self, wanted: str) -> Generator[str]:
        """Reserve an id that no other request under way has: the wanted one, or `ID-2`, `ID-3`.

        Replies are matched to requests by id.
        """
        owner = object()
        candidates = (wanted if number == 1 else f"{wanted}-{number}" for number in itertools.count(1))
        own = next(each for each in candidates if self._shared.request_ids.setdefault(each, owner) is owner)
        try:
            yield own
        finally:
            del self._shared.request_ids[own]

    def deadline(self, timeout: float | None) -> Deadline:
        """Return the deadline of a call that starts now."""
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
            TypeError: It is not a string.
            ValueError: It is not a valid name.
        """
        return self.model if model is None else check_model(model)

    def check_open(self) -> None:
        """Check that the client is open.

        Raises:
            ClientClosedError: It is closed.
        """
        if self._shared.closed:
            raise ClientClosedError(f"the client of {self.endpoint} is closed: create a new one")
        if self._closed:
            raise ClientClosedError(f"this view of the client of {self.endpoint} is closed: create a new view")

    def describe(self, kind: str) -> str:
        """Return the `repr` of a client, without secrets."""
        return f"<{kind} {self.endpoint}, {self.model}{', closed' if self.closed else ''}>"


def _check_request_id(request_id: object) -> str:
    if not isinstance(request_id, str):
        raise TypeError(f"request_id must be a string, got {request_id!r}")
    if not _REQUEST_ID.fullmatch(request_id):
        raise ValueError(f"request_id must be 1 to 128 printable ASCII characters without spaces, got {request_id!r}")
    return request_id


def check_model(model: object) -> str:
    """Return a model's name.

    Raises:
        TypeError: It is not a string.
        ValueError: It is empty, or contains characters that cannot be sent.
    """
    if not isinstance(model, str):
        raise TypeError(f"model must be a string, the name of an ensemble, got {model!r}")
    if not model or not model.isprintable():
        raise ValueError(f"model must be the name of an ensemble in printable characters, got {model!r}")
    return model
