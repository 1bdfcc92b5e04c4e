"""Settings from environment variables, only used by `from_env()`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deeplab_client._options import TLS

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEXTS = {
    "DEEPLAB_URL": "url",
    "DEEPLAB_MODEL": "model",
    "DEEPLAB_TOKEN": "token",
    "DEEPLAB_COMPRESSION": "compression",
    "DEEPLAB_MASK_FORMAT": "mask_format",
    "DEEPLAB_PROXY": "proxy",
}
_FILES = {
    "DEEPLAB_CA_FILE": "ca_file",
    "DEEPLAB_CERTIFICATE_FILE": "certificate_file",
    "DEEPLAB_KEY_FILE": "key_file",
}


def arguments_from(environment: Mapping[str, str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a client; `given` ones take precedence, and an empty variable counts as not set.

    Raises:
        ValueError: The URL is missing, or a value is not a number. The message names the variable.
    """
    values = {name: value for name, value in environment.items() if name.startswith("DEEPLAB_") and value}
    arguments: dict[str, Any] = {argument: values[name] for name, argument in _TEXTS.items() if name in values}
    if "DEEPLAB_TIMEOUT" in values:
        arguments["timeout"] = _number(values, "DEEPLAB_TIMEOUT", float)
    if "DEEPLAB_RETRIES" in values:
        arguments["retries"] = _number(values, "DEEPLAB_RETRIES", int)
    files = {argument: values[name] for name, argument in _FILES.items() if name in values}
    if files:
        arguments["tls"] = TLS(**files)
    arguments |= given
    if "url" not in arguments:
        raise ValueError(
            "the environment variable DEEPLAB_URL is not set: set it to the URL of the server, such as grpc://host:8001"
        )
    return arguments


def _number(values: Mapping[str, str], name: str, kind: type[float | int]) -> float:
    try:
        return kind(values[name])
    except ValueError as error:
        noun = "an integer" if kind is int else "a number"
        raise ValueError(f"the environment variable {name} must be {noun}, got {values[name]!r}") from error
