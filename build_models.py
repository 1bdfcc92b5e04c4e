"""Build the Triton model repository: trace DeepLabV3 to TorchScript, check it against PyTorch, move it into place.

    python build_models.py                      both variants, weights COCO_WITH_VOC_LABELS_V1
    python build_models.py --weights checkpoint.pth --classes names.txt --model-repository mine
    python build_models.py --weights none --model-repository out/untrained
    python build_models.py --describe           the published figures of the models beside those found here

model_repository/ is source code and takes only the default build; other options need another folder. A build that fails
or is interrupted leaves the existing models unchanged.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out
    from deeplabv3.environment import guard

    guard()

import logging
import signal
from typing import TYPE_CHECKING

from deeplabv3 import PRETRAINED, UNTRAINED, VARIANTS, DeepLabV3Error, RetryableBuildError, WeightsUnavailableError
from deeplabv3.building.assembly import build, is_source
from deeplabv3.building.options import add_options, contradiction
from deeplabv3.building.plan import make_plans
from deeplabv3.building.published import describe
from deeplabv3.building.steps import STEP_DEVICES
from deeplabv3.command_line import Parser, unwind_on_sigterm
from deeplabv3.errors import PASSING_ERRORS
from deeplabv3.models import figures

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

EXIT_FAILED = 1
EXIT_WEIGHTS_UNAVAILABLE = 3
EXIT_TRY_AGAIN = 4

_EXIT_CODES = (
    "exit codes: 0 success; 1 failed, and would fail again; 2 wrong options; 3 the weights could not be downloaded; "
    "4 a retry may succeed: another build is writing to the repository, or the storage fails or is full; 128 + n ended "
    "by signal n"
)

_log = logging.getLogger("build_models")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options of the command line; exit with code 2 if they contradict each other."""
    description = "Build the Triton model repository of DeepLabV3."
    parser = Parser(description=description, epilog=_EXIT_CODES, allow_abbrev=False)
    add_options(parser)
    options = parser.parse_args(arguments)
    if fault := contradiction(options, parser):
        parser.error(fault)
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code, one of _EXIT_CODES."""
    options = parse_arguments(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    unwind_on_sigterm()
    try:
        if options.describe:
            _print_figures(describe(options.variant or VARIANTS), as_json=options.json)
        else:
            build(
                options.model_repository,
                make_plans(options),
                force=options.force,
                progress=options.progress,
                configs_only=options.configs_only,
                step_devices={
                    step: getattr(options, f"{step}_device") or device for step, device in STEP_DEVICES.items()
                },
                calibration=options.calibration,
                settings=dict(options.set),
            )
    except WeightsUnavailableError as exc:
        _log.error("build_models.py: %s, or %s", exc, _without_download(options))
        return EXIT_WEIGHTS_UNAVAILABLE
    except (DeepLabV3Error, OSError) as exc:
        _log.error("build_models.py: %s", exc)
        return EXIT_TRY_AGAIN if _passes(exc) else EXIT_FAILED
    except KeyboardInterrupt:
        _log.error("build_models.py: interrupted; the existing models are unchanged")
        return 128 + signal.SIGINT
    return 0


def _without_download(options: argparse.Namespace) -> str:
    """Return how to build without the weights that could not be downloaded."""
    if options.weights != PRETRAINED:
        return "leave out --pretrained-backbone"
    folder = ", into another folder (--model-repository DIR)" if is_source(options.model_repository) else ""
    return (
        f"build with --weights FILE, your own checkpoint, or --weights {UNTRAINED}, an untrained model whose masks "
        f"mean nothing{folder}"
    )


def _passes(error: BaseException) -> bool:
    """Return whether the same build may succeed later."""
    cause = error.__cause__
    return (
        isinstance(error, RetryableBuildError)
        or (isinstance(error, OSError) and error.errno in PASSING_ERRORS)
        or (cause is not None and _passes(cause))
    )


def _print_figures(described: dict[str, list[figures.Figure]], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(figures.as_json(described) + "\n")
        return
    from deeplabv3.console import console  # noqa: PLC0415 - a build needs no tables

    for variant, found in described.items():
        console().print(figures.as_table(variant, found))


if __name__ == "__main__":
    sys.exit(main())
