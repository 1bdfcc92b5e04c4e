"""Build the Triton model repository: trace DeepLabV3 to TorchScript, check it against PyTorch, put it in place.

    python build_models.py                      both variants, weights COCO_WITH_VOC_LABELS_V1
    python build_models.py --weights checkpoint.pth --classes names.txt --model-repository mine
    python build_models.py --weights none --model-repository out/untrained
    python build_models.py --describe           what the models are published with, and what is found here

model_repository/ is source and gets the default build. A build with other options needs a folder of its own. A build
that fails or is interrupted leaves the models that were there before as they were.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # under `python -P` it is not there
    from deeplabv3.environment import guard

    guard()

import argparse
import logging
import os
import signal
from collections.abc import Sequence
from typing import NoReturn

from deeplabv3 import (
    PRETRAINED,
    UNTRAINED,
    VARIANTS,
    BuildError,
    DeepLabV3Error,
    InvalidOptionError,
    RetryableBuildError,
    WeightsSource,
    WeightsUnavailableError,
)
from deeplabv3.arguments import number
from deeplabv3.building import tracing
from deeplabv3.building.assembly import build, is_source
from deeplabv3.building.model_file import NORM_LAYERS
from deeplabv3.building.plan import DEFAULT_PRECISIONS, GPU_INSTANCES, GPU_MAX_BATCH_SIZE, Plan, choose_class_names
from deeplabv3.building.published import describe
from deeplabv3.building.settings import parse_setting
from deeplabv3.building.steps import MODEL_REPOSITORY
from deeplabv3.errors import PASSING_ERRORS, RepositoryError
from deeplabv3.models import figures
from deeplabv3.models.variants import RESNET_OPTIONS, agreed_class_count
from deeplabv3.repository.class_names import read_class_names

# Above, a typing error is likelier than a wish: each batch size is warmed up before the server is ready.
_MOST_BATCHED = 128
_MOST_INSTANCES = 16

EXIT_FAILED = 1
EXIT_WEIGHTS_UNAVAILABLE = 3
EXIT_TRY_AGAIN = 4

_EXIT_CODES = (
    "exit codes: 0 done; 1 failed, and will fail again; 2 wrong options; 3 the weights could not be downloaded; "
    "4 may succeed when tried again: another build is writing there, or the storage fails or is full; 128 + n ended by "
    "signal n"
)

_log = logging.getLogger("build_models")


def make_plans(options: argparse.Namespace) -> list[Plan]:
    """Return what the options of the command line ask for."""
    source = WeightsSource.of(options.weights)
    names = None
    if options.classes is not None:
        try:
            names = read_class_names(options.classes)
        except RepositoryError as exc:
            raise BuildError(f"--classes {options.classes}: {exc}") from exc
    wanted = options.num_classes
    if wanted is None and names is not None and source.label == UNTRAINED:
        wanted = len(names)
    class_names = choose_class_names(names, agreed_class_count(source, wanted))
    resnet_options = {name: getattr(options, name) for name in RESNET_OPTIONS if getattr(options, name) is not None}
    # A checkpoint fits one variant only.
    variants = options.variant or ([source.variant] if source.variant else VARIANTS)
    return [
        Plan(
            variant,
            source,
            class_names,
            aux=options.aux_loss,
            pretrained_backbone=options.pretrained_backbone,
            resnet_options=resnet_options,
            device=options.device,
            precision=options.precision or DEFAULT_PRECISIONS[options.device],
            cudnn=options.cudnn or tracing.CUDNN_MODES[0],
            max_batch_size=options.max_batch_size or GPU_MAX_BATCH_SIZE,
            instances=options.instances or GPU_INSTANCES,
            max_queue_size=options.max_queue_size or 0,
        )
        for variant in dict.fromkeys(variants)
    ]


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description="Build the Triton model repository of DeepLabV3.", epilog=_EXIT_CODES, allow_abbrev=False
    )
    parser.add_argument(
        "--variant",
        action="append",
        choices=VARIANTS,
        help="may be repeated; default: both, or the one that the checkpoint fits",
    )
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument(
        "--weights",
        default=PRETRAINED,
        metavar=f"{PRETRAINED}|FILE|{UNTRAINED}",
        help="pretrained weights by name, a checkpoint, or none for untrained ones (default: %(default)s)",
    )
    weights.add_argument(
        "--pretrained", dest="weights", action="store_const", const=PRETRAINED, help=f"--weights {PRETRAINED}"
    )
    weights.add_argument(
        "--no-pretrained", dest="weights", action="store_const", const=UNTRAINED, help=f"--weights {UNTRAINED}"
    )
    parser.add_argument(
        "--pretrained-backbone", action="store_true", help="ImageNet weights for the backbone of an untrained model"
    )
    parser.add_argument("--num-classes", type=int, metavar="N", help="default: what the weights or --classes have")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="names of the classes, one a line, the background's first"
    )
    parser.add_argument(
        "--aux-loss",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="serve the auxiliary head's output `aux` too (default: no)",
    )
    parser.add_argument(
        "--device",
        choices=DEFAULT_PRECISIONS,
        default="cpu",
        help="where Triton will run the models; either is built on the CPU (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=tracing.PRECISIONS,
        help="in what they compute; inputs and outputs are FP32 (default: fp32 for cpu, fp16 for cuda)",
    )
    parser.add_argument(
        "--cudnn",
        choices=tracing.CUDNN_MODES,
        help="with --device cuda: how cuDNN computes the convolutions (default: heuristic); see docs/building.md",
    )
    parser.add_argument(
        "--preprocess-device",
        choices=DEFAULT_PRECISIONS,
        default="cpu",
        help="with --device cuda: where the pictures are resized; they are decoded on the CPU (default: %(default)s)",
    )
    parser.add_argument(
        "--max-batch-size",
        type=number(1, _MOST_BATCHED, kind=int),
        metavar="N",
        help=f"with --device cuda: the most pictures in a batch of a core model (default: {GPU_MAX_BATCH_SIZE})",
    )
    parser.add_argument(
        "--instances",
        type=number(1, _MOST_INSTANCES, kind=int),
        metavar="N",
        help=f"with --device cuda: the batches that a core model computes side by side (default: {GPU_INSTANCES})",
    )
    parser.add_argument(
        "--max-queue-size",
        type=number(1, 2**32 - 1, kind=int),  # what Triton's field holds
        metavar="N",
        help="with --device cuda: the most requests that wait for a core model, above which Triton refuses; for Triton "
        "26.08 or newer, see docs/building.md (default: no limit)",
    )
    parser.add_argument(
        "--progress",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show a progress bar of the download on stderr (default: yes)",
    )
    _add_resnet_options(parser)
    parser.add_argument(
        "--set",
        type=_setting,
        action="append",
        default=[],
        metavar="MODEL.PARAMETER=VALUE",
        help="a setting of preprocess, postprocess or encode_mask, such as preprocess.resize_mode=shorter_side; may be "
        "repeated; later builds keep it; see docs/building.md",
    )
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=MODEL_REPOSITORY,
        metavar="DIR",
        help="where to build (default: model_repository/, for the default options)",
    )
    parser.add_argument("--force", action="store_true", help="build even what is up to date")
    parser.add_argument("--configs-only", action="store_true", help="write the config files and build nothing")
    parser.add_argument(
        "--describe", action="store_true", help="print what the models are published with beside what is found here"
    )
    parser.add_argument("--json", action="store_true", help="with --describe: print JSON in place of tables")
    options = parser.parse_args(arguments)
    if options.precision == "tf32" and options.device == "cpu":
        parser.error("--precision tf32 is a mode of GPUs: add --device cuda, or take fp32")
    for_gpus = ("cudnn", "max_batch_size", "instances", "max_queue_size")
    if options.device == "cpu" and (options.preprocess_device == "cuda" or any(getattr(options, n) for n in for_gpus)):
        parser.error(
            "--cudnn, --preprocess-device cuda, --max-batch-size, --instances and --max-queue-size are settings for "
            "GPUs: add --device cuda"
        )
    if options.cudnn == "fused" and options.precision in {"fp32", "bf16"}:
        parser.error("--cudnn fused takes --precision fp16 or tf32")
    if options.json and not options.describe:
        parser.error("--json goes with --describe")
    others = vars(options).keys() - {"describe", "json", "variant"}
    if options.describe and any(getattr(options, name) != parser.get_default(name) for name in others):
        parser.error("--describe takes --variant and --json only, for it describes the models as they are published")
    if is_source(options.model_repository) and (changing := _options_changing_configs(parser, options)):
        parser.error(
            f"model_repository/ is source, whose files no build changes; {', '.join(changing)}: add --model-repository "
            "with another folder, such as models/mine"
        )
    return options


# Spelled out, these are the default build.
_AS_DEFAULT = {"precision": "fp32", "num_classes": 21}
_CHANGING_NOTHING = {"variant", "progress", "model_repository", "force", "configs_only", "describe", "json"}


def _options_changing_configs(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[str]:
    return [
        f"--{name.replace('_', '-')}"
        for name, value in vars(options).items()
        if name not in _CHANGING_NOTHING and value not in (parser.get_default(name), _AS_DEFAULT.get(name))
    ]


def _add_resnet_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the backbone, passed to torchvision's ResNet")
    group.add_argument("--groups", type=int, metavar="N", help="groups of the 3 x 3 convolutions (1)")
    group.add_argument("--width-per-group", type=int, metavar="N", help="channels of a group in the first stage (64)")
    group.add_argument(
        "--replace-stride-with-dilation",
        type=_boolean,
        nargs=3,
        metavar="BOOL",
        help="dilation in place of stride, for the last three stages (default: false true true, output stride 8)",
    )
    group.add_argument("--norm-layer", choices=NORM_LAYERS, help="default: BatchNorm2d")
    group.add_argument(
        "--zero-init-residual",
        action="store_true",
        default=None,
        help="residual branches of untrained weights start at 0",
    )


def _setting(text: str) -> tuple[str, str]:
    try:
        return parse_setting(text)
    except InvalidOptionError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from None


def _boolean(text: str) -> bool:
    try:
        return {"true": True, "false": False}[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code, one of _EXIT_CODES."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        if options.describe:
            _print_figures(describe(options.variant or VARIANTS), as_json=options.json)
        else:
            _build(options)
    except WeightsUnavailableError as exc:
        _log.error(
            "build_models.py: %s, or build into another folder (--model-repository DIR) with --weights FILE, a "
            "checkpoint of yours, or --weights %s, an untrained model, whose masks mean nothing",
            exc,
            UNTRAINED,
        )
        return EXIT_WEIGHTS_UNAVAILABLE
    except (DeepLabV3Error, OSError) as exc:
        _log.error("build_models.py: %s", exc)
        return EXIT_TRY_AGAIN if _passes(exc) else EXIT_FAILED
    except KeyboardInterrupt:
        _log.error("build_models.py: interrupted; the models that were there are as they were")
        return 128 + signal.SIGINT
    return 0


def _passes(error: BaseException) -> bool:
    """Tell whether the same build may succeed later."""
    cause = error.__cause__
    return (
        isinstance(error, RetryableBuildError)
        or (isinstance(error, OSError) and error.errno in PASSING_ERRORS)
        or (cause is not None and _passes(cause))
    )


def _build(options: argparse.Namespace) -> None:
    if os.fsencode(options.model_repository).decode("utf-8", "replace") != str(options.model_repository):
        raise BuildError(f"--model-repository {os.fsencode(options.model_repository)!r}: torch takes UTF-8 names only")
    build(
        options.model_repository,
        make_plans(options),
        force=options.force,
        progress=options.progress,
        configs_only=options.configs_only,
        preprocess_device=options.preprocess_device,
        settings=dict(options.set),
    )


def _print_figures(described: dict[str, list[figures.Figure]], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(figures.as_json(described) + "\n")
        return
    from rich.console import Console  # noqa: PLC0415  a build needs no tables

    console = Console()
    for variant, found in described.items():
        console.print(figures.as_table(variant, found))


def _exit_on_signal(number: int, _frame: object) -> NoReturn:
    """Unwind on SIGTERM, so that the partial file goes."""
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
