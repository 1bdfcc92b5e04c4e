"""What the load tests add to Locust's command line, its LOCUST_ variables and, for the most part, its page."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from load_tests.pictures import KINDS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

LOOPS = ("closed", "open")
ARRIVALS = ("poisson", "constant")
SHAPES = ("none", "step", "spike")
MASK_FORMATS = ("auto", "raw", "png")
OBJECTIVES = Path(__file__).with_name("objectives.toml")


class Parser(Protocol):
    """Locust's argument parser, as far as it is used here."""

    def add_argument(self, *flags: str, **settings: Any) -> object:  # noqa: ANN401 argparse's own
        """Add an argument."""
        ...


@dataclass(frozen=True, slots=True)
class Options:
    """The arguments of one run, checked.

    Attributes:
        loop: Whether a user waits for its reply before it asks again, or sends on a timetable.
        arrivals: How an open loop spaces its requests.
        rate: Requests per second of one user of an open loop.
        think_time: Mean seconds that a user of a closed loop pauses after a reply.
        second_host: URL of the second server, or of the first over the other protocol; empty for none.
        second_share: Share of the users that ask it.
        variants: Weights of the models, by variant.
        timeout: Seconds that one request may take.
        retries: How often the client tries again.
        mask_format: How masks travel.
        tolerance: Share of a mask's pixels that may differ from the first reply's.
        max_unfinished: Requests of an open loop that one process may have under way.
        seed: Of everything that is drawn.
        shape: How the number of users changes.
        stages: Steps of the step shape.
        stage_time: Seconds of each stage.
        spike_factor: By how much the spike multiplies the users.
    """

    loop: Literal["closed", "open"]
    arrivals: Literal["poisson", "constant"]
    rate: float
    think_time: float
    second_host: str
    second_share: float
    variants: dict[str, float]
    timeout: float
    retries: int
    mask_format: Literal["auto", "raw", "png"]
    tolerance: float
    max_unfinished: int
    seed: int
    shape: Literal["none", "step", "spike"]
    stages: int
    stage_time: float
    spike_factor: float


def weights(text: str, *, names: Sequence[str] = ()) -> dict[str, float]:
    """Read `name=weight,name=weight`.

    Args:
        text: What was given.
        names: Those that are known; empty where any is good.

    Raises:
        ValueError: The form is another, a name unknown, or no weight is more than 0.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.strip().partition("=")
        if names and name not in names:
            raise ValueError(f"{name!r} is unknown: use {', '.join(names)}")
        try:
            found[name] = float(number) if equals else 1.0
        except ValueError:
            raise ValueError(f"{part!r} is no name=weight") from None
        if not name or not 0 <= found[name] < float("inf"):
            raise ValueError(f"{part!r} is no name=weight with a weight from 0 on")
    if not any(found.values()):
        raise ValueError(f"{text!r} gives nothing a weight")
    return {name: weight for name, weight in found.items() if weight}


def _weights_of(*names: str) -> Callable[[str], str]:
    def checked(text: str) -> str:
        try:
            weights(text, names=names)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text  # Locust keeps options as text between its page, the master and the workers

    return checked


def _number(low: float, high: float = float("inf"), *, kind: type[int | float] = float) -> Callable[[str], float]:
    def checked(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no number") from None
        if not low <= value <= high or value == float("inf"):
            upper = "" if high == float("inf") else f" to {high:g}"
            raise argparse.ArgumentTypeError(f"{text!r} must be from {low:g}{upper}")
        return value

    return checked


def add_arguments(parser: Parser) -> None:
    """Add the load tests' own arguments to Locust's."""

    def add(name: str, text: str, *, page: bool = True, **settings: Any) -> None:  # noqa: ANN401 argparse's own
        variable = f"LOCUST_{name.upper().replace('-', '_')}"
        parser.add_argument(f"--{name}", env_var=variable, include_in_web_ui=page, help=text, **settings)

    tiny = 1e-6
    add("loop", "closed: a user waits for its reply; open: requests leave on a timetable, replies or not",
        choices=LOOPS, default="closed")  # fmt: skip
    add("arrivals", "how an open loop spaces its requests", choices=ARRIVALS, default="poisson")
    add(
        "rate",
        "requests per second of each user of an open loop",
        type=_number(tiny),
        default=1.0,
        metavar="PER_SECOND",
    )
    add("think-time", "mean pause of a user in a closed loop; each is half to one and a half of it",
        type=_number(0), default=0.0, metavar="SECONDS")  # fmt: skip
    add("second-host", "a second URL, such as the same server over HTTP", default="", metavar="URL")
    add("second-share", "share of the users that ask the second URL", type=_number(0, 1), default=0.5, metavar="SHARE")
    add("variants", "models by weight", type=_weights_of(), default="resnet50=3,resnet101=1", metavar="NAME=WEIGHT,...")
    add("kinds", f"pictures by weight: {', '.join(KINDS)}", page=False,
        type=_weights_of(*KINDS), default="thumbnail=2,web=5,photo=2,large=1", metavar="NAME=WEIGHT,...")  # fmt: skip
    add("pictures", "a folder of your own pictures in place of those made here", page=False, default="", metavar="DIR")
    add("seed", "of the pictures, their order, pauses and arrivals", type=_number(0, kind=int), default=0, metavar="N")
    add("timeout", "seconds that a request may take", type=_number(tiny), default=30.0, metavar="SECONDS")
    add("retries", "how often the client tries again what was refused; 0 shows every refusal",
        type=_number(0, kind=int), default=0, metavar="N")  # fmt: skip
    add("mask-format", "how masks travel", choices=MASK_FORMATS, default="auto")
    add("tolerance", "share of a mask's pixels that may differ from the first reply for that picture",
        type=_number(0, 1), default=0.0, metavar="SHARE")  # fmt: skip
    add("max-unfinished", "requests that a process of an open loop may have under way; more are not sent, and failures",
        type=_number(1, kind=int), default=512, metavar="N")  # fmt: skip
    add("shape", "step: --users more in each stage; spike: --users, a stage of more, --users", choices=SHAPES,
        default="none")  # fmt: skip
    add("stages", "of the step shape", type=_number(1, kind=int), default=6, metavar="N")
    add("stage-time", "seconds of each stage", type=_number(1), default=30.0, metavar="SECONDS")
    add("spike-factor", "times --users in the spike", type=_number(1), default=5.0, metavar="FACTOR")
    add("objectives", "TOML file that decides the exit code", page=False, default=str(OBJECTIVES), metavar="FILE")
    add("summary", "write what was measured to this JSON file, for load_tests.capacity", page=False, default="",
        metavar="FILE")  # fmt: skip
    add("wait-ready", "seconds to wait for the server before a headless run", page=False, type=_number(tiny),
        default=60.0, metavar="SECONDS")  # fmt: skip


class _Settings:
    """Takes note of what the arguments admit."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def add_argument(self, *flags: str, **settings: Any) -> None:  # noqa: ANN401 argparse's own
        self.found[flags[0].removeprefix("--").replace("-", "_")] = settings


def options_from(given: Mapping[str, object]) -> Options:
    """Return the options that Locust has parsed, or those of its page, which parses nothing.

    Args:
        given: Values or their texts by name, among others.

    Raises:
        ValueError: One is nothing that the command line would have taken.
    """
    settings = _Settings()
    add_arguments(settings)
    values: dict[str, Any] = {}
    for name in Options.__slots__:
        choices, checked = settings.found[name].get("choices"), settings.found[name].get("type", str)
        try:
            values[name] = checked(str(given[name]))
        except argparse.ArgumentTypeError as error:
            raise ValueError(f"--{name.replace('_', '-')}: {error}") from error
        if choices is not None and values[name] not in choices:
            raise ValueError(f"--{name.replace('_', '-')}: {given[name]!r} is none of {', '.join(choices)}")
    values["variants"] = weights(values["variants"])
    return Options(**values)
