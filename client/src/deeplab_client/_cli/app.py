"""The commands."""

# No `from __future__ import annotations`: typer reads the annotations when it runs.

import dataclasses
import functools
import json
import logging
import os
import sys
import time
import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

import deeplab_client
from deeplab_client import AccessDeniedError, SegmentationError, _page, voc
from deeplab_client._cli import batch, report, server
from deeplab_client._cli.outputs import ANNOTATIONS, Annotations, Format, Output, Pictures
from deeplab_client._cli.server import INTERRUPTED, SOME_FAILED, Client, ServerUnusableError
from deeplab_client._cli.sources import Selection, find, is_url
from deeplab_client._segmentation import UNTRAINED

_EXIT_CODES = (
    "Exit code: 0 all went well, 1 some pictures failed or nobody took the output, 2 the command line is wrong, "
    "3 the server cannot be reached or does not answer, 4 it refuses access or has no such model, 130 interrupted."
)
_EPILOG = (
    f"{_EXIT_CODES}\n\n"
    "Environment: DEEPLAB_URL, DEEPLAB_MODEL and DEEPLAB_TIMEOUT stand in for options; what has none: "
    "DEEPLAB_CA_FILE, DEEPLAB_CERTIFICATE_FILE and DEEPLAB_KEY_FILE (PEM files for grpcs:// and https://), "
    "DEEPLAB_TOKEN (bearer token), DEEPLAB_RETRIES (2), DEEPLAB_COMPRESSION (gzip or deflate), "
    "DEEPLAB_MASK_FORMAT (auto, raw or png)."
)

_ALPHA = 0.5
_NOT_SAID = "the server does not say that it is, or restricts the question, but it answers requests"

# Not in a docstring: typer keeps its line breaks after the first paragraph.
_SEGMENT_HELP = (
    "Segment pictures.\n\n"
    "A terminal gets a table, a pipe a line for each picture; files are written with --output only.\n\n"
    "The output of X.jpg is X.jpg.overlay.png, in the folders that X.jpg has below the folder that was named. If that "
    "belongs to another picture, the name gets one more folder of the picture's path: Y/X.jpg.overlay.png.\n\n"
    "A picture is skipped if it is done: if its output was made from a file of the same path, size and modification "
    "time, with the same model, weights and options. So an interrupted run continues when it is started again; coco "
    "always starts from the beginning.\n\n"
    "Where the model's weights are untrained, overlay and mask carry a banner, which adds to their height."
)


Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="DEEPLAB_URL", metavar="URL", help="The server: grpc://host:8001, http://host:8000, host:8001."
    ),
]
Model = Annotated[str, typer.Option("--model", envvar="DEEPLAB_MODEL", metavar="NAME", help="The ensemble to ask.")]
Timeout = Annotated[
    float, typer.Option("--timeout", envvar="DEEPLAB_TIMEOUT", metavar="SECONDS", help="For each request.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if os.isatty(2) else None,  # no boxes in a log
)


def _tell_version(wanted: bool) -> None:  # noqa: FBT001 typer's callback
    if wanted:
        report.say(f"deeplab-client {deeplab_client.__version__}")
        raise typer.Exit


@app.callback(epilog=_EPILOG)
def deeplab(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Segment pictures with a Triton server that serves DeepLabV3."""
    del version
    # What the client logs is said by the commands, in their own way.
    logging.getLogger("deeplab_client").addHandler(logging.NullHandler())


@app.command(help=_SEGMENT_HELP, epilog=_EPILOG)
def segment(
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGE", help="Files, folders, and patterns such as 'photos/**/*.jpg'.")
    ],
    *,
    url: Url,
    model: Model = "segment_resnet50",
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Where files go. Without it none is written."),
    ] = None,
    kind: Annotated[
        Format | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="overlay, the default: colours over the picture (X.jpg.overlay.png); mask: colours alone, RGB "
            "(X.jpg.mask.png); png: class ids as pixel values (X.jpg.classes.png); coco: one annotations.json for all, "
            "with file names relative to the folder that was named, or to the one that holds all that was named.",
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", metavar="SHARE", min=0, max=1, help="Opacity of an overlay; 0.5 without it."),
    ] = None,
    legend: Annotated[
        bool, typer.Option("--legend", help="Put a panel of names and shares beside an overlay.")
    ] = False,
    recursive: Annotated[
        bool, typer.Option("--recursive", "-r", help="Look into folders of folders, except hidden and linked ones.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Do pictures again that are done, and overwrite annotations.json.")
    ] = False,
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="COUNT", min=1, max=256, help="Requests in flight.")
    ] = 4,
    timeout: Timeout = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a picture, each on a line.")] = False,
) -> None:
    """Segment pictures."""
    client = server.connect(url, model=model, timeout=timeout)
    try:
        selection = find(images, recursive=recursive)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="IMAGE") from error
    target = _target(output, kind, selection, client, model=model, force=force, alpha=alpha, legend=legend)
    sources = selection.sources
    tally, started, code = report.Tally(len(sources)), time.monotonic(), 0
    reporter = report.reporter_of(len(sources), output, as_json=as_json)
    written: Path | None = None
    remarks, problems = list[str](), list[str]()
    with client, reporter.bar:
        try:
            outcomes = batch.run(client, sources, target, concurrency=concurrency)
            told = report.tell_all(outcomes, tally, reporter, model=model)
            code = SOME_FAILED if tally.failed or selection.unreadable or not told else 0
        except ServerUnusableError as error:
            problems, code = [str(error)], error.code
        except KeyboardInterrupt:
            problems, code = ["interrupted"], INTERRUPTED
        except BrokenPipeError:  # `| head -1`: what is done by now is kept, as after an interrupt
            problems, code = ["ended, because nobody reads the standard output any more"], SOME_FAILED
        try:
            if target is not None:
                written, remarks = target.finish()
        except OSError as error:
            problems, code = [str(error)], SOME_FAILED
    reporter.finish(tally.summary(time.monotonic() - started, written if tally.done else None))
    for notice in [*(remarks if tally.done else []), *selection.notices(), *problems]:
        report.notice(notice)
    raise typer.Exit(code)


@app.command(epilog=_EPILOG)
def models(*, url: Url, timeout: Timeout = 30.0, as_json: Json = False) -> None:
    """List the server's models that segment pictures.

    A pipe gets name, version, weights, precision, number of classes and largest picture (pixels), separated by tabs.
    """
    with server.connect(url, model="segment_resnet50", timeout=timeout) as client:
        try:
            found = client.models()
        except SegmentationError as error:
            raise _end_after(error) from error
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        report.say(json.dumps([dataclasses.asdict(model) for model in found]))
        return
    table = Table("model", "version", "weights", "precision", "classes", "largest picture, pixels")
    for model in found:
        classes = None if model.class_names is None else len(model.class_names)
        told = (model.name, model.version, model.weights, model.precision, classes, model.max_pixels)
        cells = ["?" if cell is None else report.one_line(str(cell)) for cell in told]
        if sys.stdout.isatty():
            table.add_row(*map(Text, cells))
        else:
            report.say("\t".join(cells))
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
    if not found:
        report.notice(f"{url} has no model that segments pictures")


@app.command(epilog=_EPILOG)
def classes(*, url: Url, model: Model = "segment_resnet50", timeout: Timeout = 30.0, as_json: Json = False) -> None:
    """List the classes that a model tells apart.

    They come with the answer to a black picture.
    """
    with server.connect(url, model=model, timeout=timeout) as client:
        try:
            result = client.probe()
        except SegmentationError as error:
            raise _end_after(error) from error
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    named = list(enumerate(result.class_names))
    if as_json:
        colors = voc.PALETTE.tolist()
        report.say(json.dumps([{"id": i, "name": name, "color": colors[i]} for i, name in named]))
    elif sys.stdout.isatty():
        table = Table("id", "colour", "class")
        for i, name in named:
            red, green, blue = voc.PALETTE[i].tolist()
            swatch = Text("      ", style=f"on rgb({red},{green},{blue})" if i else "")
            table.add_row(str(i), swatch, Text(report.one_line(name)))
        Console(highlight=False).print(table)
    else:
        for i, name in named:
            report.say(f"{i}\t{report.one_line(name)}")
    if result.untrained:
        report.warn_plainly(result.model_name)


@app.command(epilog=_EPILOG)
def ping(*, url: Url, model: Model = "segment_resnet50", timeout: Timeout = 5.0, as_json: Json = False) -> None:
    """Say whether the server takes requests for the model."""
    started, milliseconds, ready, reason, weights, end = time.monotonic(), 0.0, None, None, None, None
    with server.connect(url, model=model, timeout=timeout) as client:
        try:
            try:
                ready = client.is_ready()
            except AccessDeniedError:  # perhaps to this question only
                ready = False
            milliseconds = (time.monotonic() - started) * 1000
            weights = client.weights() if ready else None
            if weights is None:
                # Says why, or that requests are answered all the same, or that the model is none of ours.
                weights = client.probe().weights
            if not ready:
                ready, reason = None, _NOT_SAID
        except SegmentationError as error:
            ready, reason, end = False, str(error), _end_after(error)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        state = {"ready": ready, "reason": reason, "weights": weights, "milliseconds": round(milliseconds, 1)}
        report.say(json.dumps({"url": url, "model": model, **state}))
    elif end is None:
        known = "ready" if ready else f"ready: unknown ({reason})"
        untrained = ", untrained weights" if weights == UNTRAINED else ""
        report.say(f"{known}: {url} serves {model}{untrained} ({milliseconds:.0f} ms)")
    if end is not None:
        raise end


@app.command(epilog=_EPILOG)
def page(
    *,
    url: Url,
    model: Model = "segment_resnet50",
    timeout: Timeout = 30.0,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="0 for a free one from 7860 on.")
    ] = 7860,
    examples: Annotated[
        list[Path] | None,
        typer.Option("--example", metavar="IMAGE", exists=True, dir_okay=False, help="A picture to choose; several."),
    ] = None,
    opens: Annotated[bool, typer.Option("--open", help="Open the page in this machine's browser.")] = False,
) -> None:
    """Serve a page to drop a picture on, until Ctrl-C.

    Each browser tab keeps its last result, for an hour at most. The page loads nothing from other hosts.
    """

    def ready(address: str) -> None:
        report.say(f"the page is at {address} and asks {url}; Ctrl-C ends it")
        if opens:
            webbrowser.open(address)

    with server.connect(url, model=model, timeout=timeout) as client:
        try:
            _page.run(
                client,
                model=model,
                examples=examples or [],
                host=host,
                port=port,
                ready=ready,
            )
        except ModuleNotFoundError as error:
            report.notice(str(error))
            raise typer.Exit(2) from error
        except OSError as error:
            message = f"cannot listen at {host}:{port}; --port 0 takes a free port"
            raise typer.BadParameter(message, param_hint="--host or --port") from error
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return its exit code."""
    try:
        app(args=list(arguments), prog_name="deeplab")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except OSError as error:  # every other one is an outcome: this is of the standard output
        report.let_go(sys.stdout)
        report.notice(str(error))
        return SOME_FAILED
    return 0


def _end_after(error: SegmentationError) -> typer.Exit:
    """Tell an error; return the end of a command that met it."""
    report.notice(str(error))
    return typer.Exit(server.exit_code(error) or SOME_FAILED)


def _target(
    output: str | None,
    kind: Format | None,
    selection: Selection,
    client: Client,
    *,
    model: str,
    force: bool,
    alpha: float | None,
    legend: bool,
) -> Output | None:
    given = {"--format": kind is not None, "--alpha": alpha is not None, "--legend": legend}
    for option in (option for option, is_given in given.items() if is_given):
        if output is None:
            raise typer.BadParameter("say with --output DIR where the files go", param_hint=option)
        if option != "--format" and kind is not None and kind is not Format.OVERLAY:
            raise typer.BadParameter(f"it is for overlays, not for --format {kind.value}", param_hint=option)
    if output is None:
        return None
    folder = _folder(output)
    if kind is not Format.COCO:
        return Pictures(
            folder,
            kind=kind or Format.OVERLAY,
            force=force,
            alpha=_ALPHA if alpha is None else alpha,
            legend=legend,
            model=model,
            weights=functools.cache(client.known_weights),
        )
    path = folder / ANNOTATIONS
    if os.path.lexists(path) and not force:
        raise typer.BadParameter(f"{report.clean(path)} exists: --force overwrites it", param_hint="--output")
    return Annotations(folder, selection.root)


def _folder(output: str) -> Path:
    """Return the output folder, which exists then."""
    if is_url(output):
        raise typer.BadParameter(f"{output} is a URL, and only folders are written to", param_hint="--output")
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        message = f"{report.clean(folder)} is a file, or lies below one; a folder is wanted"
        raise typer.BadParameter(message, param_hint="--output") from error
    except OSError as error:
        message = f"cannot make the folder {report.clean(folder)}: {error.strerror}"
        raise typer.BadParameter(message, param_hint="--output") from error
    return folder
