"""Progress and results: a table in a terminal, lines in a pipe, or JSON."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from deeplab_client._cli.formats import ANNOTATIONS, SUFFIXES
from deeplab_client._cli.streams import UnwritableError, clean, notice, one_line, say, warn_untrained

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from deeplab_client._cli.batch import Outcome

_MOST_ROWS = 40  # of the table; all failures are listed below it
_MOST_CLASSES = 3  # of one picture, in the table


@dataclass(slots=True)
class Tally:
    """Counts of the outcomes."""

    asked: int
    done: int = 0
    failed: int = 0
    skipped: int = 0
    untrained: bool = False

    def count(self, outcome: Outcome) -> bool:
        """Count one outcome; return whether it is the first of an untrained model."""
        if outcome.error is not None:
            self.failed += 1
        elif outcome.skipped:
            self.skipped += 1
        else:
            self.done += 1
        is_first = not self.untrained and outcome.found is not None and outcome.found["untrained"]
        self.untrained = self.untrained or is_first
        return is_first

    def summary(self, seconds: float, written: Path | None) -> str:
        """Return a summary of all outcomes."""
        parts = [f"{self.done} of {_pictures(self.asked)} segmented in {seconds:.1f} s"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.skipped:
            parts.append(f"{self.skipped} skipped, because they were done before (--force segments them again)")
        if written is not None:
            parts.append(f"output in {clean(written)}")
        return "; ".join(parts)


class Screen:
    """A progress bar on stderr during the run, and a table on stdout at the end."""

    def __init__(self, total: int, folder: Path | None) -> None:
        self._folder = folder
        self._notices = Console(stderr=True, highlight=False)
        self.bar = Progress(
            TextColumn("segmenting"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._notices,
            transient=True,
            disable=not self._notices.is_terminal,
        )
        self._task = self.bar.add_task("", total=total)
        self._outcomes: list[Outcome] = []
        self._untrained = False

    def report(self, outcome: Outcome) -> None:
        """Advance the bar; keep the outcome for the table."""
        self.bar.advance(self._task)
        self._outcomes.append(outcome)

    def warn(self, models: str) -> None:
        """Show a red panel at once."""
        self._untrained = True
        text = f"{models} answers with UNTRAINED WEIGHTS: its masks are noise, not segmentations."
        self._notices.print(Panel(text, title="UNTRAINED WEIGHTS", border_style="bold red"))

    def finish(self, summary: str) -> None:
        """Print the table and the summary."""
        self.bar.stop()
        console = Console(highlight=False)
        failed = [outcome for outcome in self._outcomes if outcome.error is not None]
        if len(failed) < len(self._outcomes):
            console.print(self._table([outcome for outcome in self._outcomes if outcome.error is None]))
        for outcome in failed:  # below the table, because reasons are too long for a column
            self._notices.print(Text(_failure(outcome), style="red"))
        console.print(Text(summary))

    def _table(self, outcomes: Sequence[Outcome]) -> Table:
        table = Table()
        if self._untrained:
            table.caption = "UNTRAINED WEIGHTS: noise, not segmentations"
            table.caption_style = "bold red"
        table.add_column("picture", overflow="fold")
        table.add_column("size", justify="right", no_wrap=True)
        table.add_column("classes", overflow="fold")
        # If all outputs are named after their picture, the summary names the folder, and the paths get the width.
        named = not all(_is_plain(outcome, self._folder) for outcome in outcomes)
        if named:
            table.add_column("output", overflow="fold")
        for outcome in outcomes[:_MOST_ROWS]:
            size, classes = ("", "skipped: done before")
            if outcome.found is not None:
                size, classes = _size(outcome.found), _classes(outcome.found)
            output = [Text("\n".join(map(clean, outcome.outputs)))] if named else []
            table.add_row(Text(clean(outcome.source.path)), size, Text(classes), *output)
        if len(outcomes) > _MOST_ROWS:
            table.add_row(f"and {len(outcomes) - _MOST_ROWS} more", style="dim")
        return table


class Lines:
    """One line for each picture: fields separated by tabs, or a JSON object."""

    def __init__(self, *, as_json: bool) -> None:
        self.bar = contextlib.nullcontext()
        self._as_json = as_json

    def report(self, outcome: Outcome) -> None:
        """Write a line at once; without --json, failed and skipped pictures go to stderr."""
        path, outputs, found = outcome.source.path, outcome.outputs, outcome.found
        if self._as_json:
            state = "failed" if outcome.error is not None else "skipped" if outcome.skipped else "done"
            about = {"path": str(path), "state": state, "outputs": [str(output) for output in outputs]}
            say(json.dumps({**about, "error": outcome.error, **(found or {})}))
        elif outcome.error is not None:
            notice(_failure(outcome))
        elif outcome.skipped:
            notice(f"{clean(path)}: skipped, because it was done before: {', '.join(map(clean, outputs))}")
        elif found is not None:
            top = found["top_class"]
            share = "" if top is None else f"{found['fractions'][top]:.4f}"
            written = [clean(output) for output in outputs] or [""]
            say("\t".join((clean(path), _size(found), one_line(top or ""), share, *written)))

    def warn(self, models: str) -> None:
        """Write to stderr at once, in addition to `untrained` in each object."""
        warn_untrained(models)

    def finish(self, summary: str) -> None:
        """Write the summary to stderr; JSON objects need none."""
        if not self._as_json:
            notice(summary)


class Failures:
    """Failures and warnings on stderr; stdout is for the file of the picture."""

    def __init__(self) -> None:
        self.bar = contextlib.nullcontext()

    def report(self, outcome: Outcome) -> None:
        """Write why a picture failed."""
        if outcome.error is not None:
            notice(_failure(outcome))

    def warn(self, models: str) -> None:
        """Write to stderr at once."""
        warn_untrained(models)

    def finish(self, summary: str) -> None:
        """Write nothing, because the file was written or its failure was reported."""


Reporter: TypeAlias = "Screen | Lines | Failures"


def reporter_of(total: int, output: str | None, *, as_json: bool) -> Reporter:
    """Return the reporter for standard output; `output` is - if the file of a picture goes there."""
    if output == "-":
        return Failures()
    if as_json or not sys.stdout.isatty():
        return Lines(as_json=as_json)
    return Screen(total, None if output is None else Path(output))


def report_all(outcomes: Iterable[Outcome], tally: Tally, reporter: Reporter, *, model: str) -> bool:
    """Count and report each outcome; return whether all could be reported."""
    all_reported = True
    for outcome in outcomes:
        if tally.count(outcome):
            reporter.warn(model)
        try:
            reporter.report(outcome)
        except UnwritableError as error:  # for example a full disk; the pictures are still segmented
            notice(str(error))
            all_reported = False
    return all_reported


def _pictures(count: int) -> str:
    return "1 picture" if count == 1 else f"{count} pictures"


def _size(found: dict[str, Any]) -> str:
    return f"{found['width']}x{found['height']}"


def _classes(found: dict[str, Any]) -> str:
    """Return the classes with the most pixels, without the background."""
    shares = [(name, share) for name, share in found["fractions"].items() if name != found["background"]]
    if not shares:
        return "background only"
    shown = ", ".join(f"{one_line(name)} {share:.1%}" for name, share in shares[:_MOST_CLASSES])
    more = len(shares) - _MOST_CLASSES
    return f"{shown}, {more} more" if more > 0 else shown


def _failure(outcome: Outcome) -> str:
    return f"{clean(outcome.source.path)}: {one_line(outcome.error or '')}"


def _is_plain(outcome: Outcome, folder: Path | None) -> bool:
    """Return whether the outputs are named after the picture, or are the annotations of all pictures."""
    if folder is None:
        return True
    name = outcome.source.name
    plain = {folder / name.with_name(name.name + suffix) for suffix in SUFFIXES.values()}
    return plain.issuperset(path for path in outcome.outputs if path.name != ANNOTATIONS)
