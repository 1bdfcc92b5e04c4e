"""The console that commands print tables to."""

from __future__ import annotations

import sys

from rich.console import Console

_COLUMNS = 120


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr; a pipe or a file has no width of its own, and gets 120 columns."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _COLUMNS)
