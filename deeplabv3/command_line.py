"""What the command lines share: short errors, and an end in order on SIGTERM."""

import argparse
import signal
import sys
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are two lines: what is wrong, and where the options are explained."""

    def error(self, message: str) -> NoReturn:
        """Exit with code 2."""
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help lists the options\n")


def unwind_on_sigterm() -> None:
    """Let SIGTERM raise SystemExit, so that partial files are removed and servers stopped."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
