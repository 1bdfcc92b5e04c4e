"""The command: datasets and predictors from options, the run, and what it leaves."""

from __future__ import annotations

if __name__ == "__main__":
    from deeplabv3.environment import guard

    guard()

import contextlib
import json
import logging
import os
import signal
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from deeplabv3.evaluation import arguments, measuring
from deeplabv3.evaluation.errors import EvaluationError
from deeplabv3.evaluation.report import report, table
from deeplabv3.evaluation.state import StateFile, output_folder, write_whole

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from deeplabv3.evaluation.predictors import Predictor, PredictorFacts
    from deeplabv3.evaluation.samples import Dataset
    from deeplabv3.evaluation.tally import Tally

EXIT_FAILED = 1
# A pipe has no width; this one holds three predictors.
_TABLE_COLUMNS = 120


def open_dataset(options: arguments.Options) -> Dataset:
    """Open the data set that was asked for."""
    if isinstance(options.data, arguments.CocoData):
        from deeplabv3.evaluation.coco import CocoWithVocLabels  # noqa: PLC0415  only the format in use is loaded

        data = options.data
        return CocoWithVocLabels(data.annotations, data.images, drop_unannotated=data.drop_unannotated)
    from deeplabv3.evaluation.voc_folders import VocFolders  # noqa: PLC0415  only the format in use is loaded

    return VocFolders(options.data.root, split=options.data.split)


@contextlib.contextmanager
def open_predictors(options: arguments.Options) -> Generator[tuple[list[Predictor], str | None]]:
    """Yield the predictors that were asked for and the server's version; close their connections at the end."""
    from deeplabv3.evaluation.served import CorePredictor, EnsemblePredictor  # noqa: PLC0415  loads gRPC
    from deeplabv3.evaluation.server import Address  # noqa: PLC0415  loads gRPC

    with contextlib.ExitStack() as stack:
        predictors: list[Predictor] = []

        def keep(predictor: Predictor) -> None:
            stack.callback(predictor.close)
            predictors.append(predictor)

        version = None
        if options.core or options.ensemble:
            # Before the module is loaded: a server that is down should be told at once.
            address = Address.of(options.url)
            version = address.server_version()
            for model in options.core:
                keep(CorePredictor(address, model, timeout=options.timeout))
            for model in options.ensemble:
                keep(EnsemblePredictor(address, model, timeout=options.timeout))
        if options.eager:
            from deeplabv3.evaluation import eager  # noqa: PLC0415  loads torch

            for variant in options.eager:
                keep(eager.load(variant, options.weights, device=options.device, progress=sys.stderr.isatty()))
        # As the table shows them: what is closest to PyTorch first.
        order = ("eager", "core", "ensemble")
        yield sorted(predictors, key=lambda predictor: order.index(predictor.facts.kind)), version


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s")


def run(options: arguments.Options, console: Console) -> dict[str, Any]:
    """Measure, and leave the JSON and the picture; return the former.

    Raises:
        EvaluationError: the run could not start or go on.
        measuring.Interrupted: by a signal.
    """
    dataset = open_dataset(options)
    with output_folder(options.output), open_predictors(options) as (predictors, server):
        facts = [predictor.facts for predictor in predictors]
        _warn(facts, console)
        settings = {
            "dataset": dataset.facts,
            "limit": options.limit,
            "predictors": {each.name: asdict(each) for each in facts},
        }
        state = StateFile(options.output / f"{options.name}.state.json", settings)
        if options.restart:
            state.discard()
        tally = _measure(options, dataset, predictors, state, console=console)
        content = report(dataset, facts, tally, server=server)
        write_whole(options.output / f"{options.name}.json", json.dumps(content, indent=1) + "\n")
        from deeplabv3.evaluation.picture import draw  # noqa: PLC0415  matplotlib takes a second to load

        draw(content, options.output / f"{options.name}.png")
        # Only now: what is finished is measured anew by the next run, which may meet another build of the model.
        state.discard()
    return content


def _measure(
    options: arguments.Options, dataset: Dataset, predictors: Sequence[Predictor], state: StateFile, *, console: Console
) -> Tally:
    ids = dataset.ids[: options.limit]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    # In a pipe a bar would be noise; the line at the end stands for it.
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=600) as progress:
        task = progress.add_task(options.name, total=len(ids))
        resumed: list[int] = []

        def on_progress(done: int) -> None:
            if not resumed:
                resumed.append(done)
                if done:
                    console.print(f"going on after {done} of {len(ids)} images")
                # The rate is that of this sitting.
                progress.reset(task, total=len(ids), completed=done)
            progress.update(task, completed=done)

        def on_stopping(in_flight: int) -> None:
            console.print(f"stopping after {in_flight} images that are in flight; once more stops at once")

        tally = measuring.measure(
            dataset,
            predictors,
            ids,
            state,
            concurrency=options.concurrency,
            on_progress=on_progress,
            on_stopping=on_stopping,
        )
    rate = f"{len(tally.done) / tally.seconds:.2f} images/s" if tally.seconds else ""
    console.print(f"{len(tally.done)} images in {tally.seconds:.1f} s, {rate}", soft_wrap=True)
    return tally


def _warn(facts: Sequence[PredictorFacts], console: Console) -> None:
    untrained = [each.name for each in facts if each.untrained]
    if untrained:
        names = ", ".join(untrained)
        text = f"The weights of {names} are random: the run checks the machinery, and its figures mean nothing."
        console.print(Panel(text, title="UNTRAINED WEIGHTS", border_style="bold red"))


def main(command: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code: 0, 1 (failed), 128 + n (signal n; the same command goes on)."""
    options = arguments.parse(command)
    # The client says it of every untrained model that it meets; here the panel does.
    logging.getLogger("deeplab_client").setLevel(logging.ERROR)
    console = Console(stderr=True, highlight=False)
    state = options.output / f"{options.name}.state.json"
    try:
        content = run(options, console)
    except EvaluationError as exc:
        sys.stderr.write(f"deeplabv3.evaluation: {exc}\n")
        if state.exists():
            sys.stderr.write(
                f"deeplabv3.evaluation: what was counted is in {state}; the same command goes on from there\n"
            )
        return EXIT_FAILED
    except measuring.Interrupted as exc:
        sys.stderr.write(
            f"deeplabv3.evaluation: interrupted; {state} has what was counted, the same command goes on from there\n"
        )
        if exc.abandoned:
            # Threads that wait for a server or a file cannot be ended, and Python would wait for them.
            sys.stderr.flush()
            os._exit(128 + exc.number)
        return 128 + exc.number
    except KeyboardInterrupt:
        sys.stderr.write("deeplabv3.evaluation: interrupted\n")
        return 128 + signal.SIGINT
    if options.json:
        sys.stdout.write(json.dumps(content, indent=1) + "\n")
    else:
        out = Console(highlight=False)
        Console(highlight=False, width=None if out.is_terminal else _TABLE_COLUMNS).print(table(content))
        sys.stdout.write(f"{options.output / options.name}.json and .png\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
