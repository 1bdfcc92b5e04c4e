"""One visit to one server: start it, load it in several ways, stop it."""

from __future__ import annotations

import http.client
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.peers import load, replies
from benchmarks.peers.contenders import Place, free_ports
from benchmarks.peers.load import Load
from benchmarks.peers.running import Running
from benchmarks.peers.service import Service
from deeplabv3.repository.config import read_config

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.peers.contenders import Contender, CoreName, Launch, Setup
    from benchmarks.peers.load import Picture
    from benchmarks.peers.replies import Reply

START_SECONDS = 120.0
TIMEOUT_SECONDS = 30.0
# Where a figure stands for a server as a whole, and where it is asked again after the overload.
USUAL_CONCURRENCY = 4


class ServerError(RuntimeError):
    """A server did not start, or stopped; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a core is loaded.

    Attributes:
        warm_up: requests that are not counted; the memory is sampled meanwhile.
        counts: requests of a closed load, by concurrency.
        overload_seconds: of an open load at twice the rate that the closed loads have found.
        in_time: seconds within which an answer is of use.
        queue: requests that may wait, in servers that have such a limit: about what they answer in time.
    """

    warm_up: int
    counts: Mapping[int, int]
    overload_seconds: float
    in_time: float
    queue: int


PLANS: Mapping[CoreName, Plan] = {
    "model": Plan(warm_up=4, counts={1: 3, 4: 8}, overload_seconds=12, in_time=10, queue=8),
    "stand-in": Plan(warm_up=100, counts={1: 100, 4: 240, 16: 320}, overload_seconds=5, in_time=1, queue=64),
}


@dataclass(frozen=True, slots=True)
class Core:
    """A model repository to serve.

    Attributes:
        name: in the plans and tables.
        repository: the folder.
        variant: of its model.
        pictures: to send in turns, in the order of the requests.
    """

    name: CoreName
    repository: Path
    variant: str
    pictures: list[Picture]

    @property
    def plan(self) -> Plan:
        """Return how it is loaded."""
        return PLANS[self.name]

    def service(self, setup: Setup) -> Service:
        """Return what a peer is told."""
        preprocess = read_config(self.repository / "preprocess" / "config.pbtxt")
        postprocess = read_config(self.repository / "postprocess" / "config.pbtxt")
        return Service(
            model=str((self.repository / f"deeplabv3_{self.variant}" / "1" / "model.pt").resolve()),
            preprocess={name: value.string_value for name, value in preprocess.parameters.items()},
            class_count=next(tensor.dims[0] for tensor in postprocess.input if tensor.name == "LOGITS"),
            max_pixels=int(postprocess.parameters["max_pixels"].string_value),
            port=free_ports(1)[0],
            workers=setup.workers,
            threads=setup.threads,
            batch=setup.batch,
            batch_wait=setup.batch_wait,
            stages=setup.stages,
            queue=self.plan.queue,
            timeout=TIMEOUT_SECONDS,
        )


@dataclass(frozen=True, slots=True)
class Overload:
    """What twice the load did.

    Attributes:
        offered: requests a second.
        replies: to all of them.
        memory: bytes before, at most during, and after.
        after: images a second at USUAL_CONCURRENCY when it was over, as a share of before.
    """

    offered: float
    replies: list[Reply]
    memory: tuple[int, int, int]
    after: float


@dataclass(slots=True)
class Result:
    """What all visits to one server have found.

    Attributes:
        core: what it served.
        contender: its name.
        setup: how it used the machine.
        start: seconds to the first mask, by round.
        memory: bytes at most under load, by round.
        processor: seconds of processor time an image at the highest concurrency, by round.
        closed: the replies to the closed loads, by concurrency, then by round.
        overload: measured in the last round.
        failure: why there is nothing, or no more.
    """

    core: CoreName
    contender: str
    setup: Setup
    start: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    closed: dict[int, list[list[Reply]]] = field(default_factory=dict)
    overload: Overload | None = None
    failure: str = ""

    def throughput(self, concurrency: int) -> float:
        """Return the median of the rounds, in images a second."""
        return statistics.median(map(replies.throughput, self.closed[concurrency]))

    def replies(self) -> list[Reply]:
        """Return every reply."""
        found = [reply for rounds in self.closed.values() for each in rounds for reply in each]
        return found + (self.overload.replies if self.overload else [])


def visit(contender: Contender, core: Core, result: Result, *, python: Path, overload: bool) -> None:
    """Start a server, add what is measured to its result, stop it.

    Raises:
        ServerError: it did not answer, at the start or under load.
    """
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as folder:
        service = core.service(result.setup)
        place = Place(python, Path(folder), core.repository, f"segment_{core.variant}", service)
        launch = contender.launch(place)
        began = time.monotonic()
        with Running(launch.command, environment=launch.environment, folder=place.folder, stop=launch.stop) as server:
            wait_ready(server, launch, core.pictures[0].image.read_bytes())
            result.start.append(time.monotonic() - began)
            write_missing_masks(launch, core.pictures)
            measure(server, launch, core, result)
            if overload:
                result.overload = measure_overload(server, launch, core, result)


def wait_ready(server: Running, launch: Launch, image: bytes) -> None:
    """Return when the server has answered with a mask."""
    deadline = time.monotonic() + START_SECONDS
    while refusal := refused(launch, image):
        if server.exit_code is not None:
            raise ServerError(f"ended with exit code {server.exit_code}:\n{server.log_tail()}")
        if time.monotonic() > deadline:
            raise ServerError(f"no mask in {START_SECONDS:g} s: {refusal}\n{server.log_tail()}")
        time.sleep(0.1)


def refused(launch: Launch, image: bytes) -> str:
    """Return why a server has not answered with a mask; nothing if it has."""
    try:
        launch.wire.ask(image, timeout=TIMEOUT_SECONDS)
    except (OSError, http.client.HTTPException) as error:
        return repr(error)
    return ""


def write_missing_masks(launch: Launch, pictures: Sequence[Picture]) -> None:
    """Let the first server decide what all must return."""
    for picture in pictures:
        if not picture.mask.exists():
            picture.mask.write_bytes(launch.wire.ask(picture.image.read_bytes(), timeout=TIMEOUT_SECONDS))


def measure(server: Running, launch: Launch, core: Core, result: Result) -> None:
    """Send the closed loads of one round."""
    plan = core.plan
    highest = max(plan.counts)
    with server.peak_memory() as samples:
        load.run(Load(plan.warm_up, concurrency=highest), launch.wire, core.pictures)
    result.memory.append(max(samples))
    for concurrency, count in plan.counts.items():
        before = server.processor_seconds()
        found = load.run(Load(count, concurrency=concurrency), launch.wire, core.pictures)
        if concurrency == highest:
            result.processor.append((server.processor_seconds() - before) / count)
        result.closed.setdefault(concurrency, []).append(found)


def measure_overload(server: Running, launch: Launch, core: Core, result: Result) -> Overload:
    """Send twice what the server can answer, then what it usually gets."""
    plan = core.plan
    offered = 2 * max(replies.throughput(rounds[-1]) for rounds in result.closed.values())
    if not offered:
        raise ServerError(f"no mask under load:\n{server.log_tail()}")
    count = max(1, round(offered * plan.overload_seconds))
    before = server.memory()
    with server.peak_memory() as samples:
        found = load.run(Load(count, rate=offered, timeout=TIMEOUT_SECONDS), launch.wire, core.pictures)
    usual = Load(plan.counts[USUAL_CONCURRENCY], concurrency=USUAL_CONCURRENCY)
    after = replies.throughput(load.run(usual, launch.wire, core.pictures))
    kept = after / replies.throughput(result.closed[USUAL_CONCURRENCY][-1])
    return Overload(offered, found, (before, max(samples), server.memory()), kept)
