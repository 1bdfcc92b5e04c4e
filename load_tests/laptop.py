"""Load the embedded server on this machine: a closed loop, then an open loop at a share of the closed loop's rate.

    python -m load_tests.laptop [--model-repository DIR]

Without a model repository, an untrained ResNet-50 is built into out/load. With both variants, ResNet-50 is used.
Reports are written to out/load: closed.html, open.html and their summaries as JSON. The exit code is 0 only if both
runs met the objectives of objectives-laptop.toml.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deeplabv3 import UNTRAINED, DeepLabV3Error, WeightsSource
from deeplabv3.arguments import number
from deeplabv3.building.assembly import build
from deeplabv3.building.plan import Plan
from deeplabv3.command_line import Parser, unwind_on_sigterm
from deeplabv3.embedded.launch import LaunchError, RunningServer
from deeplabv3.models.names import VARIANTS, ensemble_name
from load_tests import headless, summary

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parent / "out" / "load"
OBJECTIVES = HERE / "objectives-laptop.toml"

_SECONDS = 45
_USERS = 4
# In an open loop at the full capacity, the queue would grow without bound.
_SHARE_OF_CAPACITY = 0.6


def locust(name: str, server: RunningServer, variant: str, output: Path, *options: str, seconds: int) -> int:
    """Run Locust with half of its users on each protocol; return its exit code."""
    command = [
        *headless.command(users=_USERS, seconds=seconds, objectives=OBJECTIVES, reports=output / name),
        *("--host", f"grpc://{server.grpc_url}", "--second-host", f"http://{server.http_url}"),
        *("--variants", variant, "--timeout", "60", *options),
    ]
    print(f"{name} loop: {_USERS} users for {seconds} s", flush=True)  # noqa: T201 - output of a command
    process = subprocess.Popen(command)  # noqa: S603
    try:
        return process.wait()
    except BaseException:
        process.terminate()  # SIGTERM has not reached it; after Ctrl-C, which has, it ignores a second signal
        process.wait()  # while it writes its reports
        raise


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, serve, load twice; return an exit code."""
    parser = Parser(description="Load the embedded server on this machine.")
    parser.add_argument(
        "--model-repository", type=Path, metavar="DIR", help="models to serve (default: build an untrained ResNet-50)"
    )
    parser.add_argument(
        "--seconds",
        type=number(1, kind=int),
        default=_SECONDS,
        metavar="N",
        help="duration of each run (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="for reports (default: out/load)")
    options = parser.parse_args(arguments)
    output: Path = options.output.resolve()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    unwind_on_sigterm()
    repository = options.model_repository or output / "model_repository"
    try:
        output.mkdir(parents=True, exist_ok=True)
        if options.model_repository is None:
            build(repository, [Plan("resnet50", WeightsSource(UNTRAINED))])
        variant = next((each for each in VARIANTS if (repository / ensemble_name(each)).is_dir()), VARIANTS[0])
        with RunningServer(repository, log=output / "serve.log") as server:
            (output / "closed.json").unlink(missing_ok=True)  # of an earlier run
            closed = locust("closed", server, variant, output, seconds=options.seconds)
            if not (output / "closed.json").is_file():
                return closed
            capacity = summary.load(output / "closed.json").answered_per_second
            rate = max(_SHARE_OF_CAPACITY * capacity / _USERS, 0.01)
            pace = ("--loop", "open", "--rate", f"{rate:.4f}")
            opened = locust("open", server, variant, output, *pace, seconds=options.seconds)
    except (DeepLabV3Error, LaunchError, OSError) as error:
        print(f"load_tests.laptop: {error}", file=sys.stderr)  # noqa: T201 - output of a command
        return 1
    print(f"reports: {output / 'closed.html'} and {output / 'open.html'}")  # noqa: T201 - output of a command
    return closed or opened


if __name__ == "__main__":
    sys.exit(main())
