"""The command line of `python -m deeplabv3.evaluation`."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

VARIANTS = ("resnet50", "resnet101")
OUTPUT = Path(__file__).resolve().parents[2] / "out" / "evaluate"

_DESCRIPTION = """\
Measure mean IoU and pixel accuracy on the 21 classes of Pascal VOC, of one or several predictors side by side:
--eager (PyTorch), --core (the same tensors to a core model on a server), --ensemble (files to a segmentation
ensemble, as users send them). An interrupted run goes on when the same command is given again. docs/accuracy.md
"""


@dataclass(frozen=True, slots=True)
class CocoData:
    """COCO with VOC labels."""

    annotations: Path
    images: Path
    drop_unannotated: bool


@dataclass(frozen=True, slots=True)
class VocData:
    """Pascal VOC's folders."""

    root: Path
    split: str


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for; the names are those of the options."""

    data: CocoData | VocData
    eager: tuple[str, ...]
    core: tuple[str, ...]
    ensemble: tuple[str, ...]
    weights: str | None
    device: str
    url: str
    timeout: float
    limit: int | None
    concurrency: int
    output: Path
    name: str
    restart: bool
    json: bool


def parse(arguments: Sequence[str] | None) -> Options:
    """Return the options of the command line; exit with code 2 where they do not fit."""
    parser = argparse.ArgumentParser(
        prog="python -m deeplabv3.evaluation",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    datasets = parser.add_subparsers(dest="dataset", required=True, metavar="{coco,voc}")
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
    for each in (coco, voc):
        _add_common(each)
    found = parser.parse_args(arguments)
    if not (found.eager or found.core or found.ensemble):
        parser.error("nothing to measure: give at least one of --eager, --core and --ensemble")
    if found.weights is not None and not found.eager:
        parser.error("--weights is for --eager; a server's models have theirs since they were built")
    if Path(found.name or found.dataset).name != (found.name or found.dataset):
        parser.error(f"--name {found.name}: a name without folders; --output is for those")
    data = (
        CocoData(found.annotations, found.images, found.drop_unannotated)
        if found.dataset == "coco"
        else VocData(found.root, found.split)
    )
    return Options(
        data=data,
        # The same predictor twice would be counted once.
        eager=tuple(dict.fromkeys(found.eager)),
        core=tuple(dict.fromkeys(found.core)),
        ensemble=tuple(dict.fromkeys(found.ensemble)),
        weights=found.weights,
        device=found.device,
        url=found.url,
        timeout=found.timeout,
        limit=found.limit,
        concurrency=found.concurrency,
        output=found.output,
        name=found.name or found.dataset,
        restart=found.restart,
        json=found.json,
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    measured = parser.add_argument_group("what is measured (each may be repeated)")
    measured.add_argument(
        "--eager", action="append", default=[], choices=VARIANTS, help="torchvision's module, without a server"
    )
    measured.add_argument("--core", action="append", default=[], metavar="MODEL", help="such as deeplabv3_resnet50")
    measured.add_argument("--ensemble", action="append", default=[], metavar="MODEL", help="such as segment_resnet50")
    measured.add_argument(
        "--weights",
        metavar="NAME|FILE|none",
        help="of --eager: a checkpoint, or none for untrained ones (default: the pretrained ones)",
    )
    measured.add_argument("--device", default="cpu", help="of --eager, such as cuda (default: %(default)s)")
    measured.add_argument(
        "--url",
        default="grpc://localhost:8001",
        help="the server; --core needs gRPC, --ensemble takes http:// too (default: %(default)s)",
    )
    measured.add_argument(
        "--timeout", type=_seconds, default=120.0, help="seconds that one answer may take (default: %(default)g)"
    )
    run = parser.add_argument_group("the run")
    run.add_argument("--limit", type=_positive, metavar="N", help="the first N images only")
    run.add_argument(
        "--concurrency",
        type=_positive,
        default=4,
        metavar="N",
        help="images in flight, so that Triton can batch (%(default)s)",
    )
    run.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="default: out/evaluate")
    run.add_argument("--name", help="of the files in it (default: the data set's kind)")
    run.add_argument("--restart", action="store_true", help="discard what an interrupted run has left")
    run.add_argument("--json", action="store_true", help="print the JSON in place of the table")


def _positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return value


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value
