"""The results as tables and pictures. Either does without its library where that is not installed."""

from __future__ import annotations

import importlib.util
import sys
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.record import NO_GPU

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def say(text: str) -> None:
    """Print a line at once: the run may be cut off."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table, by rich where it is installed."""
    cells = [[str(cell) for cell in row] for row in rows]
    if importlib.util.find_spec("rich") is None:
        say("\n".join([title, *("\t".join(row) for row in [list(columns), *cells])]))
        return
    from rich.console import Console  # noqa: PLC0415  a machine with a GPU may have torch and little else
    from rich.table import Table  # noqa: PLC0415

    shown = Table(*columns, title=title)
    for row in cells:
        shown.add_row(*row)
    Console(width=130).print(shown)
    sys.stdout.flush()


def show_card(card: dict[str, Any]) -> None:
    """Print what the card can do."""
    rows = [[name, f"{value:.1f} TFLOP/s"] for name, value in card["tflops"].items()]
    table(
        f"the card: products of {card['matrix']} x {card['matrix']}, and a copy, read and written",
        ("what", "measured"),
        [*rows, ["copy", f"{card['copy_bytes_per_second'] / 1e9:.1f} GB/s"]],
    )


def show_bare(variant: str, name: str, found: dict[str, Any]) -> None:
    """Print one contender."""
    if name in found["skipped"]:
        say(f"{variant}, {name}: not measured, {found['skipped'][name]}")
        return
    contender = found["contenders"][name]
    check = contender["check"]
    rows = [
        [
            batch,
            f"{row['images_per_second']:.1f}",
            f"{1e3 * row['seconds']:.2f}",
            f"{row['tflops']:.2f}",
            _share(row.get("of_matrix_product")),
            f"{row['estimated_bytes_per_second'] / 1e9:.1f}",
            _share(row.get("of_copy")),
        ]
        for batch, row in contender["batches"].items()
    ]
    table(
        f"{variant}, {name}: error {check['relative_error']:.1e} of the largest logit, "
        f"same class for {check['same_class']:.3%} of the pixels",
        ("batch", "images/s", "ms a batch", "TFLOP/s", "of the product", "GB/s, estimated", "of the copy"),
        rows,
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def show_kernels(variant: str, found: dict[str, Any]) -> None:
    """Print where the time goes."""
    rows = [
        [each["kernel"][:80], f"{each['share']:.1%}", f"{each['milliseconds']:.3f}", each["calls"]]
        for each in found["kernels"]
    ]
    table(
        f"{variant}, fp16 {found['cudnn']}, batch {found['batch']}: {found['milliseconds']:.2f} ms",
        ("kernel", "share", "ms", "calls"),
        rows,
    )


def show_steps(found: dict[str, Any]) -> None:
    """Print what preprocess and postprocess cost, and how far apart the two ways are."""
    rows = [
        [step, f"{each['cpu_ms']:.2f}", f"{each['device_ms']:.2f}", f"{each['agreement']:.4%}", each["of"]]
        for step, each in found.items()
    ]
    table(
        "preprocess and postprocess, ms an image in one process",
        ("step", "as on a CPU", "as on a GPU", "equal", "of"),
        rows,
    )


def show_serving(variant: str, setup: str, found: dict[str, Any]) -> None:
    """Print one set-up at its concurrencies, and the stages at the last of them."""
    rows = [
        [
            concurrency,
            f"{row['images_per_second']:.1f}",
            *(f"{value:.1f}" for value in (row["latency_ms"] or {"p50": 0.0, "p95": 0.0, "p99": 0.0}).values()),
            sum(row["errors"].values()),
            f"{row['busiest_load_process']:.0%}{' (!)' if row['load_may_hold_it_up'] else ''}",
        ]
        for concurrency, row in found["concurrencies"].items()
    ]
    table(
        f"{variant}, {setup}: ready after {found['ready_after_seconds']:.0f} s",
        ("in flight", "images/s", "p50 ms", "p95 ms", "p99 ms", "errors", "load's busiest process"),
        rows,
    )
    last = next(reversed(found["concurrencies"].values()), {"stages": {}})
    table(
        f"{variant}, {setup}: mean ms a request by stage, with the most in flight",
        ("step", "mean batch", "queue", "input", "compute", "output"),
        [[step, *(f"{value:.2f}" for value in row.values())] for step, row in last["stages"].items()],
    )


def show_verdicts(verdicts: Sequence[dict[str, Any]], *, on_gpu: bool) -> None:
    """Print each target beside what was found."""
    words = {True: "met", False: "NOT MET", None: "not measured"}
    rows = [
        [
            each["target"],
            f"{each['required']:g}",
            "" if each["found"] is None else f"{each['found']:.2f}",
            "no GPU" if each["found"] is not None and not on_gpu else words[each["met"]],
            each["of"],
        ]
        for each in verdicts
    ]
    table("targets, on an H100", ("target", "at least", "found", "", "of"), rows)
    if not on_gpu:
        say(NO_GPU)


def plot(found: dict[str, Any], file: Path) -> str | None:
    """Draw the bare models by batch and the server by concurrency; return why not, where it cannot be done."""
    if importlib.util.find_spec("matplotlib") is None:
        return "matplotlib is not installed"
    from matplotlib.figure import Figure  # noqa: PLC0415  see above
    from matplotlib.ticker import ScalarFormatter  # noqa: PLC0415

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for variant, each in found.get("bare", {}).items():
        for name, contender in each["contenders"].items():
            points = {int(batch): row["images_per_second"] for batch, row in contender["batches"].items()}
            left.plot(list(points), list(points.values()), marker="o", label=f"{variant} {name}")
    for variant, setups in found.get("serving", {}).items():
        for name, each in setups.items():
            points = {int(key): row["images_per_second"] for key, row in each.get("concurrencies", {}).items()}
            right.plot(list(points), list(points.values()), marker="o", label=f"{variant}, {name}")
    for axes, title, label in ((left, "the bare model", "batch"), (right, "end to end", "requests in flight")):
        axes.set(title=title, xlabel=label, ylabel="images/s")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.set_ylim(bottom=0)
        if axes.lines:
            axes.legend(fontsize="small")
    card = found["environment"].get("card")
    figure.suptitle(card or NO_GPU, color="black" if card else "red", fontsize="medium" if card else "small")
    figure.savefig(file, dpi=150)
    return None
