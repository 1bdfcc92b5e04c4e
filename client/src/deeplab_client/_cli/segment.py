"""The command that segments pictures."""

# No `from __future__ import annotations`: typer reads the annotations when it runs.

import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from deeplab_client import SegmentationClient
from deeplab_client._cli import batch, report, server, streams
from deeplab_client._cli.annotations import Annotations
from deeplab_client._cli.formats import Format
from deeplab_client._cli.options import MODEL, Model, Timeout, Url
from deeplab_client._cli.outputs import Files, Output, StandardOutput
from deeplab_client._cli.server import INTERRUPTED, SOME_FAILED, UnusableError
from deeplab_client._cli.settings import Settings
from deeplab_client._cli.sources import STANDARD_INPUT, Selection, find, is_url

_STDOUT = "-"

# Not in a docstring, because typer keeps its line breaks after the first paragraph.
HELP = (
    "Segment pictures.\n\n"
    "A terminal gets a table, a pipe gets one line for each picture. Files are only written with --output:\n\n"
    "\b\n"
    "overlay  X.jpg.overlay.png  the picture under the colors of its classes\n"
    "colors   X.jpg.colors.png   the colors of the classes alone\n"
    "ids      X.jpg.ids.png      class ids as pixel values, to compute with\n"
    "json     X.jpg.json         classes, shares, and masks as COCO run lengths\n"
    "coco     annotations.json   one COCO file for all pictures\n\n"
    "The output folder repeats the subfolders of the folder that you name. If the output of another picture has the "
    "same name, a folder of the picture's path is put before it: Y/X.jpg.overlay.png.\n\n"
    "A picture is skipped if it is done: its outputs were made from a file of the same path, size and modification "
    "time, with the same model, weights and options. To continue an interrupted run, run the same command again.\n\n"
    "In a pipe: cat X.jpg | deeplab segment - -o - -f json | jq"
)

_SEGMENTATION, _OUTPUT = "Segmentation", "Output"  # panels of the help
_ALPHA, _OVERLAP = 0.5, 0.25


def _format(text: str) -> Format:
    try:
        return Format(text)
    except ValueError as error:
        *names, last = (kind.value for kind in Format)
        remedy = ": repeat the option for several formats" if "," in text else ""
        message = f"must be {', '.join(names)} or {last}, got {text!r}{remedy}"
        raise typer.BadParameter(message, param_hint="--format") from error


def segment(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE", help="Files, folders, patterns such as 'photos/**/*.jpg', or - for standard input."
        ),
    ],
    *,
    url: Url,
    model: Model = MODEL,
    timeout: Timeout = 30.0,
    concurrency: Annotated[
        int,
        typer.Option("--concurrency", metavar="COUNT", min=1, max=256, help="Number of concurrent requests."),
    ] = 4,
    confidence: Annotated[
        float | None,
        typer.Option(
            "--confidence",
            metavar="SHARE",
            min=0,
            max=1,
            help="Set pixels whose class has a lower probability, for example 0.8, to background, and add mean "
            "probabilities to json and coco. 0 keeps all pixels.",
            rich_help_panel=_SEGMENTATION,
        ),
    ] = None,
    tile: Annotated[
        int | None,
        typer.Option(
            "--tile",
            metavar="PIXELS",
            min=64,
            help="For large pictures: segment overlapping tiles of this width and height, and join their masks. The "
            "timeout then applies to all tiles of a picture together.",
            rich_help_panel=_SEGMENTATION,
        ),
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            "--overlap",
            metavar="SHARE",
            min=0,
            help="Share of a tile that its neighbor also covers, less than 1; default 0.25.",
            rich_help_panel=_SEGMENTATION,
        ),
    ] = None,
    recursive: Annotated[
        bool,
        typer.Option("--recursive", "-r", metavar="", help="Search subfolders too, except hidden and linked ones."),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="DIR",
            help="Output folder; - is standard output, for one picture in one format.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    kinds: Annotated[
        list[Format] | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            parser=_format,
            autocompletion=lambda: [kind.value for kind in Format],
            help="overlay (default), colors, ids, json or coco; repeat the option for several.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            "--alpha",
            metavar="SHARE",
            min=0,
            max=1,
            help="Opacity of an overlay; default 0.5.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    legend: Annotated[
        bool,
        typer.Option(
            "--legend",
            metavar="",
            help="Add a legend of class names and shares to each overlay.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            metavar="",
            help="Segment pictures that are done again, and overwrite annotations.json.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", metavar="", help="Print one JSON object for each picture, one per line.", rich_help_panel=_OUTPUT
        ),
    ] = False,
) -> None:
    """Segment pictures."""
    client = server.connect(url, model=model, timeout=timeout)
    try:
        selection = find(images, recursive=recursive)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="IMAGE") from error
    _check_drawing(output, kinds, alpha=alpha, legend=legend)
    settings = Settings(
        model,
        confidence=confidence,
        tile=tile,
        overlap=_checked_overlap(overlap, tile),
        alpha=_ALPHA if alpha is None else alpha,
        legend=legend,
    )
    outputs = _outputs(
        output, tuple(dict.fromkeys(kinds or [Format.OVERLAY])), selection, client, settings, force=force
    )
    if output == _STDOUT and as_json:
        raise typer.BadParameter(
            "cannot be combined with --output -, because both write to standard output", param_hint="--json"
        )
    sources = selection.sources
    tally, started, code = report.Tally(len(sources)), time.monotonic(), 0
    reporter = report.reporter_of(len(sources), output, as_json=as_json)
    written = list[Path]()
    remarks, problems = list[str](), list[str]()
    with client, reporter.bar:
        try:
            outcomes = batch.run(client, sources, outputs, settings, concurrency=concurrency)
            all_reported = report.report_all(outcomes, tally, reporter, model=model)
            code = SOME_FAILED if tally.failed or selection.unreadable or not all_reported else 0
        except UnusableError as error:
            problems, code = [f"{error}{server.remedy(client, error)}"], error.code
        except KeyboardInterrupt:
            problems, code = ["interrupted"], INTERRUPTED
        except BrokenPipeError:  # `| head -1`: finished outputs are kept, as after an interrupt
            problems, code = ["stopped, because standard output was closed"], SOME_FAILED
        try:
            for one in outputs:
                path, new_remarks = one.finish()
                written += [] if path is None else [path]
                remarks += new_remarks
        except OSError as error:
            problems, code = [str(error)], SOME_FAILED
    reporter.finish(tally.summary(time.monotonic() - started, written[0] if written and tally.done else None))
    for notice in [*(remarks if tally.done else []), *selection.notices(), *problems]:
        streams.notice(notice)
    raise typer.Exit(code)


def _check_drawing(output: str | None, kinds: Sequence[Format] | None, *, alpha: float | None, legend: bool) -> None:
    """Refuse options for outputs that are not written."""
    given = {"--format": bool(kinds), "--alpha": alpha is not None, "--legend": legend}
    for option in (option for option, is_given in given.items() if is_given):
        if output is None:
            raise typer.BadParameter("needs --output DIR, the folder for the files", param_hint=option)
        if option != "--format" and kinds and Format.OVERLAY not in kinds:
            named = " ".join(f"--format {kind.value}" for kind in kinds)
            raise typer.BadParameter(f"only applies to overlays, got {named}: add --format overlay", param_hint=option)


def _checked_overlap(overlap: float | None, tile: int | None) -> float:
    if overlap is None:
        return _OVERLAP
    if tile is None:
        raise typer.BadParameter("needs --tile PIXELS, the size of the tiles", param_hint="--overlap")
    if overlap >= 1:
        raise typer.BadParameter(f"must be from 0 to less than 1, got {overlap:g}", param_hint="--overlap")
    return overlap


def _outputs(
    output: str | None,
    kinds: Sequence[Format],
    selection: Selection,
    client: SegmentationClient,
    settings: Settings,
    *,
    force: bool,
) -> list[Output]:
    if output is None:
        return []
    if output == _STDOUT:
        return [_standard_output(kinds, selection, settings)]
    if STANDARD_INPUT in selection.sources:
        message = (
            "a picture from standard input has no name for files in a folder: use --output - and redirect it to a file"
        )
        raise typer.BadParameter(message, param_hint="--output")
    folder = _folder(output)
    weights = functools.cache(functools.partial(server.weights_of, client, settings.model))
    outputs: list[Output] = []
    single = [kind for kind in kinds if kind is not Format.COCO]
    if single:
        outputs.append(Files(folder, single, force, settings, weights))
    if Format.COCO in kinds:
        try:
            outputs.append(Annotations(folder, selection, force=force, settings=settings, weights=weights))
        except (ValueError, OSError) as error:
            raise typer.BadParameter(str(error), param_hint="--output") from error
    return outputs


def _standard_output(kinds: Sequence[Format], selection: Selection, settings: Settings) -> StandardOutput:
    wrong = None
    if len(selection.sources) > 1:
        wrong = f"standard output takes one picture, got {len(selection.sources)}: use a folder"
    elif len(kinds) > 1:
        wrong = f"standard output takes one format, got {len(kinds)}: use a folder"
    elif kinds[0] is Format.COCO:
        wrong = "standard output takes no coco, which is one file for all pictures: use a folder, or --format json"
    elif kinds[0] is not Format.JSON and sys.stdout.isatty():
        wrong = "standard output is a terminal, which cannot show a PNG: redirect it to a file, or use a folder"
    if wrong is not None:
        raise typer.BadParameter(wrong, param_hint="--output")
    return StandardOutput(kinds[0], settings)


def _folder(output: str) -> Path:
    """Create and return the output folder."""
    if is_url(output):
        raise typer.BadParameter(f"must be a folder, got the URL {output}", param_hint="--output")
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        message = f"must be a folder, but {streams.clean(folder)} is a file or lies below one"
        raise typer.BadParameter(message, param_hint="--output") from error
    except OSError as error:
        message = f"cannot create the folder {streams.clean(folder)}: {error.strerror}"
        raise typer.BadParameter(message, param_hint="--output") from error
    return folder
