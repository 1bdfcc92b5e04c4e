"""Build the Triton model repository: trace DeepLabV3 to TorchScript, check it against PyTorch, put it in place.

    python build_models.py                      both variants, weights COCO_WITH_VOC_LABELS_V1
    python build_models.py --weights checkpoint.pth --classes names.txt --model-repository mine
    python build_models.py --weights none       untrained: for a machine that cannot download the weights
    python build_models.py --describe           what the models are published with, and what is found here

A build that fails or is interrupted leaves the models that were there before as they were.
"""

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # under `python -P` it is not there
    from deeplabv3.environment import guard

    guard()

import argparse
import contextlib
import fcntl
import json
import logging
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import asdict
from typing import NoReturn

from torchvision.models.segmentation.deeplabv3 import DeepLabV3

from deeplabv3 import (
    PRETRAINED,
    UNTRAINED,
    VARIANTS,
    BuildError,
    DeepLabV3Error,
    RetryableBuildError,
    WeightsSource,
    WeightsUnavailableError,
)
from deeplabv3.building import shipped, tracing
from deeplabv3.building.configs import config_text, core_config, ensemble_config, read_config, with_class_count
from deeplabv3.building.fusion import fuse_for_cudnn
from deeplabv3.building.plan import (
    DEFAULT_PRECISIONS,
    GPU_INSTANCES,
    GPU_MAX_BATCH_SIZE,
    NORM_LAYERS,
    Plan,
    choose_class_names,
    read_class_names,
)
from deeplabv3.building.record import BuildRecord
from deeplabv3.building.steps import place_steps
from deeplabv3.errors import PASSING_ERRORS
from deeplabv3.models import figures
from deeplabv3.models.variants import RESNET_OPTIONS, agreed_class_count, load_model

MODEL_REPOSITORY = Path(__file__).resolve().parent / "model_repository"

# Models that are no product of this script; a repository built elsewhere gets a copy.
_STATIC_MODELS = ("preprocess", "postprocess", "encode_mask")
_LABELS = Path("postprocess", "labels.txt")

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


# What is asked for ------------------------------------------------------------------------------------------------


def make_plans(options: argparse.Namespace) -> list[Plan]:
    """Return what the options of the command line ask for."""
    source = WeightsSource.of(options.weights)
    names = None if options.classes is None else read_class_names(options.classes)
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


# Files in the repository ------------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(directory: Path) -> Generator[None]:
    """Keep a second build away from a repository; the lock goes with the process, however it ends."""
    with _writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as exc:
        raise RetryableBuildError(f"another build is writing to {directory}; wait for it or stop it") from exc
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _writing(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as exc:
        raise BuildError(
            f"{folder} cannot be written to: {exc.strerror}; change that or give another folder with --model-repository"
        ) from exc


def try_writing(repository: Path, plans: Sequence[Plan]) -> None:
    """Write into every folder that a build will write to, and take it away again: tracing takes minutes.

    Raises:
        BuildError: a folder cannot be written to, or there is too little space.
    """
    models = [*_STATIC_MODELS, *(name for plan in plans for name in (plan.core, plan.ensemble))]
    folders = [repository, *(repository / name for name in models), *(repository / name / "1" for name in models)]
    for folder in folders:
        with _writing(folder):
            if folder.exists():
                with tempfile.TemporaryFile(dir=folder) as trial:
                    trial.write(b"\0")
    tracing.check_room(repository, len(plans))


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; leave an equal one untouched."""
    if path.exists() and path.read_bytes() == content:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_text(path: Path, text: str) -> None:
    _write(path, text.encode())


def write_configs(repository: Path, plan: Plan) -> None:
    """Write what describes one variant: the config.pbtxt, the class names, the ensemble's version folder."""
    _write_text(repository / plan.core / "config.pbtxt", config_text(core_config(plan)))
    _write_ensemble(repository, plan)
    _write_text(repository / _LABELS, "".join(f"{name}\n" for name in plan.class_names))
    path = repository / "postprocess" / "config.pbtxt"
    _write_text(path, with_class_count(_text(path), len(plan.class_names)))


def _write_ensemble(repository: Path, plan: Plan) -> None:
    _write_text(repository / plan.ensemble / "config.pbtxt", config_text(ensemble_config(plan)))
    _write_text(repository / plan.ensemble / "1" / ".gitkeep", "")  # Triton wants a version of an ensemble too.


def write_steps(repository: Path, plans: Sequence[Plan], *, preprocess_device: str, dry_run: bool = False) -> None:
    """Make the steps that the variants share run on a GPU where one of the repository's core models does.

    A dry run writes nothing, and raises what the other would.
    """
    files = [repository / f"deeplabv3_{variant}" / "1" / "model.pt" for variant in VARIANTS]
    others = [record for file in files if (record := BuildRecord.read(file)) is not None]
    planned = {plan.core: plan.device for plan in plans}
    found = {f"deeplabv3_{record.variant}": record.device for record in others}
    configs = {path: copy.text for path, copy in _settle(repository).items()}
    device = "cuda" if "cuda" in (found | planned).values() else "cpu"
    if device not in planned.values():
        return  # the steps are where the model that stays has them
    for path, text in place_steps(configs, device=device, preprocess_device=preprocess_device).items():
        if not dry_run:
            _write_text(path, text)


def copy_static_models(repository: Path) -> None:
    """Complete a repository that is not the one beside this script.

    Code is replaced, and so are configs that nobody edited; labels.txt stays.

    Raises:
        BuildError: an edited config does not fit; nothing has been written then.
    """
    configs = _settle(repository)
    if repository.resolve() == MODEL_REPOSITORY:
        return
    for name in _STATIC_MODELS:
        for source in sorted((MODEL_REPOSITORY / name).rglob("*")):
            relative = source.relative_to(MODEL_REPOSITORY)
            target = repository / relative
            if not source.is_file() or "__pycache__" in source.parts or target in configs:
                continue
            if relative == _LABELS and target.exists() and target.stat().st_size:
                continue
            _write(target, source.read_bytes())
    for path, config in configs.items():
        if config.warning:
            _log.warning("build_models.py: warning: %s", config.warning)
        _write_text(path, config.text)
        # Last: a build that is killed in between finds the new text and takes it for its own.
        if config.shipped is not None:
            _write_text(path.with_name(shipped.RECORD), config.shipped)


def _settle(repository: Path) -> dict[Path, shipped.Copy]:
    """Return what is to become of the steps' config.pbtxt files; beside this script they are what is shipped."""
    paths = [repository / name / "config.pbtxt" for name in _STATIC_MODELS]
    if repository.resolve() == MODEL_REPOSITORY:
        return {path: shipped.Copy(_text(path)) for path in paths}
    return {path: shipped.settle(path, MODEL_REPOSITORY / path.relative_to(repository)) for path in paths}


def _text(config: Path) -> str:
    """Return what a config.pbtxt holds.

    Raises:
        BuildError: it is none.
    """
    read_config(config)
    return config.read_text(encoding="utf-8")


def check_repository(repository: Path, plans: Sequence[Plan], *, preprocess_device: str) -> list[Plan]:
    """Find what cannot be changed before anything is; return the other models as check_neighbours does.

    Raises:
        BuildError: another model serves other classes, or an edited config does not fit.
    """
    others = check_neighbours(repository, plans)
    write_steps(repository, plans, preprocess_device=preprocess_device, dry_run=True)
    return others


def check_neighbours(repository: Path, plans: Sequence[Plan]) -> list[Plan]:
    """Return what the ensembles of the repository's other models, those that are not built now, are made of.

    Both variants share postprocess, and with it the list of class names.

    Raises:
        BuildError: one of them serves other classes.
    """
    others: list[Plan] = []
    for variant in sorted(set(VARIANTS) - {plan.variant for plan in plans}):
        file = repository / f"deeplabv3_{variant}" / "1" / "model.pt"
        if not file.exists():
            continue
        record = BuildRecord.read(file)
        if record is None or record.class_names != plans[0].class_names:
            found = "unknown classes" if record is None else f"other classes ({', '.join(record.class_names)[:200]})"
            raise BuildError(
                f"{file} serves {found}, and a repository has one list of them: build both variants, remove that file, "
                "or give another --model-repository"
            )
        core = repository / f"deeplabv3_{variant}" / "config.pbtxt"
        largest = read_config(core).max_batch_size if core.exists() else GPU_MAX_BATCH_SIZE
        others.append(Plan(variant, WeightsSource(record.weights), record.class_names, max_batch_size=largest))
    return others


def write_all_configs(
    repository: Path, plans: Sequence[Plan], *, others: Sequence[Plan], preprocess_device: str
) -> None:
    """Write every config of a complete repository. others: as check_neighbours returns them."""
    for plan in plans:
        write_configs(repository, plan)
    for plan in others:  # which may come from a version with other steps
        _write_ensemble(repository, plan)
    write_steps(repository, plans, preprocess_device=preprocess_device)


def build(
    repository: Path, plans: Sequence[Plan], *, force: bool, progress: bool, preprocess_device: str = "cpu"
) -> None:
    """Build what is not up to date, and put it in place only when all of it is done and checked."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(locked(repository))
        others = check_repository(repository, plans, preprocess_device=preprocess_device)
        partials = {plan.core: repository / plan.core / "1" / ".model.pt.partial" for plan in plans}
        for partial in partials.values():
            with _writing(partial.parent):
                partial.parent.mkdir(parents=True, exist_ok=True)
                partial.unlink(missing_ok=True)  # of a build that was killed
            stack.callback(_remove_empty, partial.parent, partial.parent.parent)  # of a build that fails
            stack.callback(partial.unlink, missing_ok=True)
        staged = [
            plan for plan in plans if force or not _is_up_to_date(partials[plan.core].with_name("model.pt"), plan)
        ]
        if staged:
            try_writing(repository, staged)
        for plan in staged:
            stage(partials[plan.core], plan, progress=progress)
        copy_static_models(repository)
        for plan in staged:
            partials[plan.core].replace(partials[plan.core].with_name("model.pt"))
        write_all_configs(repository, plans, others=others, preprocess_device=preprocess_device)


def _is_up_to_date(file: Path, plan: Plan) -> bool:
    if BuildRecord.read(file) != BuildRecord.of(plan):
        return False
    _log.info("%s: up to date (weights %s)", plan.core, plan.source.label)
    return True


def _remove_empty(*folders: Path) -> None:
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def stage(partial: Path, plan: Plan, *, progress: bool) -> None:
    """Make a model's file and check it."""
    _log.info("%s: loading weights %s", plan.core, plan.source.label)
    model = _load(plan, progress=progress)
    _log.info("%s: tracing for %s in %s", plan.core, plan.device, plan.precision)
    precision = tracing.PRECISIONS[plan.precision]
    traced = tracing.trace(model, aux=plan.aux, precision=precision, device=plan.device, cudnn=plan.cudnn)
    extra = {BuildRecord.FILE: json.dumps(asdict(BuildRecord.of(plan)), indent=2)}
    tracing.save(traced, partial, extra)
    shape = "x".join(map(str, tracing.VERIFY_SHAPE))
    _log.info("%s: checking the saved file against PyTorch at %s", plan.core, shape)
    findings = tracing.verify(partial, model, aux=plan.aux, precision=precision)
    if plan.cudnn == "fused":  # after the check, for only a GPU runs what comes out
        fuse_for_cudnn(traced)
        tracing.save(traced, partial, extra)
    _log.info("%s: done, %.0f MB; %s", plan.core, partial.stat().st_size / 2**20, findings)


def _load(plan: Plan, *, progress: bool) -> DeepLabV3:
    resnet_options = dict(plan.resnet_options)
    if "norm_layer" in resnet_options:
        resnet_options["norm_layer"] = NORM_LAYERS[resnet_options["norm_layer"]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model = load_model(
            plan.variant,
            plan.source,
            num_classes=len(plan.class_names),
            pretrained_backbone=plan.pretrained_backbone,
            progress=progress,
            resnet_options=resnet_options,
        )
    for warning in caught:
        _log.warning("%s: warning: %s", plan.core, warning.message)
    return model


# The published figures --------------------------------------------------------------------------------------------


def describe(variants: Sequence[str]) -> dict[str, list[figures.Figure]]:
    """Compute the published figures of some variants, on models with untrained weights."""
    source = WeightsSource(UNTRAINED)
    described: dict[str, list[figures.Figure]] = {}
    for variant in variants:
        _log.info("deeplabv3_%s: tracing with and without its auxiliary head", variant)
        model = load_model(variant, source)
        sizes: list[int] = []
        with tempfile.TemporaryDirectory() as folder:
            for aux in (True, False):
                file = Path(folder, "model.pt")
                tracing.save(tracing.trace(model, aux=aux), file, {})
                sizes.append(file.stat().st_size)
        described[variant] = figures.describe(variant, model, traced_bytes=sizes[0], served_bytes=sizes[1])
    return described


# Command line -----------------------------------------------------------------------------------------------------


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
        type=_at_most(_MOST_BATCHED),
        metavar="N",
        help=f"with --device cuda: the most pictures in a batch of a core model (default: {GPU_MAX_BATCH_SIZE})",
    )
    parser.add_argument(
        "--instances",
        type=_at_most(_MOST_INSTANCES),
        metavar="N",
        help=f"with --device cuda: the batches that a core model computes side by side (default: {GPU_INSTANCES})",
    )
    parser.add_argument(
        "--max-queue-size",
        type=_at_most(2**32 - 1),  # what Triton's field holds
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
        "--model-repository", type=Path, default=MODEL_REPOSITORY, metavar="DIR", help="where to build (default: here)"
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
    return options


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


def _at_most(most: int) -> Callable[[str], int]:
    def number_of(text: str) -> int:
        number = int(text) if text.isascii() and text.isdigit() else 0
        if not 0 < number <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 to {most}")
        return number

    return number_of


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
            "build_models.py: %s, or pass --weights FILE with a checkpoint of yours, or --weights %s for an untrained "
            "model, whose masks mean nothing",
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
    plans = make_plans(options)
    if not options.configs_only:
        build(
            options.model_repository,
            plans,
            force=options.force,
            progress=options.progress,
            preprocess_device=options.preprocess_device,
        )
        return
    repository = options.model_repository
    with locked(repository):
        others = check_repository(repository, plans, preprocess_device=options.preprocess_device)
        copy_static_models(repository)
        write_all_configs(repository, plans, others=others, preprocess_device=options.preprocess_device)


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
