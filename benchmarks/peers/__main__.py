"""The served pipeline on Triton beside LitServe, BentoML, Ray Serve, mosec and TorchServe, on this CPU.

    .venv/bin/python -m benchmarks.peers [--model-repository DIR] [--variant resnet50] [--core model|stand-in]
        [--contender NAME] [--rounds 2] [--setups] [--peers-python .venv-peers/bin/python] [--output out/bench]

Every server gets the same model.pt, runs the repository's own image_ops and mask_ops around it, and is asked over HTTP
by the same load generator: JPEG bytes in, class ids out, one byte a pixel. One server at a time, in turns, the order
turned around from round to round; what is shown are medians. `model` is the real model; `stand-in` has a core that
costs nothing, so that what is measured is the server and the steps around it. How each peer is set up, and which other
setups were tried, stands in contenders.py; `--setups` measures them all. Printed, and written as peers.json and
peers.png.
"""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from rich.console import Console

from benchmarks import stand_in
from benchmarks.peers import reporting
from benchmarks.peers.contenders import CONTENDERS, ROOT, installed, missing
from benchmarks.peers.load import Picture
from benchmarks.peers.measuring import PLANS, Core, Result, ServerError, visit
from benchmarks.peers.running import end_in_order
from deeplabv3 import VARIANTS
from deeplabv3.arguments import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.peers.contenders import Contender

PHOTOGRAPH = ROOT / "tests" / "assets" / "cat.png"
STEPS = ("preprocess", "postprocess", "encode_mask")
# The sizes of photographs in the VOC data set and of a camera's preview; neighbours differ, so that a reply to another
# request is found out.
SIZES = ((500, 375), (375, 500), (640, 480), (480, 640))


def write_pictures(folder: Path, core: str) -> list[Picture]:
    """Write the photograph as JPEGs; their masks come from the first server."""
    pictures: list[Picture] = []
    for width, height in SIZES:
        file = folder / f"{width}x{height}.jpg"
        Image.open(PHOTOGRAPH).convert("RGB").resize((width, height)).save(file, quality=90)
        pictures.append(Picture(file, folder / f"{core}-{width}x{height}.mask"))
    return pictures


def link_models(repository: Path, folder: Path, variant: str) -> Path:
    """Make a repository with one variant and its steps alone: the other would take memory that nobody asks for."""
    folder.mkdir()
    for model in (*STEPS, f"deeplabv3_{variant}", f"segment_{variant}"):
        (folder / model).symlink_to(repository / model)
    return folder


def cores(options: argparse.Namespace, folder: Path) -> list[Core]:
    """Return what is to be served."""
    found: list[Core] = []
    for name in options.core or PLANS:
        if name == "stand-in":
            variant, repository = "resnet50", stand_in.build(folder / name)
        else:
            variant = options.variant
            repository = link_models(options.model_repository.resolve(), folder / name, variant)
        found.append(Core(name, repository, variant, write_pictures(folder, name)))
    return found


def measure_all(
    chosen: Sequence[tuple[Contender, str]], served: Sequence[Core], options: argparse.Namespace, console: Console
) -> list[Result]:
    """Visit every server in every round; what does not run is in its result."""
    began = time.monotonic()
    results: list[Result] = []
    for core in served:
        entries: list[tuple[Contender, Result]] = []
        for contender, lacking in chosen:
            setups = contender.setups[core.name] if options.setups else contender.setups[core.name][:1]
            entries += [(contender, Result(core.name, contender.name, setup, failure=lacking)) for setup in setups]
        results += [result for _, result in entries]
        for turn in range(options.rounds):
            for contender, result in entries[:: -1 if turn % 2 else 1]:
                if result.failure:
                    continue
                last = turn == options.rounds - 1 and not options.setups
                try:
                    visit(contender, core, result, python=options.peers_python.absolute(), overload=last)
                except ServerError as error:
                    result.failure = str(error)
                minutes, seconds = divmod(round(time.monotonic() - began), 60)
                console.print(
                    f"{minutes}:{seconds:02} {core.name}, round {turn + 1} of {options.rounds}: {contender.name}"
                    f" ({result.setup}): {result.failure or progress_text(result)}",
                    markup=False,
                    highlight=False,
                )
    return results


def progress_text(result: Result) -> str:
    """Return the throughputs so far."""
    return ", ".join(f"{result.throughput(level):.3g} images/s at {level}" for level in result.closed)


def parse() -> argparse.Namespace:
    """Read the command line."""
    names = [contender.name for contender in CONTENDERS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--contender", action="append", choices=names, help="may be repeated (default: all)")
    parser.add_argument("--core", action="append", choices=list(PLANS), help="may be repeated (default: both)")
    parser.add_argument("--variant", choices=VARIANTS, default="resnet50", help="of the model (default: %(default)s)")
    parser.add_argument("--model-repository", type=Path, default=ROOT / "model_repository", metavar="DIR")
    parser.add_argument(
        "--rounds", type=number(1, kind=int), default=2, help="visits to each server (default: %(default)s)"
    )
    parser.add_argument("--setups", action="store_true", help="every setup that was tried, and no overload")
    parser.add_argument("--peers-python", type=Path, default=ROOT / ".venv-peers" / "bin" / "python", metavar="FILE")
    parser.add_argument("--output", type=Path, default=Path("out", "bench"), metavar="DIR")
    options = parser.parse_args()
    model = options.model_repository / f"deeplabv3_{options.variant}" / "1" / "model.pt"
    if "model" in (options.core or PLANS) and not model.is_file():
        build = f"python build_models.py --variant {options.variant} --weights none --model-repository DIR"
        parser.error(f"{model} does not exist; build it ({build}), or give --model-repository, or --core stand-in")
    return options


def main() -> int:
    """Run the command line; return 1 when a server that is installed did not answer."""
    options = parse()
    end_in_order()
    # Where nobody looks at it yet, the tables are not squeezed into 80 columns.
    console = Console(width=None if sys.stdout.isatty() else 120)
    versions = installed(options.peers_python) | {"nvidia-pytriton": installed(Path(sys.executable))["nvidia-pytriton"]}
    wanted = [c for c in CONTENDERS if c.name in (options.contender or [c.name])]
    chosen = [(contender, missing(contender, versions)) for contender in wanted]
    with tempfile.TemporaryDirectory(prefix="peers-") as folder:
        served = cores(options, Path(folder))
        results = measure_all(chosen, served, options, console)
    records = [reporting.as_record(result) for result in results]
    options.output.mkdir(parents=True, exist_ok=True)
    record = {
        "cores": len(os.sched_getaffinity(0)),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "versions": {c.package: versions.get(c.package, "") for c in wanted} | {"torch": versions.get("torch", "")},
        "plans": {name: asdict(plan) for name, plan in PLANS.items()},
        "results": records,
    }
    (options.output / "peers.json").write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    reporting.plot(records, options.output / "peers.png")
    for core in served:
        shown = [each for each in records if each["core"] == core.name]
        console.print(reporting.load_table(shown, f"{core.name}: closed loads, {record['cores']} cores"))
        if not options.setups:
            console.print(
                reporting.overload_table(shown, f"{core.name}: twice that load for {core.plan.overload_seconds} s")
            )
    console.print(f"written: {options.output}/peers.json, peers.png")
    return int(any(result.failure and not result.failure.startswith("not installed") for result in results))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
