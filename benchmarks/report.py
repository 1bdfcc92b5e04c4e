"""The figures of a benchmark: medians and spread, ratios to a baseline, one record, one table, one plot.

What was measured comes as rows: a section, a contender, the condition that it was measured under, and its figures.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure as Picture
from rich.table import Table

from benchmarks.harness import cores
from deeplabv3.console import console

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from pathlib import Path

    from matplotlib.axes import Axes

PACKAGES = ("numpy", "nvidia-pytriton", "onnxruntime", "openvino", "torch", "torchvision", "tritonclient")
FAILED = "failed"
_WIDEST = 40


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on, where they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a contender: the median of what was measured, the quartiles, and of how many measurements."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, samples: Sequence[float]) -> Figure:
        """Return the figure of one or several measurements."""
        low, median, high = np.percentile(samples, (25, 50, 75)).tolist()
        return cls(median, low, high, len(samples))

    @property
    def spread(self) -> str:
        """Half of the distance between the quartiles, as a share of the median; nothing for one measurement."""
        return f"±{(self.high - self.low) / 2 / abs(self.median):.1%}" if self.count > 1 and self.median else ""


@dataclass(slots=True)
class Row:
    """What one contender did under one condition.

    Attributes:
        section: the part of the benchmark.
        contender: what was measured.
        condition: what it was measured under, by name.
        samples: the measurements of each figure, by name.
        notes: values that are not numbers.
        baseline: the contender that it is compared with.
        ratio: its figure divided by the baseline's.
    """

    section: str
    contender: str
    condition: dict[str, Any]
    samples: dict[str, list[float]] = field(default_factory=dict[str, "list[float]"])
    notes: dict[str, str] = field(default_factory=dict[str, str])
    baseline: str = ""
    ratio: float | None = None

    @property
    def figures(self) -> dict[str, Figure]:
        """The numbers, by name."""
        return {name: Figure.of(samples) for name, samples in self.samples.items() if samples}

    def text(self, name: str) -> str:
        """Return a figure as it is said in a line of text."""
        return f"{self.figures[name].median:.3g}"


class Column(NamedTuple):
    """A figure or a note in a table: its name in the row, the heading, and how a figure is written."""

    name: str
    heading: str
    scale: float = 1.0
    form: str = ".3g"


@dataclass(frozen=True, slots=True)
class Panel:
    """One of the plots in a picture: lines over a condition, or one bar for each contender.

    Attributes:
        section: of the rows.
        name: of the figure.
        label: of the figure's axis.
        title: above it.
        over: the condition on the other axis; bars of contenders where it is empty.
        scale: what figures are multiplied with.
        log: for the condition, base 2.
        stacked: draw contenders on top of each other instead of as lines.
        where: conditions that rows must have.
    """

    section: str
    name: str
    label: str
    title: str = ""
    over: str = ""
    scale: float = 1.0
    log: bool = False
    stacked: bool = False
    where: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Report:
    """The rows of one run. The record is written with all that is said or shown: a run that is cut off loses little.

    Attributes:
        rows: in the order in which they were added.
        skipped: what was not measured, and why.
        console: for what is shown.

    Args:
        name: of the files: NAME.json, NAME.png.
        folder: for them.
        about: what the record gets besides the machine and the versions.
    """

    def __init__(self, name: str, folder: Path, **about: Any) -> None:  # noqa: ANN401 - JSON
        self.rows: list[Row] = []
        self.skipped: dict[str, str] = {}
        self.console = console(columns=140)
        self._file = folder / f"{name}.json"
        self._about = {"benchmark": name, "machine": platform.machine(), "cores": cores(), "versions": versions()}
        self._about |= about
        folder.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        section: str,
        contender: str,
        condition: Mapping[str, Any],
        figures: Mapping[str, float | Sequence[float]],
        **notes: str,
    ) -> Row:
        """Add one or several measurements of each figure to the row of a contender under a condition."""
        row = next(
            (row for row in self.of(section, contender=contender, **condition) if row.condition == condition), None
        )
        if row is None:
            row = Row(section, contender, dict(condition))
            self.rows.append(row)
        for name, samples in figures.items():
            row.samples.setdefault(name, []).extend(samples if isinstance(samples, Sequence) else [samples])
        row.notes |= notes
        return row

    def skip(self, part: str, reason: str) -> None:
        """Note why something was not measured."""
        self.skipped[part] = reason
        self.say(f"{part}: {reason}")

    @contextlib.contextmanager
    def part(self, name: str) -> Generator[None]:
        """Let a part that fails cost the others nothing; `exit_code` tells of it."""
        try:
            yield
        except Exception as exc:  # noqa: BLE001 - named in the output and the exit code; the next part runs
            traceback.print_exc()
            self.skip(name, f"{FAILED}: {exc!r}"[:500])

    @property
    def exit_code(self) -> int:
        """1 where a part failed, 0 also where one was left out."""
        return int(any(reason.startswith(FAILED) for reason in self.skipped.values()))

    def say(self, text: str) -> None:
        """Print a line at once, because the run may be cut off."""
        self.write()
        self.console.print(text, markup=False, soft_wrap=True)
        sys.stdout.flush()

    def of(self, section: str, **wanted: Any) -> list[Row]:  # noqa: ANN401 - JSON
        """Return the rows of a section that have some conditions; `contender` counts as one."""
        return [
            row
            for row in self.rows
            if row.section == section
            and all(({"contender": row.contender} | row.condition).get(name) == each for name, each in wanted.items())
        ]

    def best(self, section: str, name: str, **wanted: Any) -> Row | None:  # noqa: ANN401 - JSON
        """Return the row with the highest figure; None where there is none."""
        rows = [row for row in self.of(section, **wanted) if name in row.figures]
        return max(rows, key=lambda row: row.figures[name].median, default=None)

    def compare(self, section: str, name: str, baselines: Mapping[str, Sequence[str]], *, high_is_good: bool) -> None:
        """Give rows the ratio of a figure to that of the best of some other contenders under the same condition.

        Args:
            section: of the rows.
            name: of the figure.
            baselines: contender -> those that it is compared with; those that were not measured are left out.
            high_is_good: whether the best one has the highest figure.
        """
        for row in self.of(section):
            others = [
                other
                for baseline in baselines.get(row.contender, ())
                for other in self.of(section, contender=baseline, **row.condition)
                if name in other.figures
            ]
            if others and name in row.figures:
                best = (max if high_is_good else min)(others, key=lambda other: other.figures[name].median)
                row.baseline, row.ratio = best.contender, row.figures[name].median / best.figures[name].median

    def show(self, title: str, rows: Sequence[Row], columns: Sequence[Column]) -> None:
        """Print rows as a table: contender, conditions, the columns that any row has, and the ratio."""
        columns = [c for c in columns if any(c.name in row.figures or row.notes.get(c.name) for row in rows)]
        conditions = list(dict.fromkeys(name for row in rows for name in row.condition))
        spread = next((c.name for c in columns for row in rows if row.figures.get(c.name, _NONE).count > 1), "")
        compared = any(row.ratio is not None for row in rows)
        table = Table(title=title)
        headings = [text for c in columns for text in ((c.heading, "spread") if c.name == spread else (c.heading,))]
        longest = max((len(row.contender) for row in rows), default=0)
        table.add_column("", overflow="fold", min_width=min(longest, _WIDEST))
        for heading in (*conditions, *headings, *(["ratio"] if compared else [])):
            table.add_column(heading, overflow="fold")
        for row in rows:
            cells = [row.contender, *(str(row.condition.get(name, "")) for name in conditions)]
            for column in columns:
                figure = row.figures.get(column.name)
                shown = row.notes.get(column.name, "") if figure is None else _text(figure, column)
                cells += [shown, figure.spread if figure else ""] if column.name == spread else [shown]
            if compared:
                cells.append("" if row.ratio is None else f"{row.ratio:.3f} of {row.baseline}")
            table.add_row(*cells)
        self.console.print(table, soft_wrap=True)
        sys.stdout.flush()
        self.write()

    def write(self) -> None:
        """Write the record."""
        partial = self._file.with_suffix(".partial")
        rows = [
            {
                "section": row.section,
                "contender": row.contender,
                "condition": row.condition,
                "figures": {name: asdict(figure) for name, figure in row.figures.items()},
                "notes": row.notes,
                "baseline": row.baseline,
                "ratio": row.ratio,
            }
            for row in self.rows
        ]
        record = {**self._about, "rows": rows, "skipped": self.skipped}
        partial.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        partial.replace(self._file)

    def plot(self, panels: Sequence[Panel], *, columns: int, ours: Sequence[str] = (), title: str = "") -> None:
        """Draw the panels, row by row; bars of `ours` are blue."""
        lines = -(-len(panels) // columns)
        picture = Picture(figsize=(4.4 * columns, 3.8 * lines), layout="constrained")
        for axes, panel in zip(picture.subplots(lines, columns, squeeze=False).flat, panels, strict=False):
            _draw(
                axes, panel, [row for row in self.of(panel.section, **panel.where) if panel.name in row.figures], ours
            )
        if title:
            picture.suptitle(title, fontsize="small", color="red")
        picture.savefig(self._file.with_suffix(".png"), dpi=150)

    def end(self) -> int:
        """Say where the results are; return the exit code."""
        self.write()
        written = sorted(file.name for file in self._file.parent.glob(f"{self._file.stem}.*"))
        self.say(f"written: {self._file.parent}: {', '.join(written)}")
        return self.exit_code


_NONE = Figure(0.0, 0.0, 0.0, 0)


def _text(figure: Figure, column: Column) -> str:
    return f"{figure.median * column.scale:{column.form}}"


def _draw(axes: Axes, panel: Panel, rows: Sequence[Row], ours: Sequence[str]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if not panel.over:
        names = [row.contender for row in rows]
        colors = ["tab:blue" if name in ours else "0.7" for name in names]
        values = [panel.scale * row.figures[panel.name].median for row in rows]
        axes.bar_label(axes.barh(range(len(names)), values, color=colors), fmt="%.3g", padding=3)
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.margins(x=0.2)
        axes.set(title=panel.title, xlabel=panel.label)
        return
    bottom: dict[Any, float] = {}
    for name in dict.fromkeys(row.contender for row in rows):
        mine = [row for row in rows if row.contender == name and panel.over in row.condition]
        places = [row.condition[panel.over] for row in mine]
        values = [panel.scale * row.figures[panel.name].median for row in mine]
        if panel.stacked:
            axes.bar([str(x) for x in places], values, bottom=[bottom.get(x, 0.0) for x in places], label=name)
            bottom |= {x: bottom.get(x, 0.0) + value for x, value in zip(places, values, strict=True)}
        else:
            axes.plot(places, values, marker="o", label=name)
    if panel.log and not panel.stacked:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    if not panel.stacked and all(isinstance(row.condition.get(panel.over), int) for row in rows):
        axes.set_xticks(sorted({row.condition[panel.over] for row in rows}))
    axes.set_ylim(bottom=0)
    axes.set(title=panel.title, xlabel=panel.over, ylabel=panel.label)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize="small")
