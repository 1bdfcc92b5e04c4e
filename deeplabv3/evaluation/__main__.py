"""The command line of `python -m deeplabv3.evaluation`, its messages and its exit codes."""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deeplabv3.arguments import LEAST_STD, channels, number
from deeplabv3.command_line import Parser
from deeplabv3.console import console
from deeplabv3.evaluation import EvaluationError, Interrupted, StateError
from deeplabv3.models.names import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OUTPUT = Path(__file__).resolve().parents[2] / "out" / "evaluate"

EXIT_FAILED = 1
_MAX_CLASS_ID = 255

_DESCRIPTION = """\
Measure the mean IoU and pixel accuracy of one or more predictors on the same images, over the 21 classes of Pascal VOC
or your own classes: --eager (PyTorch), --direct (the same tensors, sent to a model on a server) and --ensemble (image
files, sent to a segmentation ensemble as users do). To resume an interrupted run, repeat its command.
See docs/accuracy.md.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of the command line, by their names.

    Attributes:
        data: the options that only the kind of data set has.
    """

    dataset: Literal["coco", "voc", "folders"]
    data: Mapping[str, Any]
    eager: Sequence[str]
    direct: Sequence[str]
    ensemble: Sequence[str]
    weights: str | None
    device: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    url: str
    timeout: float
    limit: int | None
    concurrency: int
    output: Path
    name: str
    restart: bool
    json: bool

    @property
    def records(self) -> Path:
        """The file with the counts of an interrupted run."""
        return self.output / f"{self.name}.state.jsonl"


def parse(arguments: Sequence[str] | None) -> Options:
    """Return the options of the command line; exit with code 2 if they contradict each other."""
    parser = Parser(
        prog="python -m deeplabv3.evaluation",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="{coco,voc,folders}")
    coco = datasets.add_parser("coco", help="COCO instances with VOC labels, prepared as in torchvision's references")
    coco.add_argument(
        "--annotations",
        type=Path,
        required=True,
        metavar="FILE",
        help="COCO instance annotations, such as instances_val2017.json",
    )
    coco.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the images, such as val2017")
    coco.add_argument(
        "--drop-unannotated",
        action="store_true",
        help="leave out images with at most 1000 annotated pixels of VOC objects, as torchvision does in training; the "
        "published figures count all images",
    )
    voc = datasets.add_parser("voc", help="the segmentation folders of Pascal VOC")
    voc.add_argument(
        "--root", type=Path, required=True, metavar="DIR", help="folder of one year, such as VOCdevkit/VOC2012"
    )
    voc.add_argument("--split", default="val", help="name of a list in ImageSets/Segmentation (default: %(default)s)")
    folders = datasets.add_parser("folders", help="your own pictures and masks")
    folders.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    folders.add_argument(
        "--masks",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of PNGs of class ids, palette or 8-bit grayscale; a.png belongs to a.jpg",
    )
    folders.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="file with one class name per line, id 0 first (default: the names that the server returns)",
    )
    folders.add_argument(
        "--ignore",
        type=number(0, _MAX_CLASS_ID, kind=int),
        default=_MAX_CLASS_ID,
        metavar="ID",
        help="class id of pixels that are not counted (default: %(default)s)",
    )
    for each in (coco, voc, folders):
        _add_common(each)
    found = vars(parser.parse_args(arguments))
    if not (found["eager"] or found["direct"] or found["ensemble"]):
        parser.error("nothing to measure: give at least one of --eager, --direct and --ensemble")
    if (found["mean"] or found["std"]) and not (found["eager"] or found["direct"]):
        parser.error(
            "--mean and --std are only for --eager and --direct, because an ensemble normalizes as it was built; leave "
            "them out"
        )
    if found["weights"] is not None and not found["eager"]:
        parser.error(
            "--weights is only for --eager, because served models have the weights of their build; leave it out"
        )
    found["name"] = name = found["name"] or found["dataset"]
    if Path(name).name != name:
        parser.error(f"--name must be a name without folders, got {name!r}; give the folder with --output")
    for kind in ("eager", "direct", "ensemble"):
        # A repeated predictor is measured once.
        found[kind] = tuple(dict.fromkeys(found[kind]))
    common = {field.name for field in fields(Options)}
    data = {option: found.pop(option) for option in found.keys() - common}
    return Options(data=data, **found)


def _add_common(parser: argparse.ArgumentParser) -> None:
    measured = parser.add_argument_group("predictors")
    measured.add_argument(
        "--eager",
        action="append",
        default=[],
        choices=VARIANTS,
        help="torchvision's module, without a server; may be repeated",
    )
    measured.add_argument(
        "--direct",
        action="append",
        default=[],
        metavar="MODEL",
        help="served model for direct callers, such as deeplabv3_resnet50; may be repeated",
    )
    measured.add_argument(
        "--ensemble",
        action="append",
        default=[],
        metavar="MODEL",
        help="served ensemble, such as segment_resnet50; may be repeated",
    )
    measured.add_argument(
        "--weights",
        metavar="NAME|FILE|none",
        help="for --eager: a checkpoint, or none for untrained weights (default: the pretrained weights)",
    )
    measured.add_argument("--device", default="cpu", help="for --eager: device such as cuda (default: %(default)s)")
    for option, noun, lowest in (("--mean", "mean", 0), ("--std", "standard deviation", LEAST_STD)):
        measured.add_argument(
            option,
            type=channels(lowest),
            metavar="R,G,B",
            help=f"for --eager and --direct: {noun} of the training pixels, on the scale 0 to 1 (default: ImageNet's)",
        )
    measured.add_argument(
        "--url",
        default="grpc://localhost:8001",
        help="URL of the server; --direct needs gRPC, --ensemble also takes http:// (default: %(default)s)",
    )
    measured.add_argument(
        "--timeout",
        type=number(1e-6),
        default=120.0,
        help="time limit of one request, in seconds (default: %(default)g)",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--limit", type=number(1, kind=int), metavar="N", help="measure only the first N images")
    run.add_argument(
        "--concurrency",
        type=number(1, kind=int),
        default=4,
        metavar="N",
        help="number of images in flight, from which Triton forms batches (default: %(default)s)",
    )
    run.add_argument(
        "--output", type=Path, default=OUTPUT, metavar="DIR", help="folder for the results (default: out/evaluate)"
    )
    run.add_argument("--name", help="name of the result files, without suffix (default: the kind of data set)")
    run.add_argument("--restart", action="store_true", help="discard the state of an interrupted run")
    run.add_argument("--json", action="store_true", help="print JSON instead of the table")


def main(command: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 (failed), 128 + n (signal n; the same command resumes)."""
    options = parse(command)
    # The client warns about every untrained model; here the panel does.
    logging.getLogger("deeplab_client").setLevel(logging.ERROR)
    try:
        from deeplabv3.evaluation import report, run  # noqa: PLC0415 - loads torch, which --help does not need

        content = run.run(options, console(stderr=True))
    except EvaluationError as exc:
        _say(str(exc))
        if not isinstance(exc, StateError):
            _say_where_counts_are(options)
        return EXIT_FAILED
    except Interrupted as exc:
        _say("interrupted")
        _say_where_counts_are(options)
        if exc.abandoned:
            # Threads that wait for a server or a file cannot be stopped, and Python would wait for them.
            sys.stderr.flush()
            os._exit(128 + exc.number)
        return 128 + exc.number
    except KeyboardInterrupt:
        _say("interrupted")
        return 128 + signal.SIGINT
    if options.json:
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
    else:
        console().print(report.table(content))
        sys.stdout.write(f"{options.output / options.name}.json and .png\n")
    return 0


def _say_where_counts_are(options: Options) -> None:
    with contextlib.suppress(OSError):
        if options.records.read_bytes().count(b"\n") > 1:  # the first line has the settings
            _say(f"the images counted so far are in {options.records}; repeat the command to resume")


def _say(message: str) -> None:
    sys.stderr.write(f"deeplabv3.evaluation: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
