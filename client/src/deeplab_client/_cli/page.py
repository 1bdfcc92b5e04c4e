"""The command that serves the web page."""

# No `from __future__ import annotations`: typer reads the annotations when it runs.

import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from deeplab_client import _page
from deeplab_client._cli import server, streams
from deeplab_client._cli.options import MODEL, Model, Timeout, Url
from deeplab_client._cli.server import INTERRUPTED, WRONG


def page(
    *,
    url: Url,
    model: Model = MODEL,
    timeout: Timeout = 30.0,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 accepts other machines.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            "--port", metavar="PORT", min=0, max=65535, help="Port to listen on; 0 picks a free one from 7860."
        ),
    ] = 7860,
    examples: Annotated[
        list[Path] | None,
        typer.Option(
            "--example", metavar="IMAGE", exists=True, dir_okay=False, help="A picture to offer; may be repeated."
        ),
    ] = None,
    opens: Annotated[bool, typer.Option("--open", metavar="", help="Open the page in this machine's browser.")] = False,
) -> None:
    """Serve a web page that segments pictures, until Ctrl-C.

    The last result of each browser tab is kept for at most an hour. The page loads nothing from other hosts.
    """

    def ready(address: str) -> None:
        streams.say(f"serving the page at {address} with the models of {url}; press Ctrl-C to stop")
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
            streams.notice(str(error))
            raise typer.Exit(WRONG) from error
        except OSError as error:
            message = f"cannot listen on {host}:{port}: use --port 0 for a free port"
            raise typer.BadParameter(message, param_hint="--host or --port") from error
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
