"""The application with all commands."""

# No `from __future__ import annotations`: typer reads the annotations when it runs.

import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import deeplab_client
from deeplab_client._cli import page, questions, segment, streams
from deeplab_client._cli.server import INTERRUPTED, SOME_FAILED

__all__ = ["INTERRUPTED", "run"]

_EPILOG = (
    "Exit codes: 0 success, 1 some pictures failed or the output could not be written, 2 the command line is wrong, "
    "3 the server is unreachable, not ready or did not answer in time, 4 the server denies access or has no such "
    "model, confidence or background, 130 interrupted.\n\n"
    "Environment: DEEPLAB_URL, DEEPLAB_MODEL and DEEPLAB_TIMEOUT replace --url, --model and --timeout. These settings "
    "have no option: "
    "DEEPLAB_CA_FILE, DEEPLAB_CERTIFICATE_FILE and DEEPLAB_KEY_FILE (PEM files for grpcs:// and https://), "
    "DEEPLAB_TOKEN (bearer token), DEEPLAB_RETRIES (default 2), DEEPLAB_COMPRESSION (gzip or deflate), "
    "DEEPLAB_MASK_FORMAT (auto, raw or png), DEEPLAB_PROXY (URL of an HTTP proxy, or env)."
)

_app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich" if os.isatty(2) else None,  # no boxes in a log
)
_app.command(help=segment.HELP, epilog=_EPILOG)(segment.segment)
_app.command(epilog=_EPILOG)(questions.models)
_app.command(epilog=_EPILOG)(questions.classes)
_app.command(epilog=_EPILOG)(questions.ping)
_app.command(epilog=_EPILOG)(page.page)


def _print_version(wanted: bool) -> None:  # noqa: FBT001 - typer's callback
    if wanted:
        streams.say(f"deeplab-client {deeplab_client.__version__}")
        raise typer.Exit


@_app.callback(epilog=_EPILOG)
def _deeplab(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Segment pictures with DeepLabV3 on a Triton server."""
    del version
    # The commands report what the client logs in their own way.
    logging.getLogger("deeplab_client").addHandler(logging.NullHandler())


def run(arguments: Sequence[str]) -> int:
    """Run the command line; return its exit code."""
    try:
        _app(args=list(arguments), prog_name="deeplab")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except OSError as error:  # of standard output; all others are outcomes of pictures
        streams.discard(sys.stdout)
        streams.notice(str(error))
        return SOME_FAILED
    return 0
