"""Settings from environment variables, read by `from_env()` and nowhere else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deeplab_client._options import TLS

if TYPE_CHECKING:
    from collections.abc import Mapping

_TEXTS = {
    "DEEPLAB_MODEL": "model",
    "DEEPLAB_TOKEN": "token",
    "DEEPLAB_COMPRESSION": "compression",
    "DEEPLAB_MASK_FORMAT": "mask_format",
}
_FILES = {
    "DEEPLAB_CA_FILE": "ca_file",
    "DEEPLAB_CERTIFICATE_FILE": "certificate_file",
    "DEEPLAB_KEY_FILE": "key_file",
}


def arguments_from(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return a client's arguments; a variable that is empty counts as not set.

    Raises:
        ValueError: A number is none. The message names the variable.
    """
    given = {name: value for name, value in environment.items() if name.startswith("DEEPLAB_") and value}
    arguments: dict[str, Any] = {argument: given[name] for name, argument in _TEXTS.items() if name in given}
    if "DEEPLAB_URL" in given:
        arguments["url"] = given["DEEPLAB_URL"]
    if "DEEPLAB_TIMEOUT" in given:
        arguments["timeout"] = _number(given, "DEEPLAB_TIMEOUT", float)
    if "DEEPLAB_RETRIES" in given:
        arguments["retries"] = _number(given, "DEEPLAB_RETRIES", int)
    files = {argument: given[name] for name, argument in _FILES.items() if name in given}
    if files:
        arguments["tls"] = TLS(**files)
    return arguments


def url_of(arguments: dict[str, Any]) -> str:
    """Take the URL out of a client's arguments.

    Raises:
        ValueError: There is none.
    """
    if "url" not in arguments:
        raise ValueError("the environment variable DEEPLAB_URL is not set: it names the server, as grpc://host:port")
    return arguments.pop("url")


def _number(given: Mapping[str, str], name: str, kind: type[float | int]) -> float:
    try:
        return kind(given[name])
    except ValueError as error:
        raise ValueError(f"the environment variable {name} must be a number; found {given[name]!r}") from error
