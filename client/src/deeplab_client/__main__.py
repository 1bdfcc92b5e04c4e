"""`deeplab`, also as `python -m deeplab_client`."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import NoReturn, TextIO

_INTERRUPTED = 130  # the exit code of shells


def main() -> None:
    """Run the command line and end the process with its exit code."""
    sys.stdout, sys.stderr = _usable(sys.stdout), _usable(sys.stderr)
    # gRPC logs each failed handshake to stderr before it reports it. The variable is read when gRPC is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from deeplab_client._cli import app  # noqa: PLC0415 - an extra
    except KeyboardInterrupt:
        _die_of_interrupt()
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        if library not in {"rich", "typer"}:
            raise
        from deeplab_client._errors import missing_extra  # noqa: PLC0415 - only needed without the extra

        sys.stderr.write(f"deeplab: {missing_extra('the command line', library, 'cli')}\n")
        sys.exit(2)
    code = app.run(sys.argv[1:])
    if code == app.INTERRUPTED:
        _die_of_interrupt()
    sys.exit(code)


def _die_of_interrupt() -> NoReturn:
    if os.name == "posix":
        # Dying of the signal also stops a shell's loop, and does not wait for threads.
        sys.stdout.flush()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    sys.exit(_INTERRUPTED)


def _usable(stream: TextIO | None) -> TextIO:
    """Return a stream that accepts every character, and that exists: Python has None for a closed one."""
    if stream is None:
        # Writing fails as before, and no picture gets the free descriptor, because libraries would write into it.
        return os.fdopen(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


if __name__ == "__main__":
    main()
