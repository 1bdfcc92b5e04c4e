"""Turns, medians and ratios, the record, the tables and the plot of the benchmarks."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from benchmarks import harness
from benchmarks.report import Column, Panel, Report

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit


@pytest.fixture
def report(tmp_path: Path) -> Report:
    """Two servers under two loads, a third under one."""
    report = Report("made", tmp_path)
    for level, rates in ((1, {"Triton": [80.0, 100.0, 120.0], "mosec": [125.0]}), (8, {"Triton": [300.0]})):
        for name, found in rates.items():
            report.add("load", name, {"in flight": level}, {"rate": found, "p99": 0.5}, errors="none")
    report.add("load", "LitServe", {"in flight": 1}, {"rate": 200.0})
    return report


def test_the_order_of_contenders_is_reversed_in_every_other_round() -> None:
    turns = list(harness.in_turns({"a": 1, "b": 2}, 2, warm_up=1))
    assert turns == [(-1, "b", 2), (-1, "a", 1), (0, "a", 1), (0, "b", 2), (1, "b", 2), (1, "a", 1)]


def test_a_ratio_uses_the_best_baseline_under_the_same_condition(report: Report) -> None:
    report.compare("load", "rate", {"Triton": ("mosec", "LitServe", "absent")}, high_is_good=True)
    first, _, last, _ = report.of("load")
    assert (first.baseline, first.ratio) == ("LitServe", 0.5)
    assert last.ratio is None
    report.compare("load", "rate", {"Triton": ("mosec", "LitServe")}, high_is_good=False)
    assert (first.baseline, first.ratio) == ("mosec", 0.8)


def test_the_table_has_medians_spread_and_ratios(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    report.compare("load", "rate", {"Triton": ("mosec",)}, high_is_good=True)
    columns = (Column("rate", "images/s", form=".0f"), Column("p99", "p99 ms", 1e3), Column("errors", "errors"))
    report.show("a load", report.of("load"), columns)
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["Triton", "1", "100", "±10.0%", "500", "none", "0.800", "of", "mosec"] in lines
    assert ["LitServe", "1", "200"] in lines


def test_the_record_is_complete_after_each_printed_line(report: Report, tmp_path: Path) -> None:
    report.say("so far")
    record = json.loads((tmp_path / "made.json").read_text())
    assert record["benchmark"] == "made"
    assert record["cores"] == harness.cores()
    assert {"python", "numpy", "tritonclient"} <= set(record["versions"])
    row = record["rows"][0]
    assert (row["contender"], row["condition"], row["notes"]) == ("Triton", {"in flight": 1}, {"errors": "none"})
    assert row["figures"]["rate"] == {"median": 100.0, "low": 90.0, "high": 110.0, "count": 3}
    report.add("load", "Triton", {"in flight": 16}, {"rate": 1.0})
    report.add("load", "Triton", {"in flight": 16}, {"rate": [2.0, 3.0]})
    report.say("and so on")
    last = json.loads((tmp_path / "made.json").read_text())["rows"][-1]
    assert last["figures"]["rate"] == {"median": 2.0, "low": 1.5, "high": 2.5, "count": 3}
    assert len(json.loads((tmp_path / "made.json").read_text())["rows"]) == 5


def test_a_failing_part_is_recorded_and_the_others_run(
    report: Report, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.end() == 0
    report.skip("another", "no time was left")
    assert report.end() == 0
    with report.part("the card"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert report.end() == 1
    assert "the card: failed: RuntimeError('CUDA error" in capsys.readouterr().out
    skipped = json.loads((tmp_path / "made.json").read_text())["skipped"]
    assert skipped["another"] == "no time was left"
    assert "illegal memory access" in skipped["the card"]


def test_the_plot_shows_the_panels_with_data(report: Report, tmp_path: Path) -> None:
    panels = [
        Panel("load", "rate", "Throughput", "images/s", high_is_good=True, over="in flight", log=True),
        Panel("load", "rate", "Stacked", "images/s", over="in flight", stacked=True),
        Panel("load", "p99", "Latency", "seconds", where={"in flight": 1}),
        Panel("load", "not measured", "Left out", "seconds"),
    ]
    report.plot(panels, ours=("Triton",), title="made up", warning="means nothing")
    with Image.open(tmp_path / "made.png") as image:
        assert image.size == (1320, 1140)
        colors = image.convert("RGB").getcolors(1 << 20)
    assert colors is not None
    assert (31, 119, 180) in {color for _, color in colors}  # the color of our bars and of the first line
