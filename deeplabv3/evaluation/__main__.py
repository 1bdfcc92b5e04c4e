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
Measure mean IoU and pixel accuracy, on the 21 classes of Pascal VOC or on classes of your own, of one or several
predictors side by side: --eager (PyTorch), --direct (the same tensors to a model on a server), --ensemble (files
to a segmentation ensemble, as users send them). An interrupted run goes on when the same command is given again.
docs/accuracy.md
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for; the names are those of the options.

    Attributes:
        data: the options of the data set alone.
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
        """The file that holds what an interrupted run has counted."""
        return self.output / f"{self.name}.state.jsonl"


def parse(arguments: Sequence[str] | None) -> Options:
    """Return the options of the command line; exit with code 2 where they do not fit."""
    parser = Parser(
        prog="python -m deeplabv3.evaluation",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="{coco,voc,folders}")
    coco = datasets.add_parser(
        "coco", help="COCO's instances with VOC labels, as torchvision's references prepare them"
    )
    coco.add_argument("--annotations", type=Path, required=True, metavar="FILE", help="instances_val2017.json")
    coco.add_argument("--images", type=Path, required=True, metavar="DIR", help="val2017")
    coco.add_argument(
        "--drop-unannotated",
        action="store_true",
        help="leave out images without VOC objects or with at most 1000 pixels of them, as torchvision does when it "
        "trains; the published figures count all",
    )
    voc = datasets.add_parser("voc", help="Pascal VOC's segmentation folders")
    voc.add_argument("--root", type=Path, required=True, metavar="DIR", help="such as VOCdevkit/VOC2012")
    voc.add_argument("--split", default="val", help="a list in ImageSets/Segmentation (default: %(default)s)")
    folders = datasets.add_parser("folders", help="your own pictures, and masks of your own classes")
    folders.add_argument("--images", type=Path, required=True, metavar="DIR", help="the pictures")
    folders.add_argument(
        "--masks",
        type=Path,
        required=True,
        metavar="DIR",
        help="PNGs of class ids, palette or 8-bit grayscale: a.png belongs to a.jpg",
    )
    folders.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names of the classes, one a line, that of id 0 first (default: what the server says)",
    )
    folders.add_argument(
        "--ignore",
        type=number(0, _MAX_CLASS_ID, kind=int),
        default=_MAX_CLASS_ID,
        metavar="ID",
        help="class id of pixels that count for nothing (default: %(default)s)",
    )
    for each in (coco, voc, folders):
        _add_common(each)
    found = vars(parser.parse_args(arguments))
    if not (found["eager"] or found["direct"] or found["ensemble"]):
        parser.error("nothing to measure: give at least one of --eager, --direct and --ensemble")
    if (found["mean"] or found["std"]) and not (found["eager"] or found["direct"]):
        parser.error("--mean and --std are for --eager and --direct; an ensemble has its own since it was built")
    if found["weights"] is not None and not found["eager"]:
        parser.error("--weights is for --eager; a server's models have theirs since they were built")
    found["name"] = name = found["name"] or found["dataset"]
    if Path(name).name != name:
        parser.error(f"--name {name}: a name without folders; --output is for those")
    for kind in ("eager", "direct", "ensemble"):
        # The same predictor twice would be counted once.
        found[kind] = tuple(dict.fromkeys(found[kind]))
    common = {field.name for field in fields(Options)}
    data = {option: found.pop(option) for option in found.keys() - common}
    return Options(data=data, **found)


def _add_common(parser: argparse.ArgumentParser) -> None:
    measured = parser.add_argument_group("what is measured (each may be repeated)")
    measured.add_argument(
        "--eager", action="append", default=[], choices=VARIANTS, help="torchvision's module, without a server"
    )
    measured.add_argument("--direct", action="append", default=[], metavar="MODEL", help="such as deeplabv3_resnet50")
    measured.add_argument("--ensemble", action="append", default=[], metavar="MODEL", help="such as segment_resnet50")
    measured.add_argument(
        "--weights",
        metavar="NAME|FILE|none",
        help="of --eager: a checkpoint, or none for untrained ones (default: the pretrained ones)",
    )
    measured.add_argument("--device", default="cpu", help="of --eager, such as cuda (default: %(default)s)")
    for option, noun, lowest in (("--mean", "mean", 0), ("--std", "standard deviation", LEAST_STD)):
        measured.add_argument(
            option,
            type=channels(lowest),
            metavar="R,G,B",
            help=f"{noun} of the pixels for --eager and --direct, as build_models.py takes it (default: ImageNet's)",
        )
    measured.add_argument(
        "--url",
        default="grpc://localhost:8001",
        help="the server; --direct needs gRPC, --ensemble takes http:// too (default: %(default)s)",
    )
    measured.add_argument(
        "--timeout", type=number(1e-6), default=120.0, help="seconds that one answer may take (default: %(default)g)"
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--limit", type=number(1, kind=int), metavar="N", help="the first N images only")
    run.add_argument(
        "--concurrency",
        type=number(1, kind=int),
        default=4,
        metavar="N",
        help="images in flight, so that Triton can batch (%(default)s)",
    )
    run.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="default: out/evaluate")
    run.add_argument("--name", help="of the files in it (default: the data set's kind)")
    run.add_argument("--restart", action="store_true", help="discard what an interrupted run has left")
    run.add_argument("--json", action="store_true", help="print the JSON in place of the table")


def main(command: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 (failed), 128 + n (signal n; the same command goes on)."""
    options = parse(command)
    # The client says it of every untrained model that it meets; here the panel does.
    logging.getLogger("deeplab_client").setLevel(logging.ERROR)
    try:
        from deeplabv3.evaluation import report, run  # noqa: PLC0415 - loads torch, for which --help need not wait

        content = run.run(options, console(stderr=True))
    except EvaluationError as exc:
        _say(str(exc))
        if not isinstance(exc, StateError):
            _say_what_was_counted(options)
        return EXIT_FAILED
    except Interrupted as exc:
        _say("interrupted")
        _say_what_was_counted(options)
        if exc.abandoned:
            # Threads that wait for a server or a file cannot be ended, and Python would wait for them.
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


def _say_what_was_counted(options: Options) -> None:
    with contextlib.suppress(OSError):
        if options.records.read_bytes().count(b"\n") > 1:  # the first line has the settings
            _say(f"what was counted is in {options.records}; the same command goes on from there")


def _say(message: str) -> None:
    sys.stderr.write(f"deeplabv3.evaluation: {message}\n")


if __name__ == "__main__":
    sys.exit(main())
