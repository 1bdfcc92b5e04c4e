"""Compare the pipeline on Triton, LitServe, BentoML, Ray Serve, mosec and TorchServe on this CPU.

    .venv/bin/python -m benchmarks.peers [--model-repository DIR] [--variant resnet50] [--core model|stand-in]
        [--contender NAME] [--rounds 2] [--setups] [--peers-python .venv-peers/bin/python] [--output out/bench]

Every server gets the same model.pt, runs the repository's own image_ops and mask_ops around it, and answers the same
load generator over HTTP: JPEG bytes in, class ids out, one byte per pixel. Only one server runs at a time, and the
order is reversed in every other round; the tables show medians. `model` is the real model; `stand-in` has a core model
that costs nothing, so that only the server and the steps around the core are measured. The setup of each peer is in its
file, and the setups that were tried are in contenders.py; `--setups` measures all of them. The results are printed and
written to peers.json and peers.png.
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

# The sizes of photographs in the VOC data set and of a camera's preview. Consecutive pictures differ, so that a swapped
# reply is detected.
SIZES = ((500, 375), (375, 500), (640, 480), (480, 640))
TRITON = "Triton"
# The concurrency of the figures for a server as a whole, and of the load after the overload.
CONCURRENCY = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """The loads for a core model.

    Attributes:
        warm_up: seconds that are not counted, during which the memory is sampled.
        levels: seconds of a closed loop, by concurrency.
        overload_seconds: of an open loop at twice the highest rate of the closed loops.
        in_time: seconds after which a reply is too late to count as goodput.
        queue: limit of waiting requests, in servers that have one: about what they answer in time.
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
    """A model repository to serve. The first server provides the expected masks of its pictures."""

    name: CoreName
    repository: Path
    variant: str
    pictures: list[Picture]


@dataclass(slots=True)
class Trial:
    """The results of one server with one core and one setup, over all rounds.

    Attributes:
        core: the models that it serves.
        peer: the server; None for Triton.
        setup: how it uses the machine.
        masks: the share of wrong pixels in each mask.
        failure: why the server was skipped or stopped.
    """

    core: Core
    peer: Peer | None
    setup: Setup
    masks: list[float] = field(default_factory=list[float])
    failure: str = ""

    @property
    def condition(self) -> dict[str, Any]:
        """The condition of its rows."""
        return {"core": self.core.name, "setup": str(self.setup)}

    @property
    def name(self) -> str:
        """The name in the results."""
        return self.peer.name if self.peer else TRITON

    def start(self, python: Path) -> AbstractContextManager[Server]:
        """Start the server."""
        core = self.core
        if self.peer is None:
            return servers.triton(core.repository, ensemble_name(core.variant), core.pictures)
        settings = service(core.repository, core_name(core.variant), self.setup, queue=PLANS[core.name].queue)
        return self.peer.start(settings, core.repository, core.pictures, python)

    def send(self, sender: Sender, server: Server, load: Load) -> Replies:
        """Send a load and record the errors of the masks."""
        replies = sender.run(load, server.wire, server.pictures)
        self.masks += [0.0] * (len(replies.seconds) - len(replies.differing)) + replies.differing
        return replies

    @property
    def wrong(self) -> str:
        """How many masks are wrong, and the largest share of wrong pixels."""
        wrong = [share for share in self.masks if share]
        return f"{len(wrong)} of {len(self.masks)}" + (f", up to {max(wrong):.2%} of the pixels" if wrong else "")


def measure_server(report: Report, trial: Trial, sender: Sender, python: Path, *, overload: bool) -> dict[int, float]:
    """Start a server, send all loads, stop it; return its images per second by concurrency.

    Raises:
        LaunchError: the server did not start, or did not answer.
    """
    plan = PLANS[trial.core.name]
    found: dict[int, float] = {}
    with trial.start(python) as server:
        with server.processes.peak_memory() as samples:
            trial.send(sender, server, Load(plan.warm_up, concurrency=max(plan.levels)))
        for level, seconds in plan.levels.items():
            before = server.processes.processor_seconds()
            replies = trial.send(sender, server, Load(seconds, concurrency=level))
            taken = server.processes.processor_seconds() - before
            figures = {
                "rate": replies.throughput,
                "failed": sum(replies.errors.values()),
                "processor": taken / len(replies.all),
                **percentiles(replies, 50, 99),
                **({"start": server.start, "memory": max(samples)} if level == CONCURRENCY else {}),
            }
            report.add("closed", trial.name, {**trial.condition, "in flight": level}, figures, masks=trial.wrong)
            found[level] = replies.throughput
        if not max(found.values()):
            raise LaunchError("the server returned no mask under load")
        if overload:
            measure_overload(report, trial, sender, server, found)
    return found


def measure_overload(report: Report, trial: Trial, sender: Sender, server: Server, found: Mapping[int, float]) -> None:
    """Send twice the rate that the server can answer, then a normal load."""
    plan = PLANS[trial.core.name]
    offered = 2 * max(found.values())
    before = server.processes.memory()
    with server.processes.peak_memory() as samples:
        replies = trial.send(sender, server, Load(plan.overload_seconds, rate=offered, timeout=TIMEOUT_SECONDS))
    after = server.processes.memory()
    useful = replies.in_time(plan.in_time)
    usual = trial.send(sender, server, Load(plan.levels[CONCURRENCY], concurrency=CONCURRENCY))
    figures = {
        "offered": offered,
        "in_time": useful / len(replies.all),
        # Until the last reply, because a server still answers waiting requests after the last one was sent.
        "goodput": useful / replies.elapsed,
        **percentiles(replies, 99),
        "memory_before": before,
        "memory_peak": max(samples),
        "memory_after": after,
        "after": usual.throughput / found[CONCURRENCY],
    }
    errors = ", ".join(f"{count} x {status}" for status, count in replies.errors.items()) or "none"
    report.add("overload", trial.name, trial.condition, figures, errors=errors, masks=trial.wrong)


def percentiles(replies: Replies, *percents: int) -> dict[str, float]:
    """Return percentiles of the latency in seconds, by name; empty if there was no mask."""
    found = {f"p{percent}": replies.percentile(percent / 100) for percent in percents}
    return {name: seconds for name, seconds in found.items() if seconds is not None}


def cores(options: argparse.Namespace, folder: Path) -> list[Core]:
    """Return the cores to serve."""
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
    """Return how Triton uses the machine, from the config of a step in its repository."""
    config = read_config(repository / "preprocess" / "config.pbtxt")
    workers = config.instance_group[0].count
    return Setup(workers, harness.cores(), batch=config.max_batch_size, stages=True)


def measure(report: Report, options: argparse.Namespace, folder: Path) -> None:
    """Measure every server in every round."""
    versions = installed(options.peers_python)
    wanted = [peer for peer in (None, *PEERS) if (peer.name if peer else TRITON) in (options.contender or names())]
    for core in cores(options, folder):
        trials: dict[str, Trial] = {}
        for peer in wanted:
            setups = peer.setups[core.name] if peer else (triton_setup(core.repository),)
            for setup in setups if options.setups else setups[:1]:
                trial = Trial(core, peer, setup, failure=peer.missing(versions) if peer else "")
                trials[f"{trial.name} ({setup})"] = trial
        with Sender() as sender:
            for turn, name, trial in harness.in_turns(trials, options.rounds):
                if trial.failure:
                    continue
                last = turn == options.rounds - 1 and not options.setups
                try:
                    found = measure_server(report, trial, sender, options.peers_python, overload=last)
                    said = ", ".join(f"{rate:.3g} images/s with {level} in flight" for level, rate in found.items())
                except LaunchError as error:
                    trial.failure = said = f"failed: {error}"
                report.say(f"{core.name}, round {turn + 1} of {options.rounds}: {name}: {said}")
        for name, trial in trials.items():
            if trial.failure:
                report.skip(f"{core.name}, {name}", trial.failure)
    report.compare("closed", "rate", {peer.name: (TRITON,) for peer in PEERS}, high_is_good=True)


def show(report: Report) -> None:
    """Print the tables and draw the plot."""
    closed = (
        Column("rate", "images/s"),
        Column("p50", "p50, s", form=".3f"),
        Column("p99", "p99, s", form=".3f"),
        Column("failed", "failed", form=".0f"),
        Column("processor", "CPU ms per image", 1e3, ".1f"),
        Column("memory", "memory, MB", 1e-6, ".0f"),
        Column("start", "start, s", form=".1f"),
        Column("masks", "wrong masks"),
    )
    overload = (
        Column("offered", "sent/s"),
        Column("in_time", "in time", form=".0%"),
        Column("goodput", "goodput/s"),
        Column("p99", "p99, s", form=".3f"),
        Column("errors", "errors"),
        Column("masks", "wrong masks"),
        *(Column(f"memory_{when}", f"MB {when}", 1e-6, ".0f") for when in ("before", "peak", "after")),
        Column("after", "images/s after, relative to before", form=".0%"),
    )
    panels: list[list[Panel]] = []
    for name, plan in PLANS.items():
        if not (rows := report.of("closed", core=name)):
            continue
        report.show(f"{name}: closed loops, {harness.cores()} cores", rows, closed)
        if rows := report.of("overload", core=name):
            title = f"{name}: open loop at twice that rate, {plan.overload_seconds:g} s; in time: {plan.in_time:g} s"
            report.show(title, rows, overload)
        real = name == "model"
        what = "real core model" if real else "core that costs nothing"
        unit, scale = ("seconds", 1.0) if real else ("ms", 1e3)
        usual = {"core": name, "in flight": CONCURRENCY}
        seconds = f"images/s within {plan.in_time:g} s"
        panels.append(
            [
                Panel("closed", "rate", f"Throughput: {what}", "images/s", high_is_good=True, where=usual),
                Panel("closed", "p99", f"p99 latency: {what}", unit, scale=scale, where=usual),
                Panel("closed", "memory", f"Memory: {what}", "GB", scale=1e-9, where=usual),
                Panel("overload", "goodput", f"Goodput: {what}", seconds, high_is_good=True, where={"core": name}),
            ]
        )
    title = f"Triton (blue) and other model servers, {harness.cores()} cores, {CONCURRENCY} requests in flight"
    overloaded = "Goodput: in an open loop at twice the throughput"
    report.plot(
        [panel for row in zip(*panels, strict=True) for panel in row], title=f"{title}\n{overloaded}", ours=(TRITON,)
    )


def names() -> list[str]:
    """Return the names of all servers."""
    return [TRITON, *(peer.name for peer in PEERS)]


def main() -> int:
    """Run the command line; return 1 if an installed server did not answer."""
    parser = harness.parser("benchmarks.peers", __doc__, rounds=2)
    parser.add_argument("--contender", action="append", choices=names(), help="can be repeated (default: all)")
    parser.add_argument("--core", action="append", choices=list(PLANS), help="can be repeated (default: both)")
    parser.add_argument("--setups", action="store_true", help="measure every setup that was tried, without overload")
    add_arguments(parser)
    options = parser.parse_args()
    if "model" in (options.core or PLANS):
        check_model(parser, options, otherwise="use --core stand-in")
    packages = {name: installed(options.peers_python).get(name, "") for name in ("torch", *(p.package for p in PEERS))}
    plans = {name: asdict(plan) for name, plan in PLANS.items()}
    report = Report("peers", options.output, peers=packages, plans=plans)
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        measure(report, options, Path(folder))
    show(report)
    return report.end()


if __name__ == "__main__":
    harness.run(main)
