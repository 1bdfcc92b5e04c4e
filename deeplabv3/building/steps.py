"""The configs of the steps around a core model: the committed ones, with what a build sets in them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplabv3.building.settings import LARGEST_REQUEST, apply_settings
from deeplabv3.repository.config import pb, read_config

MODEL_REPOSITORY = Path(__file__).resolve().parents[2] / "model_repository"
"""The committed model repository: the source of the steps, and the default build of the rest."""

LABELS = "postprocess/labels.txt"
"""The class names that are served, in a model repository."""

_FORCE_CPU = "FORCE_CPU_ONLY_INPUT_TENSORS"
# The tensors of postprocess and confidence whose first dimension is the number of classes.
_TENSORS_OF_CLASSES = {"LOGITS", "CLASS_PIXELS", "CLASS_NAMES"}


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a step runs.

    Attributes:
        kind: of its instances, "KIND_CPU" or "KIND_GPU".
        count: its instances, processes of their own; on GPUs for each.
        max_batch_size: the most pictures of one batch.
        inputs_on_gpu: whether its instances take tensors that lie in a GPU's memory.
    """

    kind: str
    count: int
    max_batch_size: int = LARGEST_REQUEST
    inputs_on_gpu: bool = False


DERIVED_PARAMETERS = {"postprocess": ["class_names"], "confidence": ["max_pixels"]}
"""The parameters by step that follow from the rest of a build; they are no settings of the step."""

_STEP_ON_GPU = "cuda, and the step too"

STEP_DEVICES = {"preprocess": "cpu", "postprocess": "cuda"}
"""The steps that can run on a GPU, and the device of each beside core models on a GPU unless another is asked for."""

PLACEMENTS: dict[str, dict[str, Placement]] = {
    # A JPEG of 640 x 480 takes 2.7 ms of one core, one of 1280 x 960 about 8 (docs/performance.md): eight processes
    # make 2,900 or 1,000 pictures a second on as many cores. A GPU takes over the resize, which is half of that or
    # less, and each process costs it a context of its own.
    "preprocess": {
        "cpu": Placement("KIND_CPU", 2),
        "cuda": Placement("KIND_CPU", 8),
        _STEP_ON_GPU: Placement("KIND_GPU", 4),
    },
    # On a CPU a picture of 640 x 480 takes 2.5 ms of one core: four processes make 1,600 a second on as many cores,
    # without torch, a CUDA context or a share of the card; their small batches spread the 32 pictures that a core model
    # hands on at once. On a GPU they come in one batch, and two instances suffice: one waits for the GPU while the
    # other hands its masks to Triton.
    "postprocess": {
        "cpu": Placement("KIND_CPU", 2),
        "cuda": Placement("KIND_CPU", 4),
        _STEP_ON_GPU: Placement("KIND_GPU", 2, max_batch_size=32, inputs_on_gpu=True),
    },
    # PNGs are made on request, by Pillow.
    "encode_mask": {"cpu": Placement("KIND_CPU", 1), "cuda": Placement("KIND_CPU", 1)},
    # Made on request too, by numpy.
    "confidence": {"cpu": Placement("KIND_CPU", 1), "cuda": Placement("KIND_CPU", 2)},
}
"""Where a build lets each step run, by the device of the core models and the options."""

STEPS = tuple(PLACEMENTS)
"""The models that are no product of a build; a repository built elsewhere gets a copy."""


def step_config(
    step: str, *, class_names: Sequence[str], device: str, step_devices: Mapping[str, str], settings: Mapping[str, str]
) -> Any:  # noqa: ANN401 - a protobuf message: tritonclient has no types
    """Return the config of a step.

    Args:
        step: one of STEPS.
        class_names: of the core models.
        device: where the core models run, "cpu" or "cuda".
        step_devices: "cpu" or "cuda" by step, as STEP_DEVICES; without effect where the core models run on a CPU.
        settings: by name, as parse_setting returns them; they take precedence.
    """
    on_gpu = device == "cuda" and step_devices.get(step) == "cuda"
    config = read_config(MODEL_REPOSITORY / step / "config.pbtxt")
    set_class_count(config, len(class_names))
    set_placement(config, PLACEMENTS[step][_STEP_ON_GPU if on_gpu else device])
    apply_settings(step, config, settings)
    if step == "postprocess":
        config.parameters["class_names"].string_value = json.dumps(list(class_names))
    if step == "confidence":  # it gets the pictures that postprocess gets
        limit = step_config(
            "postprocess", class_names=class_names, device=device, step_devices=step_devices, settings=settings
        ).parameters["max_pixels"]
        config.parameters["max_pixels"].CopyFrom(limit)
    return config


def class_count_of(config: Any) -> int | None:  # noqa: ANN401 - a protobuf message
    """Return the number of classes that a step's config states, or None."""
    return next((tensor.dims[0] for tensor in config.input if tensor.name in _TENSORS_OF_CLASSES and tensor.dims), None)


def set_class_count(config: Any, count: int) -> None:  # noqa: ANN401 - a protobuf message
    """Set the number of classes in the config of a step that depends on it."""
    tensors = [tensor for tensor in (*config.input, *config.output) if tensor.name in _TENSORS_OF_CLASSES]
    tensors += [sample.inputs["LOGITS"] for sample in config.model_warmup if "LOGITS" in sample.inputs]
    for tensor in tensors:
        tensor.dims[0] = count


def placement_in(config: Any) -> Placement | None:  # noqa: ANN401 - a protobuf message
    """Return where a step runs, or None where that is more than a Placement can say."""
    if len(config.instance_group) != 1:
        return None
    group = config.instance_group[0]
    kind = pb.ModelInstanceGroup.Kind.Name(group.kind)
    inputs_on_gpu = _FORCE_CPU in config.parameters and config.parameters[_FORCE_CPU].string_value == "no"
    return Placement(kind, group.count, config.max_batch_size, inputs_on_gpu)


def set_placement(config: Any, placement: Placement) -> None:  # noqa: ANN401 - a protobuf message
    """Set where a step runs."""
    config.max_batch_size = placement.max_batch_size
    config.instance_group[0].kind = pb.ModelInstanceGroup.Kind.Value(placement.kind)
    config.instance_group[0].count = placement.count
    if _FORCE_CPU in config.parameters:
        config.parameters[_FORCE_CPU].string_value = "no" if placement.inputs_on_gpu else "yes"
