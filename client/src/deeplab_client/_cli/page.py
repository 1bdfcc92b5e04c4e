"""The command that serves the page to drop a picture on."""

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
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets other machines in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=0, max=65535, help="0 for a free one from 7860 on.")
    ] = 7860,
    examples: Annotated[
        list[Path] | None,
        typer.Option("--example", metavar="IMAGE", exists=True, dir_okay=False, help="A picture to choose; several."),
    ] = None,
    opens: Annotated[bool, typer.Option("--open", metavar="", help="Open the page in this machine's browser.")] = False,
) -> None:
    """Serve a page to drop a picture on, until Ctrl-C.

    Each browser tab keeps its last result, for an hour at most. The page loads nothing from other hosts.
    """

    def ready(address: str) -> None:
        streams.say(f"the page is at {address} and asks {url}; Ctrl-C ends it")
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
            message = f"cannot listen at {host}:{port}; --port 0 takes a free port"
            raise typer.BadParameter(message, param_hint="--host or --port") from error
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
