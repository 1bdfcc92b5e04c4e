"""The options of build_models.py: what each means, and which go together."""

import argparse
from collections.abc import Iterable
from pathlib import Path

from deeplabv3.arguments import LEAST_STD, channels, number
from deeplabv3.building import tracing
from deeplabv3.building.assembly import is_source
from deeplabv3.building.model_file import NORM_LAYERS
from deeplabv3.building.plan import (
    DEFAULT_PRECISIONS,
    GPU_INSTANCES,
    GPU_MAX_BATCH_SIZE,
    GPU_QUEUE_DELAY,
    MEAN,
    MIN_AGREEMENT,
    STD,
)
from deeplabv3.building.settings import parse_setting
from deeplabv3.building.steps import MODEL_REPOSITORY, STEP_DEVICES
from deeplabv3.errors import InvalidOptionError
from deeplabv3.models.names import PRETRAINED, UNTRAINED, VARIANTS

# A larger number is a typing error: each batch size is warmed up before the server is ready.
_MOST_BATCHED = 128
_MOST_INSTANCES = 16
_LONGEST_DELAY = 10.0  # seconds: most likely microseconds were meant
_MOST_QUEUED = 2**32 - 1  # what Triton's field holds

# Modes of cuDNN with operators that round float32 to TensorFloat-32.
_ROUNDING = {mode for mode in tracing.CUDNN_MODES if mode.startswith("fused") or mode.endswith("-corners")}
_OF_GPUS = {
    "cudnn",
    "preprocess_device",
    "postprocess_device",
    "max_batch_size",
    "instances",
    "queue_delay",
    "max_queue_size",
}
# The source takes these, and the others only where they spell out the default build.
_CHANGING_NOTHING = {"variant", "progress", "model_repository", "force", "configs_only", "describe", "json"}
_AS_DEFAULT = {
    "precision": DEFAULT_PRECISIONS["cpu"],
    "num_classes": 21,
    "preprocess_device": "cpu",
    "postprocess_device": "cpu",
}
_OF_DESCRIBE = {"describe", "json", "variant"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a build to a parser."""
    _add_model_options(parser)
    _add_device_options(parser)
    _add_resnet_options(parser.add_argument_group("the backbone, passed to torchvision's ResNet"))
    _add_repository_options(parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add, weights = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add(
        "--variant",
        action="append",
        choices=VARIANTS,
        help="may be repeated; default: both, or the one that the checkpoint fits",
    )
    weights(
        "--weights",
        default=PRETRAINED,
        metavar=f"{PRETRAINED}|FILE|{UNTRAINED}",
        help="pretrained weights by name, a checkpoint, or none for untrained ones (default: %(default)s)",
    )
    for option, name in (("--pretrained", PRETRAINED), ("--no-pretrained", UNTRAINED)):
        weights(option, dest="weights", action="store_const", const=name, help=f"--weights {name}")
    add("--pretrained-backbone", action="store_true", help="ImageNet weights for the backbone of an untrained model")
    add("--num-classes", type=int, metavar="N", help="default: what the weights or --classes have")
    add("--classes", type=Path, metavar="FILE", help="names of the classes, one a line, that of id 0 first")
    add(
        "--no-background",
        action="store_true",
        help="class 0 is a class like the others, such as the road of Cityscapes (default: it is the background)",
    )
    add(
        "--aux-loss",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="serve the auxiliary head's output `aux` too, from the model for direct callers (default: no)",
    )
    add(
        "--no-direct",
        action="store_true",
        help="leave out deeplabv3_*, the models for direct callers, which take normalized batches and return `out`",
    )
    add(
        "--mean",
        type=channels(0),
        default=MEAN,
        metavar="R,G,B",
        help="with which the weights were trained, on the scale 0 to 1 (default: ImageNet's)",
    )
    add(
        "--std",
        type=channels(LEAST_STD),
        default=STD,
        metavar="R,G,B",
        help="the standard deviation, likewise (default: ImageNet's)",
    )


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--device",
        choices=DEFAULT_PRECISIONS,
        default="cpu",
        help="where Triton will run the models; either is built on the CPU (default: %(default)s)",
    )
    add(
        "--precision",
        choices=tracing.PRECISIONS,
        help="in what they compute; logits are FP32 in any case (default: "
        f"{', '.join(f'{precision} for {device}' for device, precision in DEFAULT_PRECISIONS.items())})",
    )
    add(
        "--calibration",
        type=_folder,
        metavar="DIR",
        help="with --precision int8: a folder of pictures like those to be served, 100 or more; see docs/building.md",
    )
    add(
        "--min-agreement",
        type=number(0, 1, kind=float),
        metavar="SHARE",
        help="with --precision int8: the share of the pixels of held-out pictures that must get the same class as in "
        f"fp32, 0 to 1 (default: {MIN_AGREEMENT})",
    )
    add(
        "--cudnn",
        choices=tracing.CUDNN_MODES,
        help="with --device cuda: how cuDNN computes the convolutions (default: heuristic); see docs/building.md",
    )
    add(
        "--preprocess-device",
        choices=DEFAULT_PRECISIONS,
        help="with --device cuda: where the pictures are resized; they are decoded on the CPU "
        f"(default: {STEP_DEVICES['preprocess']})",
    )
    add(
        "--postprocess-device",
        choices=DEFAULT_PRECISIONS,
        help=f"with --device cuda: where the masks are made (default: {STEP_DEVICES['postprocess']})",
    )
    add(
        "--max-batch-size",
        type=number(1, _MOST_BATCHED, kind=int),
        metavar="N",
        help=f"with --device cuda: the most pictures in a batch of a core model (default: {GPU_MAX_BATCH_SIZE})",
    )
    add(
        "--instances",
        type=number(1, _MOST_INSTANCES, kind=int),
        metavar="N",
        help=f"with --device cuda: the batches that a core model computes side by side (default: {GPU_INSTANCES})",
    )
    add(
        "--queue-delay",
        type=number(0, _LONGEST_DELAY),
        metavar="SECONDS",
        help="with --device cuda: the longest that a request waits for others to share its batch in a core model "
        f"(default: {GPU_QUEUE_DELAY})",
    )
    add(
        "--max-queue-size",
        type=number(1, _MOST_QUEUED, kind=int),
        metavar="N",
        help="with --device cuda: the most requests that wait for a core model, above which Triton refuses; for Triton "
        "26.08 or newer, see docs/building.md (default: no limit)",
    )
    add(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show a progress bar of the download on stderr (default: yes)",
    )


def _add_resnet_options(group: argparse._ArgumentGroup) -> None:  # pyright: ignore[reportPrivateUsage] - its only name
    add = group.add_argument
    add("--groups", type=int, metavar="N", help="groups of the 3 x 3 convolutions (1)")
    add("--width-per-group", type=int, metavar="N", help="channels of a group in the first stage (64)")
    add(
        "--replace-stride-with-dilation",
        type=_boolean,
        nargs=3,
        metavar="BOOL",
        help="dilation instead of stride, for the last three stages (default: false true true, output stride 8)",
    )
    add("--norm-layer", choices=NORM_LAYERS, help="default: BatchNorm2d")
    add(
        "--zero-init-residual",
        action="store_true",
        default=None,
        help="residual branches of untrained weights start at 0",
    )


def _add_repository_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="MODEL.PARAMETER=VALUE",
        help="a setting of preprocess, postprocess, encode_mask or confidence, such as "
        "preprocess.resize_mode=shorter_side; may be repeated; later builds keep it; see docs/building.md",
    )
    add(
        "--model-repository",
        type=_folder,
        default=MODEL_REPOSITORY,
        metavar="DIR",
        help="where to build (default: model_repository/, for the default options)",
    )
    add("--force", action="store_true", help="build even what is up to date")
    add("--configs-only", action="store_true", help="write the config files and build nothing")
    add("--describe", action="store_true", help="print what the models are published with beside what is found here")
    add("--json", action="store_true", help="with --describe: print JSON instead of tables")


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("must be the path of a folder, got ''")
    return Path(text)


def _setting(text: str) -> tuple[str, str]:
    try:
        return parse_setting(text)
    except InvalidOptionError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"must be true or false, got {text!r}") from None


def contradiction(options: argparse.Namespace, parser: argparse.ArgumentParser) -> str | None:
    """Return which options do not go together, and what to do about it; None where they do."""
    given = {name: value for name, value in vars(options).items() if value != parser.get_default(name)}
    on_cpu = options.device == "cpu"
    int8 = options.precision == "int8"
    of_int8 = [name for name in given if name in {"calibration", "min_agreement"}]
    of_gpus = [name for name, value in given.items() if name in _OF_GPUS and value != _AS_DEFAULT.get(name)]
    changing = [
        name for name, value in given.items() if name not in _CHANGING_NOTHING and value != _AS_DEFAULT.get(name)
    ]
    faults = {
        "--no-background: class 0 of the published weights is the background; leave it out, or give --weights with "
        "another model": options.no_background and options.weights == PRETRAINED,
        "--precision tf32 is a mode of GPUs: add --device cuda, or take fp32": on_cpu and options.precision == "tf32",
        f"{_named(of_gpus)}: for GPUs only; add --device cuda": on_cpu and of_gpus,
        "--precision int8 is for CPUs: leave out --device cuda, or take fp16": not on_cpu and int8,
        "--precision int8 needs --calibration with a folder of pictures": (
            int8 and options.calibration is None and not options.configs_only
        ),
        f"{_named(of_int8)}: for --precision int8 only": not int8 and of_int8,
        f"--cudnn {options.cudnn} takes --precision fp16 or tf32": (
            options.cudnn in _ROUNDING and options.precision in {"fp32", "bf16"}
        ),
        "--aux-loss: `aux` is served by the model for direct callers; leave out --no-direct": (
            options.aux_loss and options.no_direct
        ),
        "--json goes with --describe": options.json and not options.describe,
        "--describe takes --variant and --json only, because it describes the models as they are published": (
            options.describe and given.keys() - _OF_DESCRIBE
        ),
        f"model_repository/ is source, whose files no build changes; {_named(changing)}: add --model-repository with "
        "another folder, such as models/mine": changing and is_source(options.model_repository),
    }
    return next((fault for fault, found in faults.items() if found), None)


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
