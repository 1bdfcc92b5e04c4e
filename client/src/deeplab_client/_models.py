"""What a server offers, out of the configs of its models."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deeplab_client import _wire

if TYPE_CHECKING:
    from collections.abc import Mapping

    from deeplab_client._transport import ModelConfig

_MASKS = frozenset({"MASK", "CLASS_NAMES"})


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model that segments images, as its config and those of its steps describe it.

    What the config of an older build or of somebody else's does not say is None.

    Attributes:
        name: To be given as `model`.
        version: The newest version that is loaded.
        class_names: Name of each class id.
        background: Whether class 0 is a background.
        weights: What the weights are: a torchvision name, a file's name, `none` for untrained ones.
        precision: In what the model computes: `fp32`, `bf16`, `fp16`, `tf32` or `int8`.
        confidence: Whether `segment(..., confidence=True)` is answered.
        max_pixels: An image with more pixels is refused.
        resize_mode: `fixed` for one size of all images, `shorter_side` where the aspect ratio stays.
        resize_size: Height and width in pixels that images are resized to; with `shorter_side`, twice the shorter side.
    """

    name: str
    version: str
    class_names: tuple[str, ...] | None
    background: bool
    weights: str | None
    precision: str | None
    confidence: bool
    max_pixels: int | None
    resize_mode: str | None
    resize_size: tuple[int, int] | None


def model_infos(versions: Mapping[str, str], configs: Mapping[str, ModelConfig]) -> list[ModelInfo]:
    """Return the models that segment images, by name."""
    return [_info(name, versions[name], configs) for name in sorted(configs) if _segments(configs[name])]


def max_pixels_of(config: ModelConfig) -> int | None:
    """Return how many pixels an image may have, by the config of the model that reads it; None if not stated."""
    return _number(config.parameters.get("max_pixels", ""))


def _segments(config: ModelConfig) -> bool:
    return _wire.IMAGE in config.inputs and config.outputs >= _MASKS


def _info(name: str, version: str, configs: Mapping[str, ModelConfig]) -> ModelInfo:
    config = configs[name]
    facts = _wire.facts_of(config.parameters)
    reads, computes, answers = dict(config.parameters), dict(config.parameters), dict(config.parameters)
    for step in config.steps:
        parameters = configs[step.model].parameters if step.model in configs else {}
        if _wire.IMAGE in step.inputs:
            reads |= parameters
        elif "CLASS_NAMES" in step.outputs:
            answers |= parameters
        elif "precision" in parameters:
            computes |= parameters
    return ModelInfo(
        name=name,
        version=version,
        class_names=_names(answers.get("class_names")),
        background=facts.background,
        weights=facts.weights,
        precision=computes.get("precision"),
        confidence=_wire.CONFIDENCE in config.outputs,
        max_pixels=_number(reads.get("max_pixels", "")),
        resize_mode=reads.get("resize_mode"),
        resize_size=_size(reads.get("resize_size", "")),
    )


def _names(text: str | None) -> tuple[str, ...] | None:
    try:
        names = json.loads(text or "")
    except ValueError:
        return None
    return tuple(map(str, names)) if isinstance(names, list) else None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _size(text: str) -> tuple[int, int] | None:
    width, _, height = text.partition("x")
    sides = _number(height or width), _number(width)
    return None if sides[0] is None or sides[1] is None else (sides[0], sides[1])
