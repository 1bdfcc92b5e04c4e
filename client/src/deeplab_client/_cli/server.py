"""The server behind a command: the client that asks it, and the exit codes of its refusals."""

from __future__ import annotations

import numpy as np
import typer

from deeplab_client import Segmentation, SegmentationClient, SegmentationError, _steps

SOME_FAILED, UNREACHABLE, REFUSED, INTERRUPTED = 1, 3, 4, 130  # exit codes

_PROBE = np.zeros((32, 32), np.uint8)

# Words of an error of the client's constructor, and the option or variable that gave the argument.
_GIVEN_BY = {
    "no server URL": "--url or DEEPLAB_URL",
    "timeout must": "--timeout or DEEPLAB_TIMEOUT",
    "model must": "--model or DEEPLAB_MODEL",
    "mask_format": "DEEPLAB_MASK_FORMAT",
    "compression": "DEEPLAB_COMPRESSION",
    "retries": "DEEPLAB_RETRIES",
    "token": "DEEPLAB_TOKEN",
    "certificate": "DEEPLAB_CERTIFICATE_FILE, DEEPLAB_KEY_FILE",
    "tls": "DEEPLAB_CA_FILE, DEEPLAB_CERTIFICATE_FILE, DEEPLAB_KEY_FILE",
}


class ServerUnusableError(Exception):
    """The server cannot be used: every other picture would fail too.

    Attributes:
        code: The exit code for it.
    """

    def __init__(self, cause: SegmentationError, code: int) -> None:
        super().__init__(str(cause))
        self.code = code


class Client(SegmentationClient):
    """A client that can ask for a model's weights alone."""

    def weights(self) -> str | None:
        """Return what the model was loaded with; None if the server does not say.

        Raises:
            SegmentationError: They cannot be asked for now.
        """
        return self._run(_steps.weights(self._calls, None, self._calls.deadline(None)))

    def known_weights(self) -> str | None:
        """Return the weights; None also if they cannot be asked for now.

        Raises:
            ServerUnusableError: The server is not there, or refuses such requests.
        """
        try:
            return self.weights()
        except SegmentationError as error:
            raise_if_unusable(error)
            return None

    def probe(self) -> Segmentation:
        """Segment a black picture.

        Raises:
            SegmentationError: That fails.
        """
        return self.segment(_PROBE)


def connect(url: str, *, model: str, timeout: float) -> Client:
    """Make the client of a command; what has no option of its own comes from the environment."""
    try:
        return Client.from_env(url=url, model=model, timeout=timeout)
    except ValueError as error:
        hint = next((hint for words, hint in _GIVEN_BY.items() if words in str(error)), "the environment")
        raise typer.BadParameter(str(error), param_hint=hint) from error


def exit_code(error: SegmentationError, *, answered: bool = False) -> int | None:
    """Return the exit code of an error that every other picture would meet too; None if another one may succeed.

    A server that has not answered yet when a request's time is up counts as one that is not there.
    """
    # By the builtin that each leaf also is.
    if isinstance(error, ConnectionError) or (isinstance(error, TimeoutError) and not answered):
        return UNREACHABLE
    return REFUSED if isinstance(error, (LookupError, PermissionError, NotImplementedError)) else None


def raise_if_unusable(error: SegmentationError, *, answered: bool = False) -> None:
    """End the run if every other picture would fail too.

    Raises:
        ServerUnusableError: The server is not there, or refuses such requests.
    """
    code = exit_code(error, answered=answered)
    if code is not None:
        raise ServerUnusableError(error, code) from error
