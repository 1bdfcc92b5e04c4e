"""Short errors and an orderly end on SIGTERM, which the command lines share."""

import argparse
import signal
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors have two lines: the error, and how to list the options."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help lists the options\n")


def unwind_on_sigterm() -> None:
    """Make SIGTERM raise SystemExit, so that partial files are removed and servers are stopped."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
