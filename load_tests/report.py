"""The report of a run: tables at the end of the log, and the first part of Locust's HTML report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from deeplabv3 import server_statistics
from load_tests.objectives import UNMEASURED
from load_tests.summary import SHOWN_PERCENTILES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from load_tests.objectives import Verdict
    from load_tests.summary import Kind, Summary

_LATENCIES = (*(f"p{100 * share:g}, s" for share in SHOWN_PERCENTILES), "mean, s")
_LABELS = {
    "rate": "requests per second of each user",
    **{name: f"{name.replace('_', ' ')} (s)" for name in ("think_time", "stage_time", "timeout")},
}
_STYLE = """
#verdict { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0; padding: 24px 32px; }
#verdict h1 { font-size: 26px; margin: 0 0 4px; padding: 14px 18px; border-radius: 6px; }
#verdict h2 { font-size: 18px; margin: 26px 0 6px; } #verdict h2::first-letter { text-transform: uppercase; }
#verdict table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
#verdict th, #verdict td { text-align: right; padding: 4px 14px 4px 0; border-bottom: 1px solid #ddd; }
#verdict th:first-child, #verdict td:first-child { text-align: left; }
#verdict table.facts td { text-align: left; vertical-align: top; }
#verdict .facts td:first-child { white-space: nowrap; }
#verdict .good { color: #1b7f3b; } #verdict .bad { color: #b3261e; font-weight: 600; } #verdict p { margin: 4px 0; }
#verdict h1.good { color: #fff; background: #1b7f3b; } #verdict h1.bad { color: #fff; background: #b3261e; }
"""


class Good(str):
    """A cell that is shown in green."""

    __slots__ = ()


class Bad(str):
    """A cell that is shown in red."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A table with a title; its first column is a name, the others are numbers."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def table(self) -> Table:
        """Return the table for the terminal."""
        table = Table(title=_text(self.title))
        for index, column in enumerate(self.columns):
            table.add_column(column, justify="right" if index else "left", overflow="fold")
        for row in self.rows:
            table.add_row(*(_text(cell) for cell in row))
        return table

    def html(self) -> str:
        """Return the table as HTML."""
        head = "".join(f"<th>{escape(column)}</th>" for column in self.columns)
        rows = "".join(f"<tr>{''.join(f'<td>{_span(cell)}</td>' for cell in row)}</tr>" for row in self.rows)
        return f"<h2>{escape(self.title)}</h2><table><tr>{head}</tr>{rows}</table>"


def _text(cell: str) -> Text:
    return Text(cell, style="green" if isinstance(cell, Good) else "bold red" if isinstance(cell, Bad) else "")


def _span(cell: str) -> str:
    mark = "good" if isinstance(cell, Good) else "bad" if isinstance(cell, Bad) else ""
    return f'<span class="{mark}">{escape(cell)}</span>' if mark else escape(cell)


def verdict_of(verdicts: Sequence[Verdict]) -> Good | Bad:
    """Return the verdict of the run in one line."""
    unmeasured = sum(verdict.missed_by == UNMEASURED for verdict in verdicts)
    missed = sum(not verdict.met for verdict in verdicts) - unmeasured
    if not missed and not unmeasured:
        return Good(f"all {len(verdicts)} objectives met")
    return Bad(f"{missed} of {len(verdicts)} objectives missed" + f", {unmeasured} not measured" * bool(unmeasured))


def _objectives(verdicts: Sequence[Verdict]) -> Section:
    def mark(verdict: Verdict) -> str:
        if verdict.met:
            return Good("met")
        return Bad(UNMEASURED if verdict.missed_by == UNMEASURED else f"missed by {verdict.missed_by}")

    rows = [(verdict.what, verdict.bound, verdict.measured, mark(verdict)) for verdict in verdicts]
    return Section(verdict_of(verdicts), ("objective", "bound", "measured", ""), rows)


def _requests(summary: Summary) -> Section:
    title = f"{summary.setting.get('loop', '')} loop: {summary.answered_per_second:.2f} correct replies per second"
    rows = [(kind.title, *_cells(kind)) for kind in (*summary.kinds, summary.total)]
    return Section(title, ("requests", "correct", "failed", *_LATENCIES), rows)


def _stages(summary: Summary) -> Section:
    rows: list[tuple[str, ...]] = []
    for stage in summary.stages:
        _, failed, *latencies = _cells(stage.total)
        rate = f"{stage.answered_per_second:.2f}"
        rows.append((str(stage.users), f"{stage.seconds:.0f}", rate, failed, *latencies))
    title = f"{summary.setting.get('loop', '')} loop, by stage"
    return Section(title, ("users", "s", "correct replies/s", "failed", *_LATENCIES), rows)


def _cells(kind: Kind) -> list[str]:
    values = [*(kind.seconds(share) for share in SHOWN_PERCENTILES), kind.mean_seconds()]
    return [
        str(kind.requests - kind.failures),
        Bad(kind.failures) if kind.failures else "0",
        *("-" if value is None else f"{value:.3f}" for value in values),
    ]


def _failures(summary: Summary) -> Section:
    ordered = sorted(summary.failures.items(), key=lambda item: -item[1])
    return Section("failures", ("reason", "requests"), [(reason, Bad(count)) for reason, count in ordered])


def _server(summary: Summary) -> Section:
    rows: list[tuple[str, ...]] = []
    for model, counts in sorted(summary.server.items()):
        means = server_statistics.means(counts)
        sizes = {int(size): batch["executions"] for size, batch in counts["batches"].items() if batch["executions"]}
        shown = ", ".join(f"{number} of {size}" for size, number in sorted(sizes.items()))
        batch = f"{means['batch']:.2f}" if counts["executions"] else "-"
        times = (f"{means[name]:.1f}" for name in ("queue_ms", "compute_ms"))
        rows.append((model, str(counts["requests"]), batch, *times, shown or "-"))
    columns = ("model", "requests", "mean batch", "queue, ms", "compute, ms", "batches by size")
    return Section("server statistics: batches, and mean milliseconds per request", columns, rows)


def _generator(summary: Summary) -> str:
    strain = summary.strain
    processes = "process" if strain.processes == 1 else "processes"
    return (
        f"load generator: {strain.processes} {processes}, the busiest at {strain.busiest_cpu:.0%} of a core, "
        f"late by {1000 * strain.late_p99:.0f} ms (p99)"
        + (f", at most {strain.most_unfinished} requests in flight" if strain.most_unfinished else "")
    )


def _facts(summary: Summary) -> list[tuple[str, str]]:
    setting = summary.setting | {
        "variants": ",".join(f"{name}={weight:g}" for name, weight in summary.setting.get("variants", {}).items())
    }

    def given(*names: str) -> str:
        known = [name for name in names if setting.get(name) not in {None, ""}]
        return ", ".join(f"{_LABELS.get(name, name.replace('_', ' '))} {setting[name]}" for name in known)

    load = ["users"]
    load += ["arrivals", "rate", "max_unfinished"] if setting.get("loop") == "open" else ["think_time"]
    load += ["shape", "stages", "stage_time", "spike_factor"] if summary.stages else []
    requests = ("variants", "pictures", "kinds", "timeout", "retries", "mask_format", "tolerance", "seed")
    return [
        ("server", " and ".join(str(setting[name]) for name in ("host", "second_host") if setting.get(name))),
        ("answered by", "; ".join(f"{model}: {said}" for model, said in sorted(summary.models.items())) or "no model"),
        ("load", f"{setting.get('loop')} loop, {given(*load)}"),
        ("requests", given(*requests)),
        ("time", f"{setting.get('began', '')}, {summary.seconds:.1f} s"),
        ("sent by", str(setting.get("sent_by", ""))),
    ]


def show(console: Console, summary: Summary, verdicts: Sequence[Verdict]) -> None:
    """Print a run."""
    if summary.stages:
        console.print(_stages(summary).table())
    console.print(_requests(summary).table())
    for problem in summary.problems:
        console.print(problem, style="bold red", markup=False, soft_wrap=True)
    for reason, count in _failures(summary).rows:
        console.print(f"{count} x {reason}", style="red", markup=False, soft_wrap=True)
    console.print(_generator(summary))
    if summary.strain.warning is not None:
        console.print(summary.strain.warning, style="bold yellow")
    console.print(_objectives(verdicts).table())


def page(locusts: str, summary: Summary, verdicts: Sequence[Verdict]) -> str:
    """Return Locust's HTML report with ours above it.

    Args:
        locusts: Locust's report.
        summary: The measurements of the run.
        verdicts: The verdicts on its objectives.
    """
    verdict = verdict_of(verdicts)
    passed = isinstance(verdict, Good)
    title = f"Load test {'passed' if passed else 'failed'}: {verdict}"
    facts = "".join(f"<tr><td>{escape(name)}</td><td>{escape(said)}</td></tr>" for name, said in _facts(summary))
    generator = f"<h2>load generator</h2><p>{escape(_generator(summary).partition(': ')[2])}</p>"
    if summary.strain.warning is not None:
        generator += f'<p class="bad">{escape(summary.strain.warning)}</p>'
    server = _server(summary).html() if summary.server else "<h2>server</h2><p>No server statistics.</p>"
    parts = [
        f'<h1 class="{"good" if passed else "bad"}">{escape(title)}</h1>',
        replace(_objectives(verdicts), title="objectives").html(),
        f'<h2>the run</h2><table class="facts">{facts}</table>',
        _requests(summary).html(),
        _stages(summary).html() if summary.stages else "",
        _failures(summary).html() if summary.failures else "",
        server,
        generator,
    ]
    # Insert before the root of Locust's page. Its script contains the same text before that, so use the last one.
    before, root, after = locusts.rpartition('<div id="root">')
    before = before.replace("<title>Locust</title>", f"<title>{escape(title)}</title>", 1)
    return f'{before}<style>{_STYLE}</style><section id="verdict">{"".join(parts)}</section>{root}{after}'
