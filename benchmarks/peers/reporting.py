"""The figures of a run as JSON, tables and a picture."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from rich.table import Table

from benchmarks.peers import replies
from benchmarks.peers.measuring import PLANS, USUAL_CONCURRENCY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from benchmarks.peers.measuring import Overload, Result

MB, GB = 1e6, 1e9


def as_record(result: Result) -> dict[str, Any]:
    """Return the figures of one server, seconds and bytes, as JSON takes them."""
    record: dict[str, Any] = {
        "core": result.core,
        "contender": result.contender,
        "setup": asdict(result.setup),
        "failure": result.failure,
    }
    if not result.closed:
        return record
    return record | {
        "start_seconds": statistics.median(result.start),
        "memory_bytes": max(result.memory),
        "processor_seconds_an_image": statistics.median(result.processor),
        "closed": [closed_record(result, concurrency) for concurrency in result.closed],
        "overload": overload_record(result.overload, PLANS[result.core].in_time) if result.overload else None,
        "largest_difference": replies.worst_difference(result.replies()),
        "masks_that_differ": sum(reply.answered and reply.differing > 0 for reply in result.replies()),
        "masks": sum(reply.answered for reply in result.replies()),
    }


def closed_record(result: Result, concurrency: int) -> dict[str, Any]:
    """Return the figures of the closed loads at one concurrency."""
    pooled = [reply for found in result.closed[concurrency] for reply in found]
    latencies = replies.latencies(pooled)
    return {
        "concurrency": concurrency,
        "requests": len(pooled),
        "images_a_second": result.throughput(concurrency),
        "by_round": [replies.throughput(found) for found in result.closed[concurrency]],
        "p50_seconds": replies.percentile(latencies, 0.5),
        "p99_seconds": replies.percentile(latencies, 0.99),
        "errors": replies.errors(pooled),
    }


def overload_record(overload: Overload, in_time: float) -> dict[str, Any]:
    """Return the figures of the open load."""
    useful = replies.in_time(overload.replies, in_time)
    before, peak, after = overload.memory
    return {
        "offered_a_second": overload.offered,
        "requests": len(overload.replies),
        "in_time_seconds": in_time,
        "in_time_share": useful / len(overload.replies),
        # Over all the time until the last reply: what is sent at twice the rate is still answered after the sending.
        "goodput_a_second": useful / replies.elapsed(overload.replies),
        "p99_seconds": replies.percentile(replies.latencies(overload.replies), 0.99),
        "errors": replies.errors(overload.replies),
        "memory_before_bytes": before,
        "memory_peak_bytes": peak,
        "memory_after_bytes": after,
        "throughput_after": overload.after,
    }


def load_table(records: Sequence[dict[str, Any]], title: str) -> Table:
    """Return the closed loads."""
    measured = [record for record in records if "closed" in record]
    levels = [each["concurrency"] for each in measured[0]["closed"]] if measured else []
    table = Table(title=title)
    for heading in ("server", "setup", *(f"at {level}" for level in levels)):
        table.add_column(heading)
    for heading in (f"p50 s at {USUAL_CONCURRENCY}", "p99 s", "CPU ms", "MB", "start s", "masks differ"):
        table.add_column(heading)
    for record in records:
        if "closed" not in record:
            table.add_row(record["contender"], f"[red]{record['failure'].splitlines()[0]}")
            continue
        usual = usual_level(record)
        failed = sum(sum(each["errors"].values()) for each in record["closed"])
        table.add_row(
            record["contender"],
            setup_text(record["setup"]),
            *(f"{each['images_a_second']:.3g}" for each in record["closed"]),
            seconds_text(usual["p50_seconds"]),
            seconds_text(usual["p99_seconds"]),
            f"{record['processor_seconds_an_image'] * 1e3:.1f}",
            f"{record['memory_bytes'] / MB:.0f}",
            f"{record['start_seconds']:.1f}",
            f"{record['masks_that_differ']} of {record['masks']}"
            + (f", by {record['largest_difference']:.2%} at most" if record["masks_that_differ"] else "")
            + (f"[red], {failed} failed" if failed else "")
            + (f"[red], {record['failure'].splitlines()[0]}" if record["failure"] else ""),
        )
    return table


def overload_table(records: Sequence[dict[str, Any]], title: str) -> Table:
    """Return the open loads."""
    table = Table(title=title)
    for heading in (
        "server",
        "offered/s",
        "in time",
        "goodput/s",
        "p99 s",
        "errors",
        "memory MB before, peak, after",
        "images/s afterwards",
    ):
        table.add_column(heading)
    for record in records:
        if found := record.get("overload"):
            memory = [f"{found[f'memory_{when}_bytes'] / MB:.0f}" for when in ("before", "peak", "after")]
            table.add_row(
                record["contender"],
                f"{found['offered_a_second']:.3g}",
                f"{found['in_time_share']:.0%} in {found['in_time_seconds']:g} s",
                f"{found['goodput_a_second']:.3g}",
                seconds_text(found["p99_seconds"]),
                ", ".join(f"{number} x {status}" for status, number in found["errors"].items()) or "none",
                ", ".join(memory),
                f"{found['throughput_after']:.0%} of before",
            )
    return table


def seconds_text(seconds: float | None) -> str:
    """Return seconds that may not have been found."""
    return "-" if seconds is None else f"{seconds:.3f}"


def setup_text(setup: dict[str, Any]) -> str:
    """Return a setup in words."""
    processes = "2 + 1 + 2 stages" if setup["stages"] else f"{setup['workers']} x {setup['threads']}"
    return f"{processes}, batch {setup['batch']}"


TITLES = {"model": "a real model", "stand-in": "a core that costs nothing"}


def plot(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw throughput, latency, memory and goodput of every server that was measured."""
    cores = list(dict.fromkeys(record["core"] for record in records))
    shown: dict[str, Callable[[dict[str, Any]], float]] = {
        f"images/s, {USUAL_CONCURRENCY} at once": lambda record: usual_level(record)["images_a_second"],
        f"p99 seconds, {USUAL_CONCURRENCY} at once": lambda record: usual_level(record)["p99_seconds"] or 0.0,
        "memory, GB": lambda record: record["memory_bytes"] / GB,
        "images/s in time, at twice the load": lambda record: (
            record["overload"]["goodput_a_second"] if record["overload"] else 0.0
        ),
    }
    figure = Figure(figsize=(4 * len(shown), 2.4 * len(cores) + 0.6), layout="constrained")
    for row, core in zip(figure.subplots(len(cores), len(shown), squeeze=False), cores, strict=True):
        measured = [record for record in records if record["core"] == core and "closed" in record]
        names = [record["contender"] for record in measured]
        colours = ["tab:blue" if name == "Triton" else "0.7" for name in names]
        for axes, (label, figure_of) in zip(row, shown.items(), strict=True):
            bars = axes.barh(range(len(names)), [figure_of(record) for record in measured], color=colours)
            axes.bar_label(bars, fmt="%.3g", padding=3)
            axes.set_yticks(range(len(names)), names)
            axes.invert_yaxis()
            axes.spines[["top", "right"]].set_visible(False)
            axes.set(title=TITLES.get(core, core), xlabel=label)
    figure.savefig(file, dpi=150)


def usual_level(record: dict[str, Any]) -> dict[str, Any]:
    """Return the closed load that is shown for a server as a whole."""
    return next(each for each in record["closed"] if each["concurrency"] == USUAL_CONCURRENCY)
