"""What the command lines share: short errors, an end in order on SIGTERM, and tables."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from rich.console import Console

_COLUMNS = 120


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are two lines: what is wrong, and where the options are explained."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help lists the options\n")


def unwind_on_sigterm() -> None:
    """Let SIGTERM raise SystemExit, so that partial files are removed and servers stopped."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def console(*, stderr: bool = False) -> Console:
    """Return a console for tables; a pipe or a file has no width of its own, and gets 120 columns."""
    from rich.console import Console  # noqa: PLC0415 - not every command prints tables

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _COLUMNS)
