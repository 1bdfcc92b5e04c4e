"""The commands that query a server without sending a picture."""

# No `from __future__ import annotations`: typer reads the annotations when it runs.

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Generator

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deeplab_client import AccessDeniedError, SegmentationClient, SegmentationError
from deeplab_client._cli import server, streams
from deeplab_client._cli.options import MODEL, Json, Model, Timeout, Url
from deeplab_client._cli.server import INTERRUPTED, REFUSED, SOME_FAILED, UNREACHABLE, UnusableError
from deeplab_client._drawing import palette_of
from deeplab_client._segmentation import UNTRAINED


def models(*, url: Url, timeout: Timeout = 30.0, as_json: Json = False) -> None:
    """List the segmentation models of the server.

    In a pipe, each line has name, version, weights, precision, number of classes and the most pixels that a picture
    may have, separated by tabs.
    """
    with server.connect(url, model=MODEL, timeout=timeout) as client, _reported():
        found = client.models()
    if as_json:
        streams.say(json.dumps([dataclasses.asdict(model) for model in found]))
        return
    table = Table("model", "version", "weights", "precision", "classes", "max pixels")
    for model in found:
        classes = None if model.class_names is None else len(model.class_names)
        values = (model.name, model.version, model.weights, model.precision, classes, model.max_pixels)
        cells = ["?" if cell is None else streams.one_line(str(cell)) for cell in values]
        if sys.stdout.isatty():
            table.add_row(*map(Text, cells))
        else:
            streams.say("\t".join(cells))
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
    if not found:
        streams.notice(f"{url} serves no segmentation model")


def classes(*, url: Url, model: Model = MODEL, timeout: Timeout = 30.0, as_json: Json = False) -> None:
    """List the classes of a model with their colors.

    In a pipe, each line has id and name, separated by a tab.
    """
    with server.connect(url, model=model, timeout=timeout) as client, _reported():
        info = server.find_model(client, url, model)
        if info is None or info.class_names is None:
            reason = (
                "denies access to its list of models" if info is None else f"does not report the classes of {model}"
            )
            # The class names come with every result.
            remedy = "segment a picture with --format coco, and read the categories in annotations.json"
            raise UnusableError(f"{url} {reason}: {remedy}", REFUSED)
    names = [streams.one_line(name) for name in info.class_names]
    colors = palette_of(background=info.background)[: len(names)].tolist()
    if as_json:
        named = enumerate(zip(info.class_names, colors, strict=True))
        streams.say(json.dumps([{"id": i, "name": name, "color": color} for i, (name, color) in named]))
    elif sys.stdout.isatty():
        table = Table("id", "color", "class")
        for i, (name, (red, green, blue)) in enumerate(zip(names, colors, strict=True)):
            swatch = Text("      ", style=f"on rgb({red},{green},{blue})" if red or green or blue else "")
            table.add_row(str(i), swatch, Text(name))
        Console(highlight=False).print(table)
    else:
        for i, name in enumerate(names):
            streams.say(f"{i}\t{name}")
    if info.weights == UNTRAINED:
        streams.warn_untrained(model)


def ping(*, url: Url, model: Model = MODEL, timeout: Timeout = 5.0, as_json: Json = False) -> None:
    """Check that the server is ready for requests to the model."""
    started, milliseconds, ready, reason, weights, code = time.monotonic(), 0.0, None, None, None, 0
    with server.connect(url, model=model, timeout=timeout) as client:
        try:
            with contextlib.suppress(AccessDeniedError):  # possibly only to this request
                ready = client.is_ready()
            milliseconds = (time.monotonic() - started) * 1000
            reason, weights = _served(client, url, model, ready=ready)
        except (SegmentationError, UnusableError) as error:
            ready, reason, code = False, str(error), _code(error)
            streams.notice(reason)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    if as_json:
        state = {"ready": ready, "reason": reason, "weights": weights, "milliseconds": round(milliseconds, 1)}
        streams.say(json.dumps({"url": url, "model": model, **state}))
    elif not code:
        known = "ready" if ready else f"readiness unknown ({reason})"
        untrained = ", untrained weights" if weights == UNTRAINED else ""
        streams.say(f"{known}: {url} serves {model}{untrained} ({milliseconds:.0f} ms)")
    raise typer.Exit(code)


def _served(client: SegmentationClient, url: str, model: str, *, ready: bool | None) -> tuple[str | None, str | None]:
    """Return why the readiness is unknown, and the weights of the model; each may be None.

    Raises:
        SegmentationError: No server answers.
        UnusableError: The model is missing or not ready, or the server denies access to both requests.
    """
    info = server.find_model(client, url, model)  # raises the reason if no server answers
    if ready is False:
        raise UnusableError(f"{url} or its model {model!r} is not ready: wait, or read the server's log", UNREACHABLE)
    if ready is None and info is None:
        raise UnusableError(
            f"{url} answers, but denies access to its readiness and its list of models: segment a picture to check "
            "whether inference is allowed",
            REFUSED,
        )
    reason = "the server has the model, but denies access to its readiness" if ready is None else None
    return reason, None if info is None else info.weights


@contextlib.contextmanager
def _reported() -> Generator[None]:
    """Report an error, and end the command with its exit code."""
    try:
        yield
    except (SegmentationError, UnusableError) as error:
        streams.notice(str(error))
        raise typer.Exit(_code(error)) from error
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _code(error: SegmentationError | UnusableError) -> int:
    return error.code if isinstance(error, UnusableError) else server.exit_code(error) or SOME_FAILED
