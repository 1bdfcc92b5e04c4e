"""Serve a model repository with the Triton server of the nvidia-pytriton wheel: no Docker, no GPU needed.

    python serve.py [--model-repository DIR] [--host 127.0.0.1] [--http-port 8000] [--grpc-port 8001]
                    [--metrics-port 8002] [-- TRITON_OPTION ...]

Port 0 picks a free port. When every model is ready, one line goes to stdout; everything else goes to stderr:

    READY grpc://127.0.0.1:8001 http://127.0.0.1:8000 http://127.0.0.1:8002/metrics

Exit codes: the server's; 2 refused to start; 1 a Python stub died or the server was paused; 128 + n ended by signal n.

The variables of the server set the number of OpenMP threads (`OMP_NUM_THREADS`), how they wait, and how much memory
malloc keeps, unless the environment sets them; docs/performance.md has the figures. Limits that are too low are raised
(deeplabv3/embedded/limits.py).

SIGTERM, SIGINT and SIGHUP drain and stop; another signal stops immediately. A stub that dies, which Triton neither
restarts nor reports, stops the server too, after BROKEN_DRAIN_SECONDS for requests that other stubs still handle. A
server that was paused is killed (deeplabv3/embedded/watching.py).
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out
    from deeplabv3.environment import guard

    guard()

import os
import signal
import tempfile
from typing import TYPE_CHECKING

from deeplabv3.arguments import number
from deeplabv3.command_line import Parser
from deeplabv3.embedded.checks import check_environment, check_repository, check_temporary_folder, choose_address
from deeplabv3.embedded.errors import StartError
from deeplabv3.embedded.gpus import gpu_options
from deeplabv3.embedded.layout import backend_directory, environment
from deeplabv3.embedded.limits import check_shared_memory, raise_limits
from deeplabv3.embedded.processes import own_prefix, sweep
from deeplabv3.embedded.server import STOP_SIGNALS, Server, catch_signals, command_line, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

ROOT = Path(__file__).resolve().parent


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = Parser(description="Serve a model repository with the embedded Triton server.")
    parser.add_argument(
        "--model-repository",
        type=Path,
        default=ROOT / "model_repository",
        metavar="DIR",
        help="folder of the models (default: model_repository/)",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="IPv4 address or host name to listen on (default: %(default)s)"
    )
    for service, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        help_ = "0 picks a free port (default: %(default)s)"
        parser.add_argument(
            f"--{service}-port", type=number(0, 65535, kind=int), default=port, metavar="PORT", help=help_
        )
    parser.add_argument(
        "triton_options", nargs="*", metavar="-- TRITON_OPTION", help="options to pass on to tritonserver"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Check everything that can be checked, start the server and return the exit code."""
    while os.open(os.devnull, os.O_RDWR) <= 2:  # noqa: PLR2004 - closed standard streams must not become our pipes
        pass
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    options = parse(argv)
    try:
        server = check_environment()
        check_temporary_folder()
        repository = options.model_repository.resolve()
        configs = check_repository(repository)
        for_gpus = gpu_options(configs)
        address = choose_address(
            options.host, http=options.http_port, grpc=options.grpc_port, metrics=options.metrics_port
        )
    except StartError as error:
        say(f"error: {error}")
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    sweep()
    prefix = own_prefix()
    signals = catch_signals()
    try:
        try:
            work = Path(tempfile.mkdtemp(prefix=prefix))
            models = work / "models"
            models.symlink_to(repository)
            backends, variables = backend_directory(work, server), environment(server, work)
            for warning in (*raise_limits(), *check_shared_memory(configs)):
                say(f"warning: {warning}")
            command = [*command_line(server, models, backends, prefix, address), *for_gpus, *options.triton_options]
            running = Server(command, variables=variables, signals=signals, prefix=prefix, address=address)
        except (StartError, OSError) as error:
            say(f"error: {error}")
            return 2
        return running.run()
    finally:
        for number in STOP_SIGNALS:  # no signal may interrupt the cleanup or change the exit code
            signal.signal(number, signal.SIG_IGN)
        sweep(prefix)


if __name__ == "__main__":
    sys.exit(main())
