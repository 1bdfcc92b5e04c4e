"""The configs of the steps around a core model: the committed configs, changed by a build."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplabv3.building.settings import LARGEST_REQUEST, apply_settings
from deeplabv3.repository.config import pb, read_config

MODEL_REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
"""The committed model repository: the source of the steps, and the configs of the default build."""

LABELS = "postprocess/labels.txt"
"""The file of the class names, by its path in a model repository."""

_FORCE_CPU = "FORCE_CPU_ONLY_INPUT_TENSORS"
# The tensors of postprocess and confidence whose first dimension is the number of classes.
_CLASS_TENSORS = {"LOGITS", "CLASS_PIXELS", "CLASS_NAMES"}


@dataclass(frozen=True, slots=True)
class Placement:
    """The device and the instances of a step.

    Attributes:
        kind: the kind of its instances, "KIND_CPU" or "KIND_GPU".
        count: the number of its instances, each a process; on GPUs per GPU.
        max_batch_size: the largest batch, in pictures.
        inputs_on_gpu: whether its instances accept tensors in a GPU's memory.
    """

    kind: str
    count: int
    max_batch_size: int = LARGEST_REQUEST
    inputs_on_gpu: bool = False


DERIVED_PARAMETERS = {"postprocess": ["class_names"], "confidence": ["max_pixels"]}
"""The parameters, by step, that a build derives; they are not settings."""

_STEP_ON_GPU = "cuda, and the step too"

STEP_DEVICES = {"preprocess": "cpu", "postprocess": "cuda"}
"""The steps that can run on a GPU, and the default device of each when the core models are on a GPU."""

PLACEMENTS: dict[str, dict[str, Placement]] = {
    # A JPEG of 640 x 480 takes 2.7 ms of one core, one of 1280 x 960 about 8 (docs/performance.md), so eight processes
    # make 2,900 or 1,000 pictures a second on as many cores. A GPU takes over only the resize, at most half of that,
    # and needs a CUDA context for each process.
    "preprocess": {
        "cpu": Placement("KIND_CPU", 2),
        "cuda": Placement("KIND_CPU", 8),
        _STEP_ON_GPU: Placement("KIND_GPU", 4),
    },
    # On a CPU a picture of 640 x 480 takes 2.5 ms of one core: four processes make 1,600 a second on as many cores,
    # without torch, a CUDA context or time of the GPU; small batches spread the 32 pictures that a core model returns
    # at once. On a GPU they come in one batch, and two instances suffice: one waits for the GPU while the other returns
    # its masks to Triton.
    "postprocess": {
        "cpu": Placement("KIND_CPU", 2),
        "cuda": Placement("KIND_CPU", 4),
        _STEP_ON_GPU: Placement("KIND_GPU", 2, max_batch_size=32, inputs_on_gpu=True),
    },
    # Only runs on request, with Pillow.
    "encode_mask": {"cpu": Placement("KIND_CPU", 1), "cuda": Placement("KIND_CPU", 1)},
    # Only runs on request, with numpy.
    "confidence": {"cpu": Placement("KIND_CPU", 1), "cuda": Placement("KIND_CPU", 2)},
}
"""The placement of each step, by the device of the core models and the options."""

STEPS = tuple(PLACEMENTS)
"""The models whose code is source; a repository elsewhere gets a copy."""


def step_config(
    step: str, *, class_names: Sequence[str], device: str, step_devices: Mapping[str, str], settings: Mapping[str, str]
) -> Any:  # noqa: ANN401 - a protobuf message: tritonclient has no types
    """Return the config of a step.

    Args:
        step: one of STEPS.
        class_names: those of the core models, id 0 first.
        device: the device of the core models, "cpu" or "cuda".
        step_devices: "cpu" or "cuda" by step, as STEP_DEVICES; no effect if the core models run on a CPU.
        settings: by name, as parse_setting returns them; they take precedence.
    """
    on_gpu = device == "cuda" and step_devices.get(step) == "cuda"
    config = read_config(MODEL_REPOSITORY / step / "config.pbtxt")
    set_class_count(config, len(class_names))
    set_placement(config, PLACEMENTS[step][_STEP_ON_GPU if on_gpu else device])
    apply_settings(step, config, settings)
    if step == "postprocess":
        config.parameters["class_names"].string_value = json.dumps(list(class_names))
    if step == "confidence":  # it gets the same pictures as postprocess
        limit = step_config(
            "postprocess", class_names=class_names, device=device, step_devices=step_devices, settings=settings
        ).parameters["max_pixels"]
        config.parameters["max_pixels"].CopyFrom(limit)
    return config


def class_count_of(config: Any) -> int | None:  # noqa: ANN401 - a protobuf message
    """Return the number of classes in a step's config, or None if the step does not depend on it."""
    return next((tensor.dims[0] for tensor in config.input if tensor.name in _CLASS_TENSORS and tensor.dims), None)


def set_class_count(config: Any, count: int) -> None:  # noqa: ANN401 - a protobuf message
    """Set the number of classes in the config of a step that depends on it."""
    tensors = [tensor for tensor in (*config.input, *config.output) if tensor.name in _CLASS_TENSORS]
    tensors += [sample.inputs["LOGITS"] for sample in config.model_warmup if "LOGITS" in sample.inputs]
    for tensor in tensors:
        tensor.dims[0] = count


def placement_in(config: Any) -> Placement | None:  # noqa: ANN401 - a protobuf message
    """Return the placement of a step, or None if a Placement cannot describe it."""
    if len(config.instance_group) != 1:
        return None
    group = config.instance_group[0]
    kind = pb.ModelInstanceGroup.Kind.Name(group.kind)
    inputs_on_gpu = _FORCE_CPU in config.parameters and config.parameters[_FORCE_CPU].string_value == "no"
    return Placement(kind, group.count, config.max_batch_size, inputs_on_gpu)


def set_placement(config: Any, placement: Placement) -> None:  # noqa: ANN401 - a protobuf message
    """Set the placement of a step in its config."""
    config.max_batch_size = placement.max_batch_size
    config.instance_group[0].kind = pb.ModelInstanceGroup.Kind.Value(placement.kind)
    config.instance_group[0].count = placement.count
    if _FORCE_CPU in config.parameters:
        config.parameters[_FORCE_CPU].string_value = "no" if placement.inputs_on_gpu else "yes"
