"""Options that several commands have."""

# No `from __future__ import annotations`: typer reads the annotations when it runs.

from typing import Annotated

import typer

MODEL = "segment_resnet50"

Url = Annotated[
    str,
    typer.Option(
        "--url", envvar="DEEPLAB_URL", metavar="URL", help="URL of the server: grpc://host:8001 or http://host:8000."
    ),
]
Model = Annotated[str, typer.Option("--model", envvar="DEEPLAB_MODEL", metavar="NAME", help="Name of the ensemble.")]
Timeout = Annotated[
    float, typer.Option("--timeout", envvar="DEEPLAB_TIMEOUT", metavar="SECONDS", help="Timeout of each request.")
]
Json = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")]
