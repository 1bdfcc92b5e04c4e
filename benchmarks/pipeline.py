"""Measure the pipeline around the model on this CPU, and where its time goes.

    .venv/bin/python -m benchmarks.pipeline [stages] [load] [model] [--rounds 3] [--model-repository DIR]
        [--concurrency N] [--peers-python .venv-peers/bin/python] [--output out/bench]

`stages` times decoding, resizing and the masks separately, in one thread. Their sum, divided by the cores, is a lower
bound for every server with these functions. `load` serves a core model that costs nothing, so that only the pipeline
around it is measured, and loads three servers in turns with the same HTTP client: Triton; Triton with steps that do
nothing, which shows the cost of its processes and copies; and mosec with the same functions, the whole pipeline in each
process. `model` compares the ensemble with a real model to a plain loop over the same file. The results are printed and
written to pipeline.json and pipeline.png.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import torch

from benchmarks import harness, servers, toy
from benchmarks.harness import ROOT, cores
from benchmarks.load import Load, Picture, Sender
from benchmarks.peers import contenders
from benchmarks.report import Column, Panel, Report, Row
from deeplabv3 import server_statistics
from deeplabv3.arguments import number
from deeplabv3.building.tracing import TRAINED_SIZE
from deeplabv3.embedded.layout import TUNING
from deeplabv3.models.names import core_name, ensemble_name

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from benchmarks.servers import Server

SIZE = (640, 480)
LEVELS = (1, 2, 4, 8, 16, 32)
TRITON, IDLE, PEER, LIMIT = "Triton", "Triton, idle steps", "mosec", "limit of the stages"
STEPS = ("preprocess", toy.CORE, "postprocess")
IN_FLIGHT = "in flight"
# A stage that runs only for requests that ask for it; the load asks for masks.
CONFIDENCE = "confidence"


def measure_stages(repository: Path, image: Path) -> dict[str, list[float]]:
    """Return the seconds of each stage alone, one value for each round, in one thread of a separate process."""
    paths = [ROOT, *(ROOT / "model_repository" / step / "1" for step in ("preprocess", "postprocess", CONFIDENCE))]
    done = subprocess.run(  # noqa: S603 - our own script
        [sys.executable, str(Path(__file__).with_name("stages.py")), str(repository), str(image)],
        env=os.environ | TUNING | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


def measure_load(
    report: Report, running: Sequence[Server], sender: Sender, options: argparse.Namespace, *, limit: float
) -> None:
    """Load the servers in turns, at each concurrency.

    Args:
        report: gets the rows.
        running: the servers.
        sender: sends the load.
        options: of the command line.
        limit: images per second that the stages allow on all cores; 0 if unknown.
    """
    by_name = {server.name: server for server in running}
    for level in options.concurrency or LEVELS:
        condition = {IN_FLIGHT: level}
        for turn, name, server in harness.in_turns(by_name, options.rounds, warm_up=1):
            if turn < 0:
                sender.run(Load(options.seconds / 4, level), server.wire, server.pictures)
                continue
            row = measure_round(report, server, sender, Load(options.seconds, level))
            if limit and name != IDLE:
                row.samples["of_limit"] = [rate / limit for rate in row.samples["rate"]]
        if limit:
            report.add("load", LIMIT, condition, {"rate": limit})
        rates = ", ".join(f"{row.contender} {row.text('rate')}" for row in report.of("load", **condition))
        report.say(f"{level} in flight: {rates} images/s")


def measure_round(report: Report, server: Server, sender: Sender, load: Load) -> Row:
    """Send one load, add the results of the server and return its row."""
    before, counted = processor_seconds(server), read_statistics(server)
    replies = sender.run(load, server.wire, server.pictures)
    replies.check(server.name)
    gained = {name: taken - before[name] for name, taken in processor_seconds(server).items()}
    meanwhile = server_statistics.between(counted, read_statistics(server)) or {}
    condition = {"server": server.name, IN_FLIGHT: load.concurrency}
    for process, seconds in {**gained, "sum": sum(gained.values())}.items():
        report.add("processor", process, condition, {"ms": 1e3 * seconds / len(replies.all)})
    for step in STEPS if server.is_triton else ():
        report.add("steps", step, condition, server_statistics.means(meanwhile[step]))
    percentiles = {f"p{percent}": replies.percentile(percent / 100) or 0.0 for percent in (50, 99)}
    return report.add("load", server.name, {IN_FLIGHT: load.concurrency}, {"rate": replies.throughput, **percentiles})


def processor_seconds(server: Server) -> dict[str, float]:
    """Return the CPU time of each kind of a server's processes, in seconds."""
    taken: dict[str, float] = defaultdict(float)
    for process in server.processes.all():
        with contextlib.suppress(psutil.Error):  # it has just ended
            kind = kind_of(process.name(), process.cmdline()) if server.is_triton else server.name
            taken[kind] += sum(process.cpu_times()[:2])
    return taken


def kind_of(name: str, command: Sequence[str]) -> str:
    """Return which part of Triton a process is: the arguments of a stub contain the name of its model."""
    if not name.startswith("triton_python"):
        return "tritonserver" if name == "tritonserver" else "serve.py"
    return next((model for model in toy.MODELS if any(part.startswith(f"{model}_0_") for part in command)), name)


def read_statistics(server: Server) -> dict[str, Any]:
    """Return Triton's statistics; empty for other servers."""
    return server_statistics.read(f"http://{urlsplit(server.wire.url).netloc}") if server.is_triton else {}


def measure_model(report: Report, server: Server, file: Path, *, rounds: int) -> None:
    """Compare the ensemble with a plain loop over its core model's file, in turns: seconds per image."""
    model: Any = torch.jit.load(str(file))
    pixels = torch.zeros((1, TRAINED_SIZE, TRAINED_SIZE, 3), dtype=torch.uint8)
    image_id = torch.zeros((1, 1), dtype=torch.int64)
    with Sender() as sender, torch.inference_mode():

        def loop() -> list[float]:
            seconds: list[float] = []
            for _ in range(2):
                start = time.perf_counter()
                model(pixels, image_id)
                seconds.append(time.perf_counter() - start)
            return seconds

        def one_at_a_time() -> list[float]:
            replies = sender.run(Load(600, concurrency=1, count=2), server.wire, server.pictures)
            replies.check(server.name)
            return replies.seconds

        def two_in_flight() -> list[float]:
            replies = sender.run(Load(600, concurrency=2, count=6), server.wire, server.pictures)
            replies.check(server.name)
            return [1 / replies.throughput]

        torch.set_num_threads(cores())
        calls = {"bare loop": loop, "ensemble, one at a time": one_at_a_time, "ensemble, two in flight": two_in_flight}
        for turn, name, call in harness.in_turns(calls, rounds, warm_up=1):
            seconds = call()
            if turn >= 0:
                report.add("model", name, {}, {"seconds": seconds})
    report.compare("model", "seconds", dict.fromkeys(list(calls)[1:], ("bare loop",)), high_is_good=False)


def parse() -> argparse.Namespace:
    """Read the command line."""
    parts = ("stages", "load", "model")
    parser = harness.parser("benchmarks.pipeline", __doc__, rounds=3, parts=parts)
    parser.add_argument(
        "--concurrency",
        action="append",
        type=number(1, kind=int),
        metavar="N",
        help=f"requests in flight; can be repeated (default: {', '.join(map(str, LEVELS))})",
    )
    parser.add_argument(
        "--seconds", type=number(0.01), default=1.0, help="duration of each load (default: %(default)s)"
    )
    contenders.add_arguments(parser)
    options = parser.parse_args()
    if "model" in options.parts:
        contenders.check_model(parser, options, otherwise="measure only `stages` and `load`")
    return options


def measure(report: Report, options: argparse.Namespace, folder: Path) -> None:
    """Measure the chosen parts."""
    image = folder / "picture.jpg"
    harness.save_photograph(image, SIZE)
    repository = toy.build(folder / "models", core="objects")
    limit = 0.0
    if "stages" in options.parts:
        for stage, seconds in measure_stages(repository, image).items():
            report.add("stages", stage, {}, {"seconds": seconds})
        stages = {row.contender: row.figures["seconds"].median for row in report.of("stages")}
        limit = cores() / sum(seconds for stage, seconds in stages.items() if stage != CONFIDENCE)
        report.say(f"limit of the stages on {cores()} cores: {limit:.0f} images/s")
    if "load" in options.parts:
        pictures = [Picture(image, folder / "stand-in.mask")]  # mosec must return the masks that Triton returns
        idle = toy.build(folder / "idle", core="objects", idle=True)
        peer = next(each for each in contenders.PEERS if each.name == PEER)
        with contextlib.ExitStack() as stack:
            sender = stack.enter_context(Sender())
            running = [
                stack.enter_context(servers.triton(repository, toy.ENSEMBLE, pictures)),
                stack.enter_context(
                    servers.triton(idle, toy.ENSEMBLE, [Picture(image, folder / "idle.mask")], name=IDLE)
                ),
            ]
            if lacking := peer.missing(contenders.installed(options.peers_python)):
                report.skip(PEER, lacking)
            else:
                setup = contenders.Setup(workers=cores(), threads=1)
                service = contenders.service(repository, toy.CORE, setup)
                running.append(stack.enter_context(peer.start(service, repository, pictures, options.peers_python)))
            measure_load(report, running, sender, options, limit=limit)
        report.compare("load", "rate", {TRITON: (PEER,)}, high_is_good=True)
    if "model" in options.parts:
        served = contenders.link_models(options.model_repository, folder / "real", options.variant)
        pictures = [Picture(image, folder / "model.mask")]
        with servers.triton(served, ensemble_name(options.variant), pictures) as server:
            file = served / core_name(options.variant) / "1" / "model.pt"
            measure_model(report, server, file, rounds=options.rounds)


def show(report: Report) -> None:
    """Print the tables and draw the plot."""
    milliseconds = Column("seconds", "ms per image", 1e3, ".2f")
    if rows := report.of("stages"):
        report.show(f"{SIZE[0]} x {SIZE[1]} JPEG, one thread", rows, (milliseconds,))
    if rows := report.of("load"):
        columns = (
            Column("rate", "images/s", form=".0f"),
            Column("p50", "p50, ms", 1e3, ".1f"),
            Column("p99", "p99, ms", 1e3, ".1f"),
            Column("of_limit", "of the limit", form=".2f"),
        )
        report.show("a core model that costs nothing", rows, columns)
        best = {name: report.best("load", "rate", contender=name) for name in (TRITON, IDLE, PEER)}
        rows = [
            row
            for name, top in best.items()
            if top
            for row in report.of("processor", server=name, **{IN_FLIGHT: top.condition[IN_FLIGHT]})
        ]
        report.show("CPU time at the best throughput", rows, (Column("ms", "ms per image", form=".2f"),))
        times = [Column(f"{kind}_ms", f"{kind.replace('_', ' ')} ms", form=".2f") for kind in server_statistics.TIMES]
        title = "Triton's statistics: mean times of a request in each step"
        report.show(title, report.of("steps", server=TRITON), (*times, Column("batch", "batch", form=".1f")))
        over: dict[str, Any] = {"over": IN_FLIGHT, "over_label": "requests in flight"}
        triton: dict[str, Any] = over | {"where": {"server": TRITON}}
        panels = [
            Panel("load", "rate", "Throughput", "images/s", high_is_good=True, log=True, **over),
            Panel("load", "p50", "Median latency (p50)", "ms", scale=1e3, log=True, **over),
            Panel("load", "p99", "99th percentile of the latency (p99)", "ms", scale=1e3, log=True, **over),
            Panel("steps", "queue_ms", "Triton: time in the queue, by step", "ms per request", stacked=True, **triton),
            Panel("steps", "compute_ms", "Triton: compute time, by step", "ms per request", stacked=True, **triton),
            Panel("processor", "ms", "Triton: CPU time, by process", "ms per image", log=True, **triton),
        ]
        size = f"{SIZE[0]} x {SIZE[1]} JPEG, {cores()} cores"
        report.plot(panels, title=f"Pipeline around a core model that costs nothing: {size}")
    if rows := report.of("model"):
        report.show("a real model", rows, (Column("seconds", "s per image", form=".3f"),))


def main() -> int:
    """Run the command line."""
    options = parse()
    report = Report("pipeline", options.output, size=SIZE)
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        measure(report, options, Path(folder))
    show(report)
    return report.end()


if __name__ == "__main__":
    harness.run(main)
