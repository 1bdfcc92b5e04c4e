"""The tables and the plot of benchmarks/pipeline.py, from what its pipeline.json holds."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.peers.replies import percentile

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

TRITON, IDLE, RIVAL = "Triton", "Triton, idle steps", "mosec"
KINDS = ("queue", "compute_input", "compute_infer", "compute_output")


def limit(record: Mapping[str, Any]) -> float:
    """Return the images a second that the stages by themselves would allow on all cores."""
    return record["cores"] / sum(record["stages"].values())


def median_of(rounds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure over the rounds."""
    return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}


def milliseconds(seconds: Sequence[float], share: float) -> float:
    """Return a percentile of some durations, of which there must be one."""
    found = percentile(seconds, share)
    if found is None:
        raise ValueError("no request was answered")
    return 1e3 * found


def tables(record: Mapping[str, Any]) -> list[Table | str]:
    """Return what the terminal shows."""
    shown: list[Table | str] = []
    if "stages" in record:
        shown.append(stage_table(record))
    if "load" in record:
        shown += [load_table(record), processor_table(record), step_table(record)]
    if "model" in record:
        figures = record["model"]
        shown.append(
            f"real model: bare loop {figures['bare']:.3f} s an image; one request at a time {figures['latency']:.3f} "
            f"s, {figures['latency_ratio']:.3f} of it; two in flight {figures['loaded']:.3f} s an image, "
            f"{figures['throughput_ratio']:.3f} of the loop's throughput"
        )
    return shown


def stage_table(record: Mapping[str, Any]) -> Table:
    """Return what each stage takes by itself."""
    width, height = record["size"]
    table = Table("stage", "ms an image", title=f"{width} x {height} JPEG, one thread")
    for name, seconds in record["stages"].items():
        table.add_row(name, f"{1e3 * seconds:.2f}")
    table.add_row("sum", f"{1e3 * sum(record['stages'].values()):.2f}", end_section=True)
    table.add_row(f"limit on {record['cores']} cores, images/s", f"{limit(record):.0f}")
    return table


def load_table(record: Mapping[str, Any]) -> Table:
    """Return throughput and latency of each server."""
    load = record["load"]
    table = Table("concurrency", "server", "images/s", "p50 ms", "p99 ms", f"of {RIVAL}", "of the limit")
    for level in load[TRITON]:
        for name, levels in load.items():
            throughput = statistics.median(levels[level]["throughput"])
            rival = statistics.median(load[RIVAL][level]["throughput"]) if RIVAL in load else None
            seconds = levels[level]["seconds"]
            table.add_row(
                str(level),
                name,
                f"{throughput:.0f}",
                f"{milliseconds(seconds, 0.5):.1f}",
                f"{milliseconds(seconds, 0.99):.1f}",
                "" if rival is None or name != TRITON else f"{throughput / rival:.2f}",
                f"{throughput / limit(record):.2f}" if "stages" in record and name != IDLE else "",
                end_section=name == list(load)[-1],
            )
    return table


def processor_table(record: Mapping[str, Any]) -> Table:
    """Return where the processor time goes, at the concurrency with the highest throughput."""
    table = Table("server", "concurrency", "process", "processor ms an image")
    for name, levels in record["load"].items():
        level = best_level(levels)
        figures = median_of(levels[level]["processor"])
        for process, milliseconds in sorted(figures.items(), key=lambda each: -each[1]):
            table.add_row(name, str(level), process, f"{milliseconds:.2f}")
        table.add_row(name, str(level), "sum", f"{sum(figures.values()):.2f}", end_section=True)
    return table


def best_level(levels: Mapping[Any, Any]) -> Any:  # noqa: ANN401  a whole number, or its text where it comes from JSON
    """Return the concurrency with the highest throughput."""
    return max(levels, key=lambda level: statistics.median(levels[level]["throughput"]))


def step_table(record: Mapping[str, Any]) -> Table:
    """Return Triton's own statistics: milliseconds an image by step and kind, and images a batch."""
    table = Table("concurrency", "step", *(kind.replace("_", " ") + " ms" for kind in KINDS), "batch")
    for level, found in record["load"][TRITON].items():
        for step in found["stages"][0]:
            figures = median_of([each[step] for each in found["stages"]])
            cells = [f"{figures[kind]:.2f}" for kind in KINDS]
            table.add_row(str(level), step, *cells, f"{figures['batch']:.1f}", end_section=step == "postprocess")
    return table


def plot(record: Mapping[str, Any], file: Path) -> None:
    """Draw throughput, latency and the time by step against the concurrency."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    plot_throughput(axes[0], record)
    plot_latency(axes[1], record["load"])
    plot_steps(axes[2], record["load"][TRITON])
    for each in axes:
        each.spines[["top", "right"]].set_visible(False)
        each.set_xlabel("requests in flight")
    figure.savefig(file, dpi=150)


COLOURS = {TRITON: "tab:blue", IDLE: "tab:cyan", RIVAL: "tab:orange"}


def plot_throughput(axes: Axes, record: Mapping[str, Any]) -> None:
    """Draw images a second of each server, with the limit of the stages."""
    for name, levels in record["load"].items():
        axes.plot(
            [int(level) for level in levels],
            [statistics.median(found["throughput"]) for found in levels.values()],
            marker="o",
            color=COLOURS[name],
            label=name,
        )
    if "stages" in record:
        axes.axhline(limit(record), color="0.5", linestyle="--", label="limit of the stages (not of idle steps)")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_ylim(bottom=0)
    axes.set_title("images a second")
    axes.legend(frameon=False)


def plot_latency(axes: Axes, load: Mapping[str, Any]) -> None:
    """Draw the median and the 99th percentile of each server."""
    for name, levels in load.items():
        for share, style in ((0.5, "-"), (0.99, ":")):
            axes.plot(
                [int(level) for level in levels],
                [milliseconds(found["seconds"], share) for found in levels.values()],
                linestyle=style,
                marker="o",
                color=COLOURS[name],
                label=f"{name}, p{100 * share:.0f}",
            )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.yaxis.set_major_formatter("{x:.0f}")
    axes.set_title("milliseconds from request to mask")
    axes.legend(frameon=False, fontsize="small")


def plot_steps(axes: Axes, levels: Mapping[Any, Any]) -> None:
    """Draw what Triton's statistics say of each step: waiting and computing."""
    names = [str(level) for level in levels]
    bottom = [0.0] * len(names)
    steps = list(next(iter(levels.values()))["stages"][0])
    for number, step in enumerate(steps):
        for kinds, label, alpha in ((("queue",), "waits", 0.4), (KINDS[1:], "computes", 1.0)):
            heights = [
                sum(median_of([each[step] for each in found["stages"]])[kind] for kind in kinds)
                for found in levels.values()
            ]
            axes.bar(names, heights, bottom=bottom, color=f"C{number}", alpha=alpha, label=f"{step} {label}")
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    axes.set_title("Triton: where a request's milliseconds go")
    axes.legend(frameon=False, fontsize="small")
