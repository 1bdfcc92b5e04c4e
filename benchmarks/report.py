"""The results of a benchmark: medians, spread, ratios to a baseline, a JSON record, tables and a plot.

Results are rows: a section, a contender, the condition under which it was measured, and its figures.
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
_COLUMNS = 2  # of panels in a plot: the text of more is too small at a width of 800 pixels
_SHORT_NAME = 14  # characters; three such names fit into a row of a legend


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that figures depend on, where they are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a contender: median, quartiles and number of the measurements."""

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
        """Half of the interquartile range, relative to the median; empty for one measurement."""
        return f"±{(self.high - self.low) / 2 / abs(self.median):.1%}" if self.count > 1 and self.median else ""


@dataclass(slots=True)
class Row:
    """The results of one contender under one condition.

    Attributes:
        section: the part of the benchmark.
        contender: what was measured.
        condition: name and value of everything that was varied.
        samples: the measurements of each figure, by name.
        notes: values that are not numbers.
        baseline: the contender that this one is compared with.
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
        """The figures, by name."""
        return {name: Figure.of(samples) for name, samples in self.samples.items() if samples}

    def text(self, name: str) -> str:
        """Return the median of a figure with three digits."""
        return f"{self.figures[name].median:.3g}"


class Column(NamedTuple):
    """A column of a table: name of the figure or note, heading, factor and number format."""

    name: str
    heading: str
    scale: float = 1.0
    form: str = ".3g"


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel of a plot: lines over a condition, or one bar for each contender, the best first.

    Attributes:
        section: of the rows.
        name: of the figure.
        title: above the panel.
        label: of the figure's axis, with the unit; "higher is better" or "lower is better" is added.
        high_is_good: whether a higher figure is better.
        over: the condition on the other axis; without it, bars.
        over_label: of that axis; the name of the condition by default.
        scale: factor for the figures.
        log: logarithmic axis for the condition, base 2.
        stacked: stack the contenders as bars instead of drawing lines.
        where: conditions that rows must have.
    """

    section: str
    name: str
    title: str
    label: str
    high_is_good: bool = False
    over: str = ""
    over_label: str = ""
    scale: float = 1.0
    log: bool = False
    stacked: bool = False
    where: Mapping[str, Any] = field(default_factory=dict[str, Any])


class Report:
    """The rows of one run. Each printed line and table also writes the record, so that an aborted run loses little.

    Attributes:
        rows: in the order in which they were added.
        skipped: parts that were not measured, and the reasons.
        console: for the output.

    Args:
        name: of the files: NAME.json, NAME.png.
        folder: of the files.
        about: further entries of the record, in addition to the machine and the versions.
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
        """Record and print why a part was not measured."""
        self.skipped[part] = reason
        self.say(f"{part}: {reason}")

    @contextlib.contextmanager
    def part(self, name: str) -> Generator[None]:
        """Record a failure of a part, so that the other parts still run; `exit_code` becomes 1."""
        try:
            yield
        except Exception as exc:  # noqa: BLE001 - it is printed and recorded; the next part runs
            traceback.print_exc()
            self.skip(name, f"{FAILED}: {exc!r}"[:500])

    @property
    def exit_code(self) -> int:
        """1 if a part failed; parts that were left out do not count."""
        return int(any(reason.startswith(FAILED) for reason in self.skipped.values()))

    def say(self, text: str) -> None:
        """Print a line at once, because the run may be aborted."""
        self.write()
        self.console.print(text, markup=False, soft_wrap=True)
        sys.stdout.flush()

    def of(self, section: str, **wanted: Any) -> list[Row]:  # noqa: ANN401 - JSON
        """Return the rows of a section with the given conditions; `contender` counts as a condition."""
        return [
            row
            for row in self.rows
            if row.section == section
            and all(({"contender": row.contender} | row.condition).get(name) == each for name, each in wanted.items())
        ]

    def best(self, section: str, name: str, **wanted: Any) -> Row | None:  # noqa: ANN401 - JSON
        """Return the row with the highest figure, or None."""
        rows = [row for row in self.of(section, **wanted) if name in row.figures]
        return max(rows, key=lambda row: row.figures[name].median, default=None)

    def compare(self, section: str, name: str, baselines: Mapping[str, Sequence[str]], *, high_is_good: bool) -> None:
        """Set the ratio of each row to the best of its baselines under the same condition.

        Args:
            section: of the rows.
            name: of the figure.
            baselines: contender -> contenders to compare it with; those that were not measured are ignored.
            high_is_good: whether a higher figure is better.
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
        """Print rows as a table: contender, conditions, the columns that at least one row has, and the ratio."""
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

    def plot(self, panels: Sequence[Panel], *, title: str, warning: str = "", ours: Sequence[str] = ()) -> None:
        """Draw the panels in rows of two, those without data left out; bars of `ours` are blue."""
        drawn = [
            (panel, rows)
            for panel in panels
            if (rows := [row for row in self.of(panel.section, **panel.where) if panel.name in row.figures])
        ]
        if not drawn:
            return
        lines = -(-len(drawn) // _COLUMNS)
        # Inches of a panel: of lines with a legend, or of the largest number of bars.
        height = 3.8 if any(panel.over for panel, _ in drawn) else 1.1 + 0.27 * max(len(rows) for _, rows in drawn)
        picture = Picture(figsize=(4.4 * _COLUMNS, height * lines), layout="constrained")
        every_axes = list(picture.subplots(lines, _COLUMNS, squeeze=False).flat)
        for axes, (panel, rows) in zip(every_axes, drawn, strict=False):
            _draw(axes, panel, rows, ours)
        for axes in every_axes[len(drawn) :]:
            axes.remove()
        picture.suptitle(f"{title}\n{warning}".strip(), color="red" if warning else "black", fontsize="large")
        picture.savefig(self._file.with_suffix(".png"), dpi=150)

    def end(self) -> int:
        """Print where the results are, and return the exit code."""
        self.write()
        written = sorted(file.name for file in self._file.parent.glob(f"{self._file.stem}.*"))
        self.say(f"results in {self._file.parent}: {', '.join(written)}")
        return self.exit_code


_NONE = Figure(0.0, 0.0, 0.0, 0)


def _text(figure: Figure, column: Column) -> str:
    return f"{figure.median * column.scale:{column.form}}"


def _draw(axes: Axes, panel: Panel, rows: Sequence[Row], ours: Sequence[str]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(panel.title, fontsize="medium")
    label = f"{panel.label} ({'higher' if panel.high_is_good else 'lower'} is better)"
    if panel.over:
        _draw_over(axes, panel, rows)
        axes.set(xlabel=panel.over_label or panel.over, ylabel=label)
    else:
        _draw_bars(axes, panel, rows, ours)
        axes.set_xlabel(label)


def _draw_bars(axes: Axes, panel: Panel, rows: Sequence[Row], ours: Sequence[str]) -> None:
    rows = sorted(rows, key=lambda row: row.figures[panel.name].median, reverse=panel.high_is_good)
    names = [row.contender for row in rows]
    colors = ["tab:blue" if name in ours else "0.7" for name in names]
    values = [panel.scale * row.figures[panel.name].median for row in rows]
    bars = axes.barh(range(len(names)), values, color=colors)
    axes.bar_label(bars, [_three_digits(value) for value in values], padding=3)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.2)


def _three_digits(value: float) -> str:
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"  # noqa: PLR2004 - no digits after the point from here


def _draw_over(axes: Axes, panel: Panel, rows: Sequence[Row]) -> None:
    bottom: dict[Any, float] = {}
    names = list(dict.fromkeys(row.contender for row in rows))
    for name in names:
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
    # Below the axis and its label, so that it covers no points.
    axes.legend(
        frameon=False,
        fontsize="small",
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        borderaxespad=4.5,
        ncols=3 if max(map(len, names)) <= _SHORT_NAME else 2,
    )
