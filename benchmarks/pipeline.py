"""What the pipeline around the model costs on this CPU, and where the time goes.

    .venv/bin/python -m benchmarks.pipeline [stages] [load] [model] [--rounds 3] [--model-repository DIR]
        [--concurrency N] [--peers-python .venv-peers/bin/python] [--output out/bench]

`stages` times decoding, resizing and the masks by themselves, in one thread: their sum over the cores is what no server
can beat with these functions. `load` serves a core that costs nothing, so that everything else is left, and loads three
servers in turns with the same HTTP client: Triton; Triton with steps that do nothing, which is what its processes and
copies cost by themselves; and mosec with the same functions, the whole pipeline in each of its processes. `model`
compares the ensemble over a real model with a bare loop over the same file. Printed, and written as pipeline.json and
pipeline.png.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import argparse
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from rich.console import Console

from benchmarks import pipeline_tables, stand_in
from benchmarks.model import cores
from benchmarks.peers import load, replies
from benchmarks.peers.contenders import CONTENDERS, ROOT, Place, Setup, installed, missing
from benchmarks.peers.load import Load, Picture
from benchmarks.peers.measuring import Core, wait_ready
from benchmarks.peers.running import Running, end_in_order
from deeplabv3 import VARIANTS
from deeplabv3.arguments import number
from deeplabv3.embedded.layout import TUNING

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from benchmarks.peers.contenders import Launch
    from benchmarks.peers.replies import Reply

PHOTOGRAPH = ROOT / "tests" / "assets" / "cat.png"
SIZE = (640, 480)
LEVELS = (1, 2, 4, 8, 16, 32)
TRITON, IDLE, RIVAL = "Triton", "Triton, idle steps", "mosec"
STEPS = ("preprocess", "deeplabv3_resnet50", "postprocess")


@dataclass(slots=True)
class Found:
    """What one server did at one concurrency.

    Attributes:
        throughput: images a second, by round.
        seconds: from request to mask, of every request.
        processor: milliseconds of processor time an image by process, by round.
        stages: milliseconds an image in each step of the ensemble and kind of time, by round; Triton's own statistics.
    """

    throughput: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    processor: list[dict[str, float]] = field(default_factory=list)
    stages: list[dict[str, dict[str, float]]] = field(default_factory=list)

    def add(self, found: Sequence[Reply]) -> None:
        """Add a round."""
        self.throughput.append(replies.throughput(found))
        self.seconds += replies.latencies(found)


@dataclass(frozen=True, slots=True)
class Server:
    """One of the servers, running."""

    name: str
    running: Running
    launch: Launch
    picture: Picture

    @property
    def is_triton(self) -> bool:
        """Tell whether it has Triton's statistics."""
        return self.name != RIVAL

    def processor(self) -> dict[str, float]:
        """Return the processor time that each kind of its processes has taken, in seconds."""
        taken: dict[str, float] = defaultdict(float)
        for process in self.running.processes():
            taken[kind_of(process.name(), process.cmdline()) if self.is_triton else RIVAL] += sum(
                process.cpu_times()[:2]
            )
        return taken

    def statistics(self) -> dict[str, dict[str, float]]:
        """Return the milliseconds that each step has taken since the start, by kind, and its images and batches."""
        url = self.launch.wire.url.partition("/v2/")[0] + "/v2/models/stats"
        with urllib.request.urlopen(url, timeout=10) as reply:  # noqa: S310  http, on this machine
            found = {model["name"]: model for model in json.load(reply)["model_stats"]}
        kinds = ("queue", "compute_input", "compute_infer", "compute_output")
        return {
            step: {kind: found[step]["inference_stats"][kind]["ns"] / 1e6 for kind in kinds}
            | {"images": found[step]["inference_count"], "batches": found[step]["execution_count"]}
            for step in STEPS
        }


def kind_of(name: str, command: Sequence[str]) -> str:
    """Return which part of Triton a process is: a stub has its model's name among its arguments."""
    if not name.startswith("triton_python"):
        return "tritonserver" if name == "tritonserver" else "serve.py"
    return next((step for step in STEPS if any(part.startswith(f"{step}_0_") for part in command)), "encode_mask")


# One step alone --------------------------------------------------------------------------------------------------


def measure_stages(repository: Path, image: Path) -> dict[str, float]:
    """Return the seconds that each stage takes by itself, in one thread of a process of its own."""
    paths = [ROOT, *(ROOT / "model_repository" / step / "1" for step in ("preprocess", "postprocess"))]
    done = subprocess.run(  # noqa: S603  a script of ours
        [sys.executable, str(Path(__file__).with_name("stages.py")), str(repository), str(image)],
        env=os.environ | TUNING | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


# A core that costs nothing ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(name: str, contender_name: str, core: Core, *, python: Path) -> Generator[Server]:
    """Start a server."""
    contender = next(contender for contender in CONTENDERS if contender.name == contender_name)
    setup = Setup(workers=cores(), threads=1)
    with tempfile.TemporaryDirectory(prefix="pipeline-", ignore_cleanup_errors=True) as folder:
        place = Place(python, Path(folder), core.repository, f"segment_{core.variant}", core.service(setup))
        launch = contender.launch(place)
        with Running(launch.command, environment=launch.environment, folder=place.folder, stop=launch.stop) as running:
            wait_ready(running, launch, core.pictures[0].image.read_bytes())
            yield Server(name, running, launch, core.pictures[0])


def measure_load(
    servers: Sequence[Server], *, levels: Sequence[int], rounds: int, seconds: float, console: Console
) -> dict[str, dict[int, Found]]:
    """Load the servers in turns; return what was found by server and concurrency."""
    found = {server.name: {level: Found() for level in levels} for server in servers}
    rates = {server.name: 50.0 for server in servers}
    for turn in range(-1, rounds):  # the first warms up and finds out how many requests make a round
        for level in levels:
            for server in servers[:: -1 if turn % 2 else 1]:
                count = max(4 * level, round(rates[server.name] * (seconds if turn >= 0 else seconds / 4)))
                figures = measure_round(server, level=level, count=count)
                rates[server.name] = figures.throughput[-1]
                if turn < 0:
                    continue
                kept = found[server.name][level]
                kept.throughput += figures.throughput
                kept.seconds += figures.seconds
                kept.processor += figures.processor
                kept.stages += figures.stages
            if turn >= 0:
                rates_now = ", ".join(f"{name} {each[level].throughput[-1]:.0f}" for name, each in found.items())
                console.print(
                    f"round {turn + 1} of {rounds}, concurrency {level}: {rates_now} images/s", soft_wrap=True
                )
    return found


def measure_round(server: Server, *, level: int, count: int) -> Found:
    """Send one closed load."""
    figures = Found()
    before, stages = server.processor(), server.statistics() if server.is_triton else {}
    answers = load.run(Load(count, concurrency=level), server.launch.wire, [server.picture])
    wrong = [reply for reply in answers if not reply.answered or reply.differing]
    if wrong:
        raise RuntimeError(f"{server.name} answered {len(wrong)} of {count} requests wrongly: {wrong[0]}")
    figures.add(answers)
    figures.processor.append({name: 1e3 * (at - before[name]) / count for name, at in server.processor().items()})
    if stages:
        figures.stages.append(per_image(stages, server.statistics()))
    return figures


def per_image(
    before: Mapping[str, Mapping[str, float]], after: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, float]]:
    """Return the milliseconds an image of each step by kind, and how many images its batches had."""
    steps: dict[str, dict[str, float]] = {}
    for step, totals in after.items():
        gained = {kind: total - before[step][kind] for kind, total in totals.items()}
        images, batches = gained.pop("images"), gained.pop("batches")
        steps[step] = {kind: value / images for kind, value in gained.items()} | {"batch": images / batches}
    return steps


# A real model ----------------------------------------------------------------------------------------------------


def measure_model(server: Server, file: Path, *, rounds: int) -> dict[str, float]:
    """Compare the ensemble with a bare loop over its core's file, in turns.

    Returns:
        Medians: `bare`, seconds an image of the loop; `latency`, of one request at a time; `loaded`, seconds an image
        with two requests in flight; and the ratios `latency_ratio` and `throughput_ratio` of the ensemble to the loop.
    """
    torch.set_num_threads(cores())
    model: Any = torch.jit.load(str(file))
    pixels = torch.randn((1, 3, 520, 520), generator=torch.Generator().manual_seed(0))
    bare: list[float] = []
    alone: list[float] = []
    loaded: list[float] = []

    def loop() -> None:
        for _ in range(2):
            start = time.perf_counter()
            model(pixels)
            bare.append(time.perf_counter() - start)

    with torch.inference_mode():
        loop()
        load.run(Load(2, concurrency=2), server.launch.wire, [server.picture])
        bare.clear()  # so far they warmed up
        for _ in range(rounds):
            loop()
            alone += replies.latencies(load.run(Load(2, concurrency=1), server.launch.wire, [server.picture]))
            loop()
            double = load.run(Load(8, concurrency=2), server.launch.wire, [server.picture])
            loaded.append(1 / replies.throughput(double))
    medians = {
        "bare": statistics.median(bare),
        "latency": statistics.median(alone),
        "loaded": statistics.median(loaded),
    }
    return medians | {
        "latency_ratio": medians["latency"] / medians["bare"],
        "throughput_ratio": medians["bare"] / medians["loaded"],
    }


# Command line ----------------------------------------------------------------------------------------------------


def parse() -> argparse.Namespace:
    """Read the command line."""
    parts = ("stages", "load", "model")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pipeline", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[*parts, []], metavar="|".join(parts), help="default: all")
    parser.add_argument(
        "--rounds", type=number(1, kind=int), default=3, help="visits to each server (default: %(default)s)"
    )
    parser.add_argument(
        "--concurrency",
        action="append",
        type=number(1, kind=int),
        metavar="N",
        help=f"may be repeated (default: {LEVELS})",
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="of one load (default: %(default)s)")
    parser.add_argument("--variant", choices=VARIANTS, default="resnet50", help="for `model` (default: %(default)s)")
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository", metavar="DIR")
    parser.add_argument("--peers-python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python", metavar="FILE")
    parser.add_argument("--output", type=Path, default=Path("out", "bench"), metavar="DIR")
    options = parser.parse_args()
    options.parts = options.parts or list(parts)
    options.model = options.model_repository / f"deeplabv3_{options.variant}" / "1" / "model.pt"
    if "model" in options.parts and not options.model.is_file():
        parser.error(
            f"{options.model} does not exist; build it (python build_models.py --variant {options.variant} --weights "
            "none --model-repository DIR), or give --model-repository, or only `stages` and `load`"
        )
    return options


def measure(options: argparse.Namespace, folder: Path, console: Console) -> dict[str, Any]:
    """Measure the chosen parts; return what pipeline.json gets."""
    image = folder / "picture.jpg"
    Image.open(PHOTOGRAPH).convert("RGB").resize(SIZE).save(image, quality=90)
    repository, idle = stand_in.build(folder / "models"), stand_in.build(folder / "idle", idle=True)
    stand_in_core = Core("stand-in", repository, "resnet50", [Picture(image, folder / "stand-in.mask")])
    idle_core = Core("stand-in", idle, "resnet50", [Picture(image, folder / "idle.mask")])
    record: dict[str, Any] = {"cores": cores(), "size": SIZE, "torch": torch.__version__}
    if "stages" in options.parts:
        record["stages"] = measure_stages(repository, image)
    if "load" in options.parts:
        wanted = [(TRITON, "Triton", stand_in_core), (IDLE, "Triton", idle_core)]
        rival = next(contender for contender in CONTENDERS if contender.name == RIVAL)
        lacking = missing(rival, installed(options.peers_python))
        if lacking:
            console.print(f"{RIVAL}: {lacking}", markup=False)
        else:
            wanted.append((RIVAL, RIVAL, stand_in_core))
        python = options.peers_python.absolute()
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(serving(*each, python=python)) for each in wanted]
            for server in servers:
                if not server.picture.mask.exists():  # what Triton answers, mosec must answer too
                    server.picture.mask.write_bytes(server.launch.wire.ask(image.read_bytes(), timeout=10))
            found = measure_load(
                servers,
                levels=options.concurrency or LEVELS,
                rounds=options.rounds,
                seconds=options.seconds,
                console=console,
            )
        record["load"] = {
            name: {level: asdict(each) for level, each in levels.items()} for name, levels in found.items()
        }
    if "model" in options.parts:
        core = Core(
            "model", options.model_repository.resolve(), options.variant, [Picture(image, folder / "model.mask")]
        )
        with serving(TRITON, "Triton", core, python=options.peers_python) as server:
            server.picture.mask.write_bytes(server.launch.wire.ask(image.read_bytes(), timeout=60))
            record["model"] = measure_model(server, options.model, rounds=options.rounds)
    return record


def main() -> None:
    """Run the command line."""
    options = parse()
    end_in_order()
    console = Console(width=None if sys.stdout.isatty() else 120)
    with tempfile.TemporaryDirectory(prefix="pipeline-") as folder:
        record = measure(options, Path(folder), console)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "pipeline.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for shown in pipeline_tables.tables(record):
        console.print(shown)
    written = ["pipeline.json"]
    if "load" in record:
        pipeline_tables.plot(record, options.output / "pipeline.png")
        written.append("pipeline.png")
    console.print(f"written: {options.output}/{', '.join(written)}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
