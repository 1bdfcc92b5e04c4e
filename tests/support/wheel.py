"""The wheel's tritonserver instead of the container's: a `tritonserver` for PATH, and the options of its --help."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import tempfile
from pathlib import Path

from deeplabv3.embedded import checks, layout


def options() -> set[str]:
    """Return the names of the options of the wheel's tritonserver, without dashes."""
    server = checks.check_environment()
    command = [str(server / "bin" / "tritonserver"), "--help"]
    with tempfile.TemporaryDirectory() as folder:
        variables = layout.environment(server, Path(folder))
        shown = subprocess.run(command, env=variables, capture_output=True, text=True, check=False).stderr
    return set(re.findall(r"^\s+--([a-z0-9-]+)", shown, re.MULTILINE))


def launcher(folder: Path) -> Path:
    """Write a `tritonserver` that runs the wheel's on 127.0.0.1 with its backends; return the folder for PATH."""
    server = checks.check_environment()
    backends = layout.backend_directory(folder, server)
    variables = layout.environment(server, folder)
    command = [
        str(server / "bin" / "tritonserver"),
        f"--backend-directory={backends}",
        *(f"--{service}-address=127.0.0.1" for service in ("http", "grpc", "metrics")),
    ]
    script = folder / "bin" / "tritonserver"
    script.parent.mkdir()
    settings = "".join(f"export {name}={shlex.quote(variables[name])}\n" for name in ("LD_LIBRARY_PATH", "PATH"))
    script.write_text(f'#!/bin/bash\n{settings}exec {shlex.join(command)} "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    return script.parent


def on_path(folder: Path) -> dict[str, str]:
    """Return our environment with a folder in front of PATH, without the variables that the entry point reads."""
    ours = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("OMP_", "MALLOC_", "DEEPLAB_", "OTEL_"))
    }
    return ours | {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
