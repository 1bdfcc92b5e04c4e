"""The settings of the steps around a core model: the values of --set, and their place in a config.pbtxt."""

import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from deeplabv3.errors import InvalidOptionError


@dataclass(frozen=True, slots=True)
class _Kind:
    """The kind of a setting: its values in words, and a function that accepts them."""

    words: str
    accepts: Callable[[str], bool]


def _integer(least: int, most: int) -> _Kind:
    def accepts(text: str) -> bool:
        return text.isascii() and text.isdigit() and least <= int(text) <= most

    return _Kind(f"an integer from {least} to {most}", accepts)


_PIXELS = _integer(1, 2**31 - 1)
_SIDE = _integer(1, 65_535)


def _is_size(text: str) -> bool:
    """Return whether a text is one side, or WIDTHxHEIGHT."""
    sides = text.split("x")
    return len(sides) <= 2 and all(map(_SIDE.accepts, sides))  # noqa: PLR2004 - width, height


INSTANCES = "instances"
MAX_BATCH_SIZE = "max_batch_size"
LARGEST_REQUEST = 8
"""The largest number of pictures in a request to an ensemble, which every step and core model must accept."""

_OF_EVERY_STEP = {INSTANCES: _integer(1, 128), MAX_BATCH_SIZE: _integer(LARGEST_REQUEST, 128)}

SETTINGS: dict[str, dict[str, _Kind]] = {
    "preprocess": {
        "resize_mode": _Kind("'fixed' or 'shorter_side'", {"fixed", "shorter_side"}.__contains__),
        "resize_size": _Kind(f"{_SIDE.words}, or WIDTHxHEIGHT such as 1024x512", _is_size),
        "max_pixels": _PIXELS,
        "max_resized_pixels": _PIXELS,
        "scaled_decoding": _Kind("'true' or 'false'", {"true", "false"}.__contains__),
    }
    | _OF_EVERY_STEP,
    "postprocess": {"max_pixels": _PIXELS} | _OF_EVERY_STEP,
    "encode_mask": {} | _OF_EVERY_STEP,
    "confidence": {} | _OF_EVERY_STEP,
}
"""The settings by step: parameters of its config.pbtxt, its number of instances, its largest batch."""


def parse_setting(text: str) -> tuple[str, str]:
    """Return the name, "step.parameter", and the value of one --set.

    Raises:
        InvalidOptionError: a ValueError. The step or parameter does not exist, or cannot have the value.
    """
    name, given, value = text.partition("=")
    step, _, parameter = name.partition(".")
    if not given:
        raise InvalidOptionError(
            f"must be MODEL.PARAMETER=VALUE, such as preprocess.resize_mode=shorter_side, got {text!r}"
        )
    if step not in SETTINGS:
        raise InvalidOptionError(
            f"the model must be one of {', '.join(SETTINGS)}, got {step!r}; for a core model, use --instances, "
            "--max-batch-size, --queue-delay or --max-queue-size with --device cuda"
        )
    if name in {"preprocess.mean", "preprocess.std"}:  # of versions whose preprocess normalized
        raise InvalidOptionError(
            f"{name} does not exist any more, because the core models normalize; use --{parameter} {value.strip()}"
        )
    if parameter not in SETTINGS[step]:
        raise InvalidOptionError(f"{step} has no setting {parameter!r}; use one of {', '.join(SETTINGS[step])}")
    kind, value = SETTINGS[step][parameter], value.strip()
    if not kind.accepts(value):
        raise InvalidOptionError(f"{name} must be {kind.words}, got {value!r}")
    return name, value


def as_options(settings: Mapping[str, str]) -> str:
    """Return settings as --set options, quoted for a shell."""
    return " ".join(f"--set {shlex.quote(f'{name}={value}')}" for name, value in settings.items())


def settings_in(step: str, config: Any) -> dict[str, str]:  # noqa: ANN401 - a protobuf message
    """Return the settings in a step's config, by name."""
    found: dict[str, str] = {}
    for parameter in SETTINGS[step]:
        if parameter == INSTANCES:
            found[f"{step}.{parameter}"] = str(sum(group.count for group in config.instance_group))
        elif parameter == MAX_BATCH_SIZE:
            found[f"{step}.{parameter}"] = str(config.max_batch_size)
        elif parameter in config.parameters:
            found[f"{step}.{parameter}"] = config.parameters[parameter].string_value
    return found


def resized_sides(config: Any) -> tuple[int, int]:  # noqa: ANN401 - a protobuf message
    """Return height and width of the resized pictures; with `shorter_side`, those of square pictures."""
    width, _, height = config.parameters["resize_size"].string_value.partition("x")
    return int(height or width), int(width)


def apply_settings(step: str, config: Any, settings: Mapping[str, str]) -> None:  # noqa: ANN401 - a protobuf message
    """Write settings into a step's config; settings of other steps are ignored.

    Raises:
        InvalidOptionError: a ValueError. The settings contradict each other.
    """
    for name, value in settings.items():
        model, _, parameter = name.partition(".")
        if model != step:
            continue
        if parameter == INSTANCES:
            config.instance_group[0].count = int(value)
        elif parameter == MAX_BATCH_SIZE:
            config.max_batch_size = int(value)
        else:
            config.parameters[parameter].string_value = value
    parameters = {name: parameter.string_value for name, parameter in config.parameters.items()}
    if parameters.get("resize_mode") == "shorter_side" and "x" in parameters["resize_size"]:
        raise InvalidOptionError(
            f"preprocess.resize_size={parameters['resize_size']} is a width and a height, but resize_mode shorter_side "
            "takes one number; give one number, or --set preprocess.resize_mode=fixed"
        )
