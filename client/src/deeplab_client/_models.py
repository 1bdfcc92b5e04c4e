"""The models that a server offers, from their configs."""

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
    """A segmentation model, as its config and those of its steps describe it.

    Values that the config does not contain, because it is from an older or another build, are None.

    Attributes:
        name: Name to pass as `model`.
        version: The newest loaded version.
        class_names: Name of each class id.
        background: Whether class 0 is a background.
        weights: Name of the weights: a torchvision name, a file name, or `none` for untrained weights.
        precision: Precision of the model: `fp32`, `bf16`, `fp16`, `tf32` or `int8`.
        confidence: Whether the model has a confidence, for `segment(..., confidence=True)`.
        max_pixels: The most pixels that an image may have.
        resize_mode: `fixed` if all images are resized to one size, `shorter_side` if the aspect ratio is kept.
        resize_size: Height and width in pixels that images are resized to; for `shorter_side`, both are the length of
            the shorter side.
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
    """Return the segmentation models, sorted by name."""
    return [_info(name, versions[name], configs) for name in sorted(configs) if _is_segmentation(configs[name])]


def max_pixels_of(config: ModelConfig) -> int | None:
    """Return the most pixels that an image may have, from the config of the model that reads it; None if missing."""
    return _number(config.parameters.get("max_pixels", ""))


def _is_segmentation(config: ModelConfig) -> bool:
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
