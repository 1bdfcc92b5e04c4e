"""The Python versions of this project, and a one-line error instead of a traceback if a package is missing.

This module needs no package and runs on any Python from 3.7 on, so that it can report a wrong version.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"

OLDEST, NEWEST = (3, 10), (3, 12)
"""The versions for which nvidia-pytriton and numpy 1.26 have wheels, as in pyproject.toml."""

EXIT_MISSING = 2
EXIT_INTERRUPTED = 130


def guard() -> None:
    """Make a missing package, an old Python and an early Ctrl-C end the command with one line.

    A module that runs as `__main__` calls this before it imports anything that may be missing.
    """
    if sys.version_info < OLDEST:
        _end(f"{version_fault()}; {_remedy()}")
    sys.excepthook = _explain


def version_fault() -> str:
    """Return what is wrong with the version of the running Python, or an empty string."""
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return ""
    versions = f"Python 3.{OLDEST[1]} to 3.{NEWEST[1]}"
    return f"this is Python {sys.version_info[0]}.{sys.version_info[1]}, but {versions} is required"


def _explain(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if isinstance(error, KeyboardInterrupt):
        _end("interrupted", EXIT_INTERRUPTED)
    missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if not missing or (ROOT / missing).exists() or (ROOT / f"{missing}.py").exists():
        sys.__excepthook__(kind, error, trace)
        return
    _end(f"{missing} is not installed; {_remedy()}")


def _end(message: str, code: int = EXIT_MISSING) -> None:
    sys.stderr.write(f"{_module() or Path(sys.argv[0]).name}: {message}\n")
    raise SystemExit(code)


def _module() -> str:
    """Return the module that `python -m` runs, or an empty string."""
    spec = sys.modules["__main__"].__spec__
    return "" if spec is None else spec.name.replace(".__main__", "")


def _remedy() -> str:
    """Return what to do about a missing package or a Python that is not that of the environment."""
    command = f"{_shown(VENV / 'bin' / 'python')} " + (f"-m {_module()}" if _module() else shlex.quote(sys.argv[0]))
    make = "make" if Path.cwd() == ROOT else f"make -C {shlex.quote(str(ROOT))}"
    if not (VENV / "installed").exists():
        return f"run `{make} demo` once, then {command}"
    if Path(sys.prefix).resolve() != VENV.resolve():
        return f"run {command}"
    if "benchmarks" in command and not (VENV / "bench").exists():  # their packages are installed separately
        return f"run `{make} .venv/bench` once"
    return f"run `rm -r {_shown(VENV)}`, then `{make} demo`"


def _shown(path: Path) -> str:
    """Return a path quoted for a shell, relative if the working directory is the checkout."""
    return shlex.quote(os.path.relpath(path) if Path.cwd() == ROOT else str(path))
