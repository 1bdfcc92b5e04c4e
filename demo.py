"""Segment a photograph end to end on this machine: build the models, start Triton, call it over gRPC and HTTP.

    python demo.py                      the photograph of the tests
    python demo.py --image photo.jpg    your own photograph
    python demo.py --page               a page in the browser, until Ctrl-C

Writes out/demo/segment_<variant>.png and the server's log. The exit code is 0 only if both protocols return the same
mask for both variants.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent))  # `python -P` leaves it out
    from deeplabv3.environment import guard

    guard()

import logging
import os
import shlex
import subprocess
import time
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.panel import Panel
from rich.table import Table

from deeplab_client import Segmentation, SegmentationClient, SegmentationError
from deeplabv3 import PRETRAINED, UNTRAINED, VARIANTS, DeepLabV3Error, WeightsSource, WeightsUnavailableError
from deeplabv3.building.assembly import build
from deeplabv3.building.plan import Plan
from deeplabv3.building.steps import MODEL_REPOSITORY
from deeplabv3.command_line import Parser, unwind_on_sigterm
from deeplabv3.console import console
from deeplabv3.embedded.launch import LaunchError, RunningServer
from deeplabv3.models.names import ensemble_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

ROOT = Path(__file__).resolve().parent
PHOTOGRAPH = ROOT / "tests" / "assets" / "cat.png"
ENSEMBLES = tuple(map(ensemble_name, VARIANTS))

# The first request on a laptop may meet cold caches, so the deadline is generous.
_REQUEST_SECONDS = 120.0
_SHOWN_CLASSES = 8


def build_both(wanted: Path | None, output: Path, screen: Console) -> Path:
    """Build both variants, with untrained weights if the pretrained weights cannot be downloaded.

    Returns:
        The model repository: the wanted one, else model_repository, else a folder in the output for untrained models,
        which would change the config.pbtxt files of model_repository.
    """
    repository = (wanted or MODEL_REPOSITORY).resolve()
    try:
        build(repository, [Plan(variant, WeightsSource(PRETRAINED)) for variant in VARIANTS])
    except WeightsUnavailableError as exc:
        sys.stderr.write(f"demo.py: {exc}\n")
    else:
        return repository
    screen.print(
        Panel(
            "The pretrained weights could not be downloaded (see above). The demo continues with UNTRAINED weights: "
            "every step runs as usual, but the masks are noise. docs/install.md, Without internet, has the two "
            "files; put them in place and run this command again.",
            title="UNTRAINED WEIGHTS",
            border_style="bold red",
        )
    )
    repository = (wanted or output / "model_repository").resolve()
    build(repository, [Plan(variant, WeightsSource(UNTRAINED)) for variant in VARIANTS])
    return repository


def segment(url: str, image: Path) -> dict[str, Segmentation]:
    """Return the result of each ensemble, by its name, over the protocol of the URL."""
    with SegmentationClient(url, timeout=_REQUEST_SECONDS) as client:
        return {model: client.segment(image, model=model) for model in ENSEMBLES}


def shares(results: dict[str, Segmentation], image: Path) -> Table:
    """Return a table of the classes that each ensemble found, largest share first."""
    sides = next(iter(results.values())).mask.shape
    table = Table(title=f"{image.name}, {sides[1]} x {sides[0]} pixels: share of the pixels")
    if any(result.untrained for result in results.values()):
        table.caption = "UNTRAINED WEIGHTS: noise, not a segmentation"
        table.caption_style = "bold red"
    table.add_column("class")
    for model in results:
        table.add_column(model, justify="right", overflow="fold")
    found = {name for result in results.values() for name in result.pixel_counts}
    ranked = sorted(found, key=lambda name: -max(result.fraction(name) for result in results.values()))
    for name in ranked[:_SHOWN_CLASSES]:
        table.add_row(name, *(f"{result.fraction(name):.1%}" for result in results.values()))
    if len(ranked) > _SHOWN_CLASSES:
        rest = ranked[_SHOWN_CLASSES:]
        sums = (sum(result.fraction(name) for name in rest) for result in results.values())
        table.add_row(f"{len(rest)} more", *(f"{share:.1%}" for share in sums))
    table.add_section()
    majority = (f"{result.top_class or 'none'}{' (noise)' if result.untrained else ''}" for result in results.values())
    table.add_row("majority class", *majority, style="bold")
    table.add_row("weights", *(str(result.weights) for result in results.values()))
    return table


def serve_page(url: str, example: Path) -> int:
    """Serve the client's page until Ctrl-C; return its exit code."""
    command = [sys.executable, "-m", "deeplab_client", "page", "--url", url, "--port", "0", "--example", str(example)]
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        command.append("--open")
    with subprocess.Popen(command) as process:  # noqa: S603 - our own command
        try:
            return process.wait()
        finally:
            process.terminate()


def run(image: Path, wanted: Path | None, output: Path, *, page: bool = False) -> int:
    """Run the demo in the wanted model repository, or in the one that `build_both` chooses; return the exit code."""
    screen = console()
    started = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    repository = build_both(wanted, output, screen)
    log = output / "server.log"
    screen.print(f"starting Triton with the models in {_shown(repository)}; log: {_shown(log)}", soft_wrap=True)
    with RunningServer(repository, log=log) as server:
        screen.print(f"Triton is ready: grpc://{server.grpc_url} http://{server.http_url}")
        try:
            if page:
                return serve_page(f"grpc://{server.grpc_url}", image)
            results = segment(f"grpc://{server.grpc_url}", image)
            over_http = segment(f"http://{server.http_url}", image)
        finally:
            screen.print("stopping the server")

    screen.print(shares(results, image))
    agree = True
    for model, result in results.items():
        differing = int(np.count_nonzero(result.mask != over_http[model].mask))
        agree = agree and differing == 0
        verdict = "agree pixel for pixel" if differing == 0 else f"DISAGREE on {differing} pixels"
        picture = output / f"{model}.png"
        result.overlay(image, legend=True).save(picture)
        screen.print(f"{model}: gRPC and HTTP {verdict}; picture: {_shown(picture)}", soft_wrap=True)
    screen.print(f"done in {time.monotonic() - started:.0f} s")
    screen.print(_next_steps(repository, image), markup=False, soft_wrap=True)
    return 0 if agree else 1


def _next_steps(repository: Path, image: Path) -> str:
    """Return the commands to run next, quoted for a shell."""
    folder = Path(sys.executable).parent
    paths = (folder / "python", ROOT / "serve.py", folder / "deeplab", image)
    python, serve, deeplab, picture = (shlex.quote(_shown(path)) for path in paths)
    served = "" if repository == MODEL_REPOSITORY else f" --model-repository {shlex.quote(_shown(repository))}"
    return (
        "\nnext steps, in two terminals (see client/README.md and docs/serving.md):\n"
        f"  {python} {serve}{served}\n"
        f"  {deeplab} segment {picture} --url grpc://localhost:8001 --output out/segmented"
    )


def _shown(path: Path) -> str:
    """Return a path relative to the working directory if it is inside of it."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = Parser(description="Segment a photograph end to end on this machine.")
    parser.add_argument(
        "--image", type=Path, default=PHOTOGRAPH, help="image file: JPEG, PNG, WebP or another format (default: a cat)"
    )
    parser.add_argument(
        "--model-repository",
        type=Path,
        metavar="DIR",
        help="folder to build into and to serve (default: model_repository, or one in --output for untrained models)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "out" / "demo",
        metavar="DIR",
        help="folder for the pictures and the log (default: out/demo)",
    )
    parser.add_argument(
        "--page", action="store_true", help="serve a web page that segments your pictures, until Ctrl-C"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    unwind_on_sigterm()
    # The client warns about untrained models; here the panel, the table and the pictures do.
    logging.getLogger("deeplab_client").setLevel(logging.ERROR)
    try:
        with Image.open(options.image) as picture:
            picture.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        parser.error(f"--image {options.image} cannot be read as an image: {exc}")
    try:
        return run(options.image, options.model_repository, options.output, page=options.page)
    except (DeepLabV3Error, LaunchError, SegmentationError, OSError) as exc:
        sys.stderr.write(f"demo.py: {exc}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("demo.py: interrupted\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
