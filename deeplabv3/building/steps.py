"""Where the steps around a core model run: in what a device asks of preprocess and postprocess.

Their config.pbtxt files are written by hand. What in them depends on the device is set in the text, so that comments
and all other settings stay; what no longer stands as a build wrote it was set by hand and stays too.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplabv3.building.configs import parse_config, pb
from deeplabv3.errors import BuildError

_FORCE_CPU = "FORCE_CPU_ONLY_INPUT_TENSORS"

_GPU_PREPROCESS = "cuda with --preprocess-device cuda"

_log = logging.getLogger("build_models")


@dataclass(frozen=True, slots=True)
class Placement:
    """What a step's config says about where it runs.

    Attributes:
        kind: of its instances, "KIND_CPU" or "KIND_GPU".
        count: its instances, processes of their own; on GPUs for each.
        max_batch_size: the most pictures of one batch.
        inputs_on_gpu: whether its instances take tensors that lie in a GPU's memory.
    """

    kind: str
    count: int
    max_batch_size: int = 8
    inputs_on_gpu: bool = False


PLACEMENTS: dict[str, dict[str, Placement]] = {
    # A JPEG of 640 x 480 takes 3.6 ms of one core, one of 1280 x 960 about 8 (docs/performance.md): eight processes
    # make 2,200 or 1,000 pictures a second on as many cores. A GPU takes over the resize, which is half of that or
    # less, and each process costs it a context of its own.
    "preprocess": {
        "cpu": Placement("KIND_CPU", 2),
        "cuda": Placement("KIND_CPU", 8),
        _GPU_PREPROCESS: Placement("KIND_GPU", 4),
    },
    # In the batches in which the logits come. Two: one waits for the GPU while the other hands its masks to Triton.
    "postprocess": {
        "cpu": Placement("KIND_CPU", 2),
        "cuda": Placement("KIND_GPU", 2, max_batch_size=32, inputs_on_gpu=True),
    },
}
"""What a build writes for each step, by the device of the core models and the options."""


def place_steps(configs: Mapping[Path, str], *, device: str, preprocess_device: str = "cpu") -> dict[Path, str]:
    """Return the config.pbtxt files to write so that the steps of a repository run where its core models do.

    What was set by hand is not among them. configs: the steps' files and what they hold.
    """
    chosen = {step: placements[device] for step, placements in PLACEMENTS.items()}
    if preprocess_device == "cuda":
        chosen["preprocess"] = PLACEMENTS["preprocess"][_GPU_PREPROCESS]
    texts: dict[Path, str] = {}
    for path, text in configs.items():
        step = path.parent.name
        if step not in chosen:
            continue
        found = placement(parse_config(text))
        if found == chosen[step]:
            continue
        if found not in PLACEMENTS[step].values():
            _log.info(
                "%s: where it runs was set by hand and stays: %s", step, found or "other than a build would write"
            )
            continue
        try:
            texts[path] = placed(text, chosen[step])
        except BuildError as exc:
            raise BuildError(f"{path} {exc}") from exc
    return texts


def placement(config: Any) -> Placement | None:  # noqa: ANN401  a protobuf message: tritonclient has no types
    """Return where a step runs, or None where that is more than a Placement can say."""
    if len(config.instance_group) != 1:
        return None
    group = config.instance_group[0]
    if group != pb.ModelInstanceGroup(kind=group.kind, count=group.count):
        return None  # particular GPUs, or a host policy
    kind = pb.ModelInstanceGroup.Kind.Name(group.kind)
    inputs_on_gpu = _FORCE_CPU in config.parameters and config.parameters[_FORCE_CPU].string_value == "no"
    return Placement(kind, group.count, config.max_batch_size, inputs_on_gpu)


def placed(text: str, wanted: Placement) -> str:
    """Return the text of a step's config.pbtxt with another placement, and all else as it was.

    Raises:
        BuildError: the text says it in a way of its own.
    """
    inputs = "no" if wanted.inputs_on_gpu else "yes"
    for pattern, value in (
        (r"^max_batch_size: (\d+)$", str(wanted.max_batch_size)),
        (r"^instance_group \{[^}]*?\bkind: (\w+)", wanted.kind),
        (r"^instance_group \{[^}]*?\bcount: (\d+)", str(wanted.count)),
        (rf'^parameters \{{\s*key: "{_FORCE_CPU}"\s*value \{{\s*string_value: "(\w+)"', inputs),
    ):
        if found := re.search(pattern, text, re.MULTILINE):
            text = text[: found.start(1)] + value + text[found.end(1) :]
    if placement(parse_config(text)) != wanted:
        raise BuildError(f"says where the step runs in a way that a build does not know; make it {wanted} there")
    return text
