"""The options that the load tests add to Locust's command line, its LOCUST_ variables and most of them to its page."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

from deeplabv3.arguments import number
from load_tests.pictures import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

OBJECTIVES = Path(__file__).with_name("objectives.toml")


class Options(argparse.Namespace):
    """The valid arguments of one run; `add_arguments` describes each."""

    loop: str
    arrivals: str
    rate: float
    think_time: float
    second_host: str
    second_share: float
    variants: str
    timeout: float
    retries: int
    mask_format: Literal["auto", "raw", "png"]
    tolerance: float
    max_unfinished: int
    seed: int
    shape: str
    stages: int
    stage_time: float
    spike_factor: float


class _RaisingParser(argparse.ArgumentParser):
    """Raises a ValueError where argparse would end the process."""

    def add_argument(self, *flags: str, **settings: Any) -> argparse.Action:  # noqa: ANN401 - argparse's own
        return super().add_argument(
            *flags, **{name: value for name, value in settings.items() if name not in {"env_var", "include_in_web_ui"}}
        )

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def weights(text: str, *, names: Sequence[str] = ()) -> dict[str, float]:
    """Read `name=weight,name=weight`.

    Args:
        text: The value of an option.
        names: Known names; empty to allow any.

    Raises:
        ValueError: The text has another form, a name is unknown, or no weight is above 0.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, weight = part.strip().partition("=")
        if names and name not in names:
            raise ValueError(f"{name!r} is unknown; use {', '.join(names)}")
        try:
            found[name] = float(weight) if equals else 1.0
        except ValueError:
            raise ValueError(f"must be name=weight, got {part!r}") from None
        if not name or not 0 <= found[name] < float("inf"):
            raise ValueError(f"must be name=weight with a weight that is not negative, got {part!r}")
    if not any(found.values()):
        raise ValueError(f"at least one weight must be above 0, got {text!r}")
    return {name: weight for name, weight in found.items() if weight}


def _weighted(*names: str) -> Callable[[str], str]:
    def checked(text: str) -> str:
        try:
            weights(text, names=names)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text  # Locust passes options as text between its page, the master and the workers

    return checked


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the load tests to those of Locust."""

    def add(name: str, text: str, *, page: bool = True, **settings: Any) -> None:  # noqa: ANN401 - argparse's own
        variable = f"LOCUST_{name.upper().replace('-', '_')}"
        parser.add_argument(f"--{name}", env_var=variable, include_in_web_ui=page, help=text, **settings)

    positive, whole, share = number(1e-6), number(0, kind=int), number(0, 1)
    add("loop", "closed: a user waits for a reply before its next request; open: requests are sent on a schedule",
        choices=("closed", "open"), default="closed")  # fmt: skip
    add(
        "arrivals", "intervals between the requests of an open loop", choices=("poisson", "constant"), default="poisson"
    )
    add("rate", "requests per second of each user of an open loop", type=positive, default=1.0, metavar="PER_SECOND")
    add("think-time", "mean pause between the requests of a user of a closed loop; each is 0.5 to 1.5 times as long",
        type=number(0), default=0.0, metavar="SECONDS")  # fmt: skip
    add("second-host", "second URL, such as the same server over HTTP", default="", metavar="URL")
    add("second-share", "share of the users that use the second URL", type=share, default=0.5, metavar="SHARE")
    add("variants", "models and their weights", type=_weighted(), default="resnet50=3,resnet101=1",
        metavar="NAME=WEIGHT,...")  # fmt: skip
    add("kinds", f"kinds of pictures and their weights: {', '.join(KINDS)}", page=False,
        type=_weighted(*KINDS), default="thumbnail=2,web=5,photo=2,large=1", metavar="NAME=WEIGHT,...")  # fmt: skip
    add("pictures", "folder of your own pictures, instead of generated ones", page=False, default="", metavar="DIR")
    add("seed", "random seed of the pictures, their order, pauses and arrivals", type=whole, default=0, metavar="N")
    add("timeout", "seconds until a request fails", type=positive, default=30.0, metavar="SECONDS")
    add("retries", "how often the client retries a request; 0 reports every failure",
        type=whole, default=0, metavar="N")  # fmt: skip
    add("mask-format", "encoding of the masks in replies", choices=("auto", "raw", "png"), default="auto")
    add("tolerance", "share of a mask's pixels that may differ from the first reply for that picture",
        type=share, default=0.0, metavar="SHARE")  # fmt: skip
    add("max-unfinished", "open loop: most requests in flight per process; the rest are not sent and count as failures",
        type=number(1, kind=int), default=512, metavar="N")  # fmt: skip
    add("shape", "step: add --users in each stage; spike: multiply --users by --spike-factor in the second of 3 stages",
        choices=("none", "step", "spike"), default="none")  # fmt: skip
    add("stages", "number of stages of the step shape", type=number(1, kind=int), default=6, metavar="N")
    add("stage-time", "seconds of each stage", type=number(1), default=30.0, metavar="SECONDS")
    add("spike-factor", "factor for --users in the spike", type=number(1), default=5.0, metavar="FACTOR")
    add("objectives", "TOML file with the objectives that decide the exit code", page=False, default=str(OBJECTIVES),
        metavar="FILE")  # fmt: skip
    add("summary", "JSON file for the results, which load_tests.capacity reads", page=False, default="",
        metavar="FILE")  # fmt: skip
    add("wait-ready", "seconds to wait for the server before a headless run", page=False, type=positive,
        default=60.0, metavar="SECONDS")  # fmt: skip


def options_from(given: Mapping[str, object]) -> Options:
    """Return the options from Locust's arguments, or from its page, which does not check them.

    Args:
        given: Values or texts by name; other names are ignored.

    Raises:
        ValueError: A value is one that the command line would reject.
    """
    parser = _RaisingParser(add_help=False)
    add_arguments(parser)
    return parser.parse_args(
        [f"--{name.replace('_', '-')}={given[name]}" for name in Options.__annotations__], Options()
    )


if __name__ == "__main__":  # Locust's own --help does not show them
    described = _RaisingParser(
        prog="locust --locustfile load_tests/locustfile.py",
        add_help=False,
        usage="%(prog)s OPTIONS, and Locust's own",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add_arguments(described)
    described.print_help()
