"""The served pipeline on Triton beside LitServe, BentoML, Ray Serve, mosec and TorchServe, on this CPU.

    .venv/bin/python -m benchmarks.peers [--model-repository DIR] [--variant resnet50] [--core model|stand-in]
        [--contender NAME] [--rounds 2] [--setups] [--peers-python .venv-peers/bin/python] [--output out/bench]

Every server gets the same model.pt, runs the repository's own image_ops and mask_ops around it, and is asked over HTTP
by the same load generator: JPEG bytes in, class ids out, one byte a pixel. One server at a time, in turns, the order
turned around from round to round; what is shown are medians. `model` is the real model; `stand-in` has a core that
costs nothing, so that what is measured is the server and the steps around it. How each peer is set up stands in its
file, and which setups were tried in contenders.py; `--setups` measures them all. Printed, and written as peers.json and
peers.png.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import harness, servers, toy
from benchmarks.load import Load, Picture, Replies, Sender
from benchmarks.peers.contenders import (
    PEERS,
    TIMEOUT_SECONDS,
    CoreName,
    Peer,
    Setup,
    add_arguments,
    check_model,
    installed,
    link_models,
    service,
)
from benchmarks.report import Column, Panel, Report
from deeplabv3.embedded.launch import LaunchError
from deeplabv3.models.names import core_name, ensemble_name
from deeplabv3.repository.config import read_config

if TYPE_CHECKING:
    import argparse
    from collections.abc import Mapping
    from contextlib import AbstractContextManager

    from benchmarks.servers import Server

# The sizes of photographs in the VOC data set and of a camera's preview; neighbors differ, so that a reply to another
# request is found out.
SIZES = ((500, 375), (375, 500), (640, 480), (480, 640))
TRITON = "Triton"
# Where a figure stands for a server as a whole, and where it is asked again after the overload.
USUAL = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """How a core is loaded.

    Attributes:
        warm_up: seconds that are not counted; the memory is sampled meanwhile.
        levels: seconds of a closed load, by concurrency.
        overload_seconds: of an open load at twice the rate that the closed loads have found.
        in_time: seconds within which an answer is of use.
        queue: requests that may wait, in servers that have such a limit: about what they answer in time.
    """

    warm_up: float
    levels: Mapping[int, float]
    overload_seconds: float
    in_time: float
    queue: int


PLANS: Mapping[CoreName, Plan] = {
    "model": Plan(warm_up=3, levels={1: 4, 4: 10}, overload_seconds=12, in_time=10, queue=8),
    "stand-in": Plan(warm_up=1, levels={1: 1, 4: 1.5, 16: 1.5}, overload_seconds=5, in_time=1, queue=64),
}


@dataclass(frozen=True, slots=True)
class Core:
    """A model repository to serve; the masks of its pictures come from the first server."""

    name: CoreName
    repository: Path
    variant: str
    pictures: list[Picture]


@dataclass(slots=True)
class Visited:
    """One server with one core and one setup: what all visits to it have found.

    Attributes:
        core: what it serves.
        peer: the server; None for Triton.
        setup: how it uses the machine.
        masks: the share of the pixels that differ, of each mask that came.
        failure: why there is nothing, or no more.
    """

    core: Core
    peer: Peer | None
    setup: Setup
    masks: list[float] = field(default_factory=list[float])
    failure: str = ""

    @property
    def condition(self) -> dict[str, Any]:
        """Under what it is measured."""
        return {"core": self.core.name, "setup": str(self.setup)}

    @property
    def name(self) -> str:
        """As shown."""
        return self.peer.name if self.peer else TRITON

    def start(self, python: Path) -> AbstractContextManager[Server]:
        """Start the server."""
        core = self.core
        if self.peer is None:
            return servers.triton(core.repository, ensemble_name(core.variant), core.pictures)
        told = service(core.repository, core_name(core.variant), self.setup, queue=PLANS[core.name].queue)
        return self.peer.start(told, core.repository, core.pictures, python)

    def send(self, sender: Sender, server: Server, load: Load) -> Replies:
        """Send a load, and keep how right the masks are."""
        replies = sender.run(load, server.wire, server.pictures)
        self.masks += [0.0] * (len(replies.seconds) - len(replies.differing)) + replies.differing
        return replies

    @property
    def wrong(self) -> str:
        """How many masks differ, and by how much."""
        wrong = [share for share in self.masks if share]
        return f"{len(wrong)} of {len(self.masks)}" + (f", by {max(wrong):.2%} at most" if wrong else "")


def visit(report: Report, visited: Visited, sender: Sender, python: Path, *, overload: bool) -> dict[int, float]:
    """Start a server, load it in several ways, stop it; return its images a second by concurrency.

    Raises:
        LaunchError: it did not start, or did not answer.
    """
    plan = PLANS[visited.core.name]
    found: dict[int, float] = {}
    with visited.start(python) as server:
        with server.processes.peak_memory() as samples:
            visited.send(sender, server, Load(plan.warm_up, concurrency=max(plan.levels)))
        for level, seconds in plan.levels.items():
            before = server.processes.processor_seconds()
            replies = visited.send(sender, server, Load(seconds, concurrency=level))
            taken = server.processes.processor_seconds() - before
            figures = {
                "rate": replies.throughput,
                "failed": sum(replies.errors.values()),
                "processor": taken / len(replies.all),
                **percentiles(replies, 50, 99),
                **({"start": server.start, "memory": max(samples)} if level == USUAL else {}),
            }
            report.add("closed", visited.name, {**visited.condition, "in flight": level}, figures, masks=visited.wrong)
            found[level] = replies.throughput
        if not max(found.values()):
            raise LaunchError("no mask under load")
        if overload:
            measure_overload(report, visited, sender, server, found)
    return found


def measure_overload(
    report: Report, visited: Visited, sender: Sender, server: Server, found: Mapping[int, float]
) -> None:
    """Send twice what the server can answer, then what it usually gets."""
    plan = PLANS[visited.core.name]
    offered = 2 * max(found.values())
    before = server.processes.memory()
    with server.processes.peak_memory() as samples:
        replies = visited.send(sender, server, Load(plan.overload_seconds, rate=offered, timeout=TIMEOUT_SECONDS))
    after = server.processes.memory()
    useful = replies.in_time(plan.in_time)
    usual = visited.send(sender, server, Load(plan.levels[USUAL], concurrency=USUAL))
    figures = {
        "offered": offered,
        "in_time": useful / len(replies.all),
        # Over all the time until the last reply: what is sent at twice the rate is still answered after the sending.
        "goodput": useful / replies.elapsed,
        **percentiles(replies, 99),
        "memory_before": before,
        "memory_peak": max(samples),
        "memory_after": after,
        "after": usual.throughput / found[USUAL],
    }
    errors = ", ".join(f"{count} x {status}" for status, count in replies.errors.items()) or "none"
    report.add("overload", visited.name, visited.condition, figures, errors=errors, masks=visited.wrong)


def percentiles(replies: Replies, *percents: int) -> dict[str, float]:
    """Return percentiles of the seconds of a mask, by name; nothing where no mask came."""
    found = {f"p{percent}": replies.percentile(percent / 100) for percent in percents}
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def cores(options: argparse.Namespace, folder: Path) -> list[Core]:
    """Return what is to be served."""
    found: list[Core] = []
    for name in options.core or PLANS:
        if name == "stand-in":
            variant, repository = "resnet50", toy.build(folder / name, core="objects")
        else:
            variant = options.variant
            repository = link_models(options.model_repository, folder / name, variant)
        pictures: list[Picture] = []
        for width, height in SIZES:
            file = folder / f"{width}x{height}.jpg"
            harness.save_photograph(file, (width, height))
            pictures.append(Picture(file, folder / f"{name}-{width}x{height}.mask"))
        found.append(Core(name, repository, variant, pictures))
    return found


def triton_setup(repository: Path) -> Setup:
    """Return how Triton uses the machine, by the config of a step in its repository."""
    config = read_config(repository / "preprocess" / "config.pbtxt")
    workers = config.instance_group[0].count
    return Setup(workers, harness.cores(), batch=config.max_batch_size, stages=True)


def measure(report: Report, options: argparse.Namespace, folder: Path) -> None:
    """Visit every server in every round."""
    versions = installed(options.peers_python)
    wanted = [peer for peer in (None, *PEERS) if (peer.name if peer else TRITON) in (options.contender or names())]
    for core in cores(options, folder):
        all_: dict[str, Visited] = {}
        for peer in wanted:
            setups = peer.setups[core.name] if peer else (triton_setup(core.repository),)
            for setup in setups if options.setups else setups[:1]:
                visited = Visited(core, peer, setup, failure=peer.missing(versions) if peer else "")
                all_[f"{visited.name} ({setup})"] = visited
        with Sender() as sender:
            for turn, name, visited in harness.in_turns(all_, options.rounds):
                if visited.failure:
                    continue
                last = turn == options.rounds - 1 and not options.setups
                try:
                    found = visit(report, visited, sender, options.peers_python, overload=last)
                    said = ", ".join(f"{rate:.3g} images/s at {level}" for level, rate in found.items())
                except LaunchError as error:
                    visited.failure = said = f"failed: {error}"
                report.say(f"{core.name}, round {turn + 1} of {options.rounds}: {name}: {said}")
        for name, visited in all_.items():
            if visited.failure:
                report.skip(f"{core.name}, {name}", visited.failure)
    report.compare("closed", "rate", {peer.name: (TRITON,) for peer in PEERS}, high_is_good=True)


def show(report: Report) -> None:
    """Print the tables and draw the plot."""
    closed = (
        Column("rate", "images/s"),
        Column("p50", "p50 s", form=".3f"),
        Column("p99", "p99 s", form=".3f"),
        Column("failed", "failed", form=".0f"),
        Column("processor", "CPU ms", 1e3, ".1f"),
        Column("memory", "MB", 1e-6, ".0f"),
        Column("start", "start s", form=".1f"),
        Column("masks", "masks that differ"),
    )
    overload = (
        Column("offered", "offered/s"),
        Column("in_time", "in time", form=".0%"),
        Column("goodput", "goodput/s"),
        Column("p99", "p99 s", form=".3f"),
        Column("errors", "errors"),
        Column("masks", "masks that differ"),
        *(Column(f"memory_{when}", f"MB {when}", 1e-6, ".0f") for when in ("before", "peak", "after")),
        Column("after", "images/s afterwards, of before", form=".0%"),
    )
    panels: list[Panel] = []
    for name, plan in PLANS.items():
        if not (rows := report.of("closed", core=name)):
            continue
        report.show(f"{name}: closed loads, {harness.cores()} cores", rows, closed)
        if rows := report.of("overload", core=name):
            title = f"{name}: twice that load for {plan.overload_seconds:g} s, of use within {plan.in_time:g} s"
            report.show(title, rows, overload)
        usual = {"core": name, "in flight": USUAL}
        panels += [
            Panel("closed", "rate", f"images/s, {USUAL} at once", name, where=usual),
            Panel("closed", "p99", f"p99 seconds, {USUAL} at once", name, where=usual),
            Panel("closed", "memory", "memory, GB", name, scale=1e-9, where=usual),
            Panel("overload", "goodput", "images/s in time, at twice the load", name, where={"core": name}),
        ]
    if panels:
        report.plot(panels, columns=4, ours=(TRITON,))


def names() -> list[str]:
    """Return the names of all servers."""
    return [TRITON, *(peer.name for peer in PEERS)]


def main() -> int:
    """Run the command line; return 1 when a server that is installed did not answer."""
    parser = harness.parser("benchmarks.peers", __doc__, rounds=2)
    parser.add_argument("--contender", action="append", choices=names(), help="may be repeated (default: all)")
    parser.add_argument("--core", action="append", choices=list(PLANS), help="may be repeated (default: both)")
    parser.add_argument("--setups", action="store_true", help="every setup that was tried, and no overload")
    add_arguments(parser)
    options = parser.parse_args()
    if "model" in (options.core or PLANS):
        check_model(parser, options, otherwise="--core stand-in")
    packages = {name: installed(options.peers_python).get(name, "") for name in ("torch", *(p.package for p in PEERS))}
    plans = {name: asdict(plan) for name, plan in PLANS.items()}
    report = Report("peers", options.output, peers=packages, plans=plans)
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        measure(report, options, Path(folder))
    show(report)
    return report.end()


if __name__ == "__main__":
    harness.run(main)
