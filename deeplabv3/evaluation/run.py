"""One evaluation: open the data set and the predictors, measure with a progress bar, write the files."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from deeplabv3.building.plan import MEAN, STD
from deeplabv3.errors import RepositoryError
from deeplabv3.evaluation import EvaluationError, images
from deeplabv3.evaluation.coco import coco_with_voc_labels
from deeplabv3.evaluation.datasets import mask_folders, voc_folders
from deeplabv3.evaluation.measuring import measure
from deeplabv3.evaluation.predictors import Normalization, agreed_class_names, load_eager
from deeplabv3.evaluation.records import RecordFile, output_folder, writing
from deeplabv3.evaluation.report import draw, report
from deeplabv3.evaluation.served import DirectPredictor, EnsemblePredictor, Server
from deeplabv3.files import write_atomically
from deeplabv3.repository.class_names import read_class_names

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    from rich.console import Console

    from deeplabv3.evaluation.__main__ import Options
    from deeplabv3.evaluation.counting import Tally
    from deeplabv3.evaluation.datasets import Dataset
    from deeplabv3.evaluation.predictors import Predictor, PredictorFacts


def run(options: Options, console: Console) -> dict[str, Any]:
    """Measure, write the JSON and the picture, and return the content of the JSON.

    Raises:
        EvaluationError: the run could not start or continue.
        Interrupted: a signal came.
    """
    dataset = _open_dataset(options)
    with output_folder(options.output), _open_predictors(options) as (predictors, server):
        facts = [predictor.facts for predictor in predictors]
        class_names = agreed_class_names(dataset.class_names, predictors)
        _warn(facts, console)
        ids = dataset.ids[: options.limit]
        settings = {
            "dataset": dataset.facts,
            "image names, hashed": hashlib.sha256("\n".join(ids).encode("utf-8", "surrogateescape")).hexdigest()[:16],
            "classes": class_names,
            "limit": options.limit,
            "predictors": {each.name: asdict(each) for each in facts},
        }
        records = RecordFile(options.records, settings)
        if options.restart:
            records.discard()
        tally = _measure(options, dataset, predictors, ids, records, classes=len(class_names), console=console)
        content = report(dataset, facts, tally, class_names=class_names, server=server)
        files = {".json": f"{json.dumps(content, indent=1)}\n".encode(), ".png": draw(content)}
        for suffix, data in files.items():
            file = options.output / f"{options.name}{suffix}"
            with writing(file):
                write_atomically(file, data)
        # Only now, because the next run must measure again: the model may be another build.
        records.discard()
    return content


def _open_dataset(options: Options) -> Dataset:
    data = options.data
    match options.dataset:
        case "coco":
            return coco_with_voc_labels(data["annotations"], data["images"], drop_unannotated=data["drop_unannotated"])
        case "voc":
            return voc_folders(data["root"], split=data["split"])
        case "folders":
            try:
                names = None if data["classes"] is None else read_class_names(data["classes"])
            except RepositoryError as exc:
                raise EvaluationError(f"--classes {data['classes']}: {exc}") from exc
            return mask_folders(data["images"], data["masks"], class_names=names, ignore=data["ignore"])


@contextlib.contextmanager
def _open_predictors(options: Options) -> Generator[tuple[list[Predictor], str | None]]:
    """Yield the requested predictors and the server's version; close their connections at the end."""
    with contextlib.ExitStack() as stack:
        predictors: list[Predictor] = []

        def keep(predictor: Predictor) -> None:
            stack.callback(predictor.close)
            predictors.append(predictor)

        version = None
        normalization = Normalization(options.mean or MEAN, options.std or STD)
        if options.direct or options.ensemble:
            # Before the module is loaded, so that a missing server is reported at once.
            server = Server.of(options.url)
            version = server.version()
            for model in options.direct:
                keep(DirectPredictor(server, model, timeout=options.timeout, normalization=normalization))
            for model in options.ensemble:
                keep(EnsemblePredictor(server, model, timeout=options.timeout))
        for variant in options.eager:
            keep(
                load_eager(
                    variant,
                    options.weights,
                    device=options.device,
                    normalization=normalization,
                    progress=sys.stderr.isatty(),
                )
            )
        # In the order of the table: the closest to PyTorch first.
        order = ("eager", "direct", "ensemble")
        yield sorted(predictors, key=lambda predictor: order.index(predictor.facts.kind)), version


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f} images/s")


def _measure(
    options: Options,
    dataset: Dataset,
    predictors: Sequence[Predictor],
    ids: Sequence[str],
    records: RecordFile,
    *,
    classes: int,
    console: Console,
) -> Tally:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeRemainingColumn())
    # No bar in a pipe; the line at the end replaces it.
    with Progress(*columns, console=console, disable=not console.is_terminal, speed_estimate_period=600) as progress:
        task = progress.add_task(options.name, total=len(ids))
        resumed: list[int] = []

        def on_progress(done: int) -> None:
            if not resumed:
                resumed.append(done)
                if done:
                    console.print(f"resuming after {done} of {images(len(ids))}")
                # The rate is that of this run.
                progress.reset(task, total=len(ids), completed=done)
            progress.update(task, completed=done)

        def on_stopping(in_flight: int) -> None:
            console.print(f"stopping after {images(in_flight)} in flight; another signal stops immediately")

        tally = measure(
            dataset,
            predictors,
            ids,
            records,
            classes=classes,
            concurrency=options.concurrency,
            on_progress=on_progress,
            on_stopping=on_stopping,
        )
    rate = f"{len(tally.done) / tally.seconds:.2f} images/s" if tally.seconds else ""
    console.print(f"{images(len(tally.done))} in {tally.seconds:.1f} s, {rate}", soft_wrap=True)
    return tally


def _warn(facts: Sequence[PredictorFacts], console: Console) -> None:
    untrained = [each.name for each in facts if each.untrained]
    if untrained:
        names = ", ".join(untrained)
        text = f"The weights of {names} are random: this run only tests the software, and its figures mean nothing."
        console.print(Panel(text, title="UNTRAINED WEIGHTS", border_style="bold red"))
