"""The server of a command: its client, its models, and the exit codes of its errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from deeplab_client import (
    AccessDeniedError,
    ModelNotFoundError,
    SegmentationClient,
    SegmentationError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from deeplab_client import ModelInfo

SOME_FAILED, WRONG, UNREACHABLE, REFUSED, INTERRUPTED = 1, 2, 3, 4, 130  # exit codes

# Words in an error of the client's constructor, and the option or variable of that argument.
_GIVEN_BY = {
    "server URL": "--url or DEEPLAB_URL",
    "proxy": "DEEPLAB_PROXY",
    "timeout must": "--timeout or DEEPLAB_TIMEOUT",
    "model must": "--model or DEEPLAB_MODEL",
    "mask_format": "DEEPLAB_MASK_FORMAT",
    "compression": "DEEPLAB_COMPRESSION",
    "retries": "DEEPLAB_RETRIES",
    "token": "DEEPLAB_TOKEN",
    "certificate": "DEEPLAB_CERTIFICATE_FILE, DEEPLAB_KEY_FILE",
    "tls": "DEEPLAB_CA_FILE, DEEPLAB_CERTIFICATE_FILE, DEEPLAB_KEY_FILE",
}

# Operators may deny access to the requests of `models()`, also by a proxy that does not know their paths.
_LIST_UNAVAILABLE = (AccessDeniedError, UnsupportedError, ModelNotFoundError)


class UnusableError(Exception):
    """The server or its model cannot be used: every other picture would fail too.

    Attributes:
        code: The exit code for it.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def connect(url: str, *, model: str, timeout: float) -> SegmentationClient:
    """Create the client of a command; arguments without an option come from the environment."""
    try:
        return SegmentationClient.from_env(url=url, model=model, timeout=timeout)
    except ValueError as error:
        hint = next((hint for words, hint in _GIVEN_BY.items() if words in str(error)), "the environment")
        raise typer.BadParameter(str(error), param_hint=hint) from error


def find_model(client: SegmentationClient, url: str, name: str) -> ModelInfo | None:
    """Return the description of a model; None if the server denies access to its list of models.

    Raises:
        SegmentationError: The request failed.
        UnusableError: The server has no segmentation model of this name.
    """
    try:
        infos = client.models()
    except _LIST_UNAVAILABLE:
        return None
    found = next((info for info in infos if info.name == name), None)
    if found is None:
        message = f"{url} has no segmentation model {name!r}; {_listed(infos)}"
        raise UnusableError(message, REFUSED)
    return found


def weights_of(client: SegmentationClient, name: str) -> dict[str, str | None]:
    """Return the weights of a model under `weights`; empty if the server denies access to its list of models.

    Raises:
        UnusableError: The request failed.
    """
    try:
        infos = client.models()
    except _LIST_UNAVAILABLE:
        return {}
    except SegmentationError as error:
        raise UnusableError(str(error), exit_code(error) or SOME_FAILED) from error
    found = [info.weights for info in infos if info.name == name]
    return {"weights": found[0]} if found else {}


def remedy(client: SegmentationClient, error: UnusableError) -> str:
    """Return the remedy for a missing model: the models that the server has, if it lists them."""
    if not isinstance(error.__cause__, ModelNotFoundError):
        return ""
    try:
        return f"; {_listed(client.models())}"
    except SegmentationError:
        return ""


def exit_code(error: SegmentationError, *, answered: bool = False) -> int | None:
    """Return the exit code of an error that every other picture would meet too; None if another one may succeed.

    A timeout before the first answer counts as an unreachable server.
    """
    # By the builtin class that each error also inherits from.
    if isinstance(error, ConnectionError) or (isinstance(error, TimeoutError) and not answered):
        return UNREACHABLE
    return REFUSED if isinstance(error, (LookupError, PermissionError, NotImplementedError)) else None


def raise_if_unusable(error: SegmentationError, *, answered: bool = False) -> None:
    """End the run if every other picture would fail too.

    Raises:
        UnusableError: The server is unreachable or refuses such requests.
    """
    code = exit_code(error, answered=answered)
    if code is not None:
        raise UnusableError(str(error), code) from error


def _listed(infos: Iterable[ModelInfo]) -> str:
    names = ", ".join(info.name for info in infos)
    return f"its segmentation models are {names}" if names else "it has no segmentation model"
