"""The options of build_models.py, and the combinations that contradict each other."""

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

# A larger number is a typing error, because each batch size is warmed up before the server is ready.
_MAX_BATCH_SIZE = 128
_MAX_INSTANCES = 16
_MAX_QUEUE_DELAY = 10.0  # seconds: a larger number was probably meant as microseconds
_MAX_QUEUE_SIZE = 2**32 - 1  # the limit of Triton's field

# The modes of cuDNN whose operators round float32 to TensorFloat-32.
_TF32_MODES = {mode for mode in tracing.CUDNN_MODES if mode.startswith("fused") or mode.endswith("-corners")}
_GPU_OPTIONS = {
    "cudnn",
    "preprocess_device",
    "postprocess_device",
    "max_batch_size",
    "instances",
    "queue_delay",
    "max_queue_size",
}
# model_repository/ takes these options, and others only with the values of the default build.
_SOURCE_OPTIONS = {"variant", "progress", "model_repository", "force", "configs_only", "describe", "json"}
_DEFAULT_VALUES = {
    "precision": DEFAULT_PRECISIONS["cpu"],
    "num_classes": 21,
    "preprocess_device": "cpu",
    "postprocess_device": "cpu",
}
_DESCRIBE_OPTIONS = {"describe", "json", "variant"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a build to a parser."""
    _add_model_options(parser)
    _add_device_options(parser)
    _add_resnet_options(parser.add_argument_group("backbone, passed to torchvision's ResNet"))
    _add_repository_options(parser)


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    add, weights = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add(
        "--variant",
        action="append",
        choices=VARIANTS,
        help="variant to build; may be repeated (default: both, or the one that the checkpoint fits)",
    )
    weights(
        "--weights",
        default=PRETRAINED,
        metavar=f"{PRETRAINED}|FILE|{UNTRAINED}",
        help="the pretrained weights by name, a checkpoint file, or none for untrained weights (default: %(default)s)",
    )
    for option, name in (("--pretrained", PRETRAINED), ("--no-pretrained", UNTRAINED)):
        weights(option, dest="weights", action="store_const", const=name, help=f"same as --weights {name}")
    add(
        "--pretrained-backbone",
        action="store_true",
        help="load ImageNet weights into the backbone of an untrained model",
    )
    add(
        "--num-classes",
        type=int,
        metavar="N",
        help="number of classes (default: that of the weights or of --classes, else 21)",
    )
    add("--classes", type=Path, metavar="FILE", help="file with one class name per line, id 0 first")
    add(
        "--no-background",
        action="store_true",
        help="class 0 is an ordinary class, such as road in Cityscapes (default: it is the background)",
    )
    add(
        "--aux-loss",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="also serve `aux`, the output of the auxiliary head, from the model for direct callers (default: no)",
    )
    add(
        "--no-direct",
        action="store_true",
        help="do not build deeplabv3_*, the models for direct callers, which take normalized batches and return `out`",
    )
    add(
        "--mean",
        type=channels(0),
        default=MEAN,
        metavar="R,G,B",
        help="mean of the training pixels, on the scale 0 to 1 (default: ImageNet's)",
    )
    add(
        "--std",
        type=channels(LEAST_STD),
        default=STD,
        metavar="R,G,B",
        help="standard deviation of the training pixels, on the scale 0 to 1 (default: ImageNet's)",
    )


def _add_device_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--device",
        choices=DEFAULT_PRECISIONS,
        default="cpu",
        help="device on which Triton will run the models; the build itself needs no GPU (default: %(default)s)",
    )
    add(
        "--precision",
        choices=tracing.PRECISIONS,
        help="precision of the computation; logits are always FP32 (default: "
        f"{', '.join(f'{precision} for {device}' for device, precision in DEFAULT_PRECISIONS.items())})",
    )
    add(
        "--calibration",
        type=_folder,
        metavar="DIR",
        help="with --precision int8: folder of 100 or more pictures like those to be served; see docs/building.md",
    )
    add(
        "--min-agreement",
        type=number(0, 1, kind=float),
        metavar="SHARE",
        help="with --precision int8: least share of the pixels of held-out pictures, 0 to 1, that must get the same "
        f"class as in fp32 (default: {MIN_AGREEMENT})",
    )
    add(
        "--cudnn",
        choices=tracing.CUDNN_MODES,
        help="with --device cuda: how cuDNN computes the convolutions (default: heuristic); see docs/building.md",
    )
    add(
        "--preprocess-device",
        choices=DEFAULT_PRECISIONS,
        help="with --device cuda: where pictures are resized; they are always decoded on the CPU "
        f"(default: {STEP_DEVICES['preprocess']})",
    )
    add(
        "--postprocess-device",
        choices=DEFAULT_PRECISIONS,
        help=f"with --device cuda: where masks are computed (default: {STEP_DEVICES['postprocess']})",
    )
    add(
        "--max-batch-size",
        type=number(1, _MAX_BATCH_SIZE, kind=int),
        metavar="N",
        help=f"with --device cuda: largest batch of a core model (default: {GPU_MAX_BATCH_SIZE})",
    )
    add(
        "--instances",
        type=number(1, _MAX_INSTANCES, kind=int),
        metavar="N",
        help=f"with --device cuda: instances of a core model per GPU (default: {GPU_INSTANCES})",
    )
    add(
        "--queue-delay",
        type=number(0, _MAX_QUEUE_DELAY),
        metavar="SECONDS",
        help="with --device cuda: how long a core model waits for more requests to fill a batch "
        f"(default: {GPU_QUEUE_DELAY})",
    )
    add(
        "--max-queue-size",
        type=number(1, _MAX_QUEUE_SIZE, kind=int),
        metavar="N",
        help="with --device cuda: how many requests may wait for a core model before Triton rejects more; needs Triton "
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
    add("--groups", type=int, metavar="N", help="number of groups of the 3 x 3 convolutions (default: 1)")
    add("--width-per-group", type=int, metavar="N", help="channels per group in the first stage (default: 64)")
    add(
        "--replace-stride-with-dilation",
        type=_boolean,
        nargs=3,
        metavar="BOOL",
        help="dilation instead of stride in the last three stages (default: false true true, output stride 8)",
    )
    add("--norm-layer", choices=NORM_LAYERS, help="normalization layer (default: BatchNorm2d)")
    add(
        "--zero-init-residual",
        action="store_true",
        default=None,
        help="let the residual branches of untrained weights start at 0",
    )


def _add_repository_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="MODEL.PARAMETER=VALUE",
        help="change a setting of preprocess, postprocess, encode_mask or confidence, such as "
        "preprocess.resize_mode=shorter_side; may be repeated; later builds keep it; see docs/building.md",
    )
    add(
        "--model-repository",
        type=_folder,
        default=MODEL_REPOSITORY,
        metavar="DIR",
        help="folder to build into (default: model_repository/, which takes only default options)",
    )
    add("--force", action="store_true", help="also build models that are up to date")
    add("--configs-only", action="store_true", help="write the config files without building models")
    add("--describe", action="store_true", help="print the published figures of the models beside those found here")
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
    """Return an error for options that contradict each other, with the remedy, or None."""
    given = {name: value for name, value in vars(options).items() if value != parser.get_default(name)}
    on_cpu = options.device == "cpu"
    int8 = options.precision == "int8"
    int8_options = [name for name in given if name in {"calibration", "min_agreement"}]
    gpu_options = [name for name, value in given.items() if name in _GPU_OPTIONS and value != _DEFAULT_VALUES.get(name)]
    changing = [
        name for name, value in given.items() if name not in _SOURCE_OPTIONS and value != _DEFAULT_VALUES.get(name)
    ]
    faults = {
        "--no-background does not fit the published weights, whose class 0 is the background; leave it out, or give "
        "--weights with another model": options.no_background and options.weights == PRETRAINED,
        "--precision tf32 works only on GPUs; add --device cuda, or use fp32": on_cpu and options.precision == "tf32",
        f"{_named(gpu_options)}: only for GPUs; add --device cuda": on_cpu and gpu_options,
        "--precision int8 works only on CPUs; leave out --device cuda, or use fp16": not on_cpu and int8,
        "--precision int8 needs pictures for calibration; give their folder with --calibration": (
            int8 and options.calibration is None and not options.configs_only
        ),
        f"{_named(int8_options)}: only for int8; add --precision int8": not int8 and int8_options,
        f"--cudnn {options.cudnn} does not work in {options.precision}; use --precision fp16 or tf32": (
            options.cudnn in _TF32_MODES and options.precision in {"fp32", "bf16"}
        ),
        "--aux-loss needs the model for direct callers, which serves `aux`; leave out --no-direct": (
            options.aux_loss and options.no_direct
        ),
        "--json works only with --describe; add --describe": options.json and not options.describe,
        "--describe describes the published models and takes only --variant and --json; leave out other options": (
            options.describe and given.keys() - _DESCRIBE_OPTIONS
        ),
        f"{_named(changing)}: not possible in model_repository/, whose files are source and must not change; add "
        "--model-repository with another folder, such as models/mine": changing and is_source(options.model_repository),
    }
    return next((fault for fault, found in faults.items() if found), None)


def _named(names: Iterable[str]) -> str:
    return ", ".join(f"--{name.replace('_', '-')}" for name in names)
