"""`deeplab`, also as `python -m deeplab_client`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Run the command line and end the process with its exit code."""
    try:
        from deeplab_client._cli import app  # noqa: PLC0415 of an extra
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in {"rich", "typer"}:
            raise
        sys.stderr.write(f"deeplab: the command line needs {library}: pip install 'deeplab-client[cli]'\n")
        sys.exit(2)
    code = app.run(sys.argv[1:])
    if code == app.INTERRUPTED and os.name == "posix":
        # To die of the signal stops a shell's loop as well, and waits for no thread that waits for an answer.
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(code)


if __name__ == "__main__":
    main()
