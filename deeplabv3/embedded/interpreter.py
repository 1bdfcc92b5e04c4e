"""Check a Python interpreter for the environment: the Makefile runs `PYTHON deeplabv3/embedded/interpreter.py`.

Prints one line, "usable" or the problem, on any Python from 3.7 on.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from deeplabv3.environment import version_fault


def fault() -> str:
    """Return why the running Python cannot create the environment or serve in it, or an empty string."""
    if version_fault():
        return version_fault()
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
            return f"it has no module {module}; on Debian and Ubuntu, run apt-get install {package}"
    from deeplabv3.embedded.checks import libpython_folder  # noqa: PLC0415 - needs Python 3.10
    from deeplabv3.embedded.errors import StartError  # noqa: PLC0415 - likewise

    try:
        libpython_folder()
    except StartError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    sys.stdout.write(f"{fault() or 'usable'}\n")
