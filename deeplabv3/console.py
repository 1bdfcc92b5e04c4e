"""The console that commands print tables to."""

from __future__ import annotations

import sys

from rich.console import Console


def console(*, stderr: bool = False, columns: int = 120) -> Console:
    """Return a console on stdout or stderr; a pipe or a file, which has no width, gets the given columns."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else columns)
