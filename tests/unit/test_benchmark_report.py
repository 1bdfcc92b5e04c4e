"""What the benchmarks share: turns, medians and ratios, the record, the table and the plot."""

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


def test_contenders_have_their_turns_in_an_order_that_turns_around() -> None:
    turns = list(harness.in_turns({"a": 1, "b": 2}, 2, warm_up=1))
    assert turns == [(-1, "b", 2), (-1, "a", 1), (0, "a", 1), (0, "b", 2), (1, "b", 2), (1, "a", 1)]


def test_each_is_compared_with_the_best_of_its_baselines_under_the_same_condition(report: Report) -> None:
    report.compare("load", "rate", {"Triton": ("mosec", "LitServe", "one that is absent")}, high_is_good=True)
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


def test_the_record_is_complete_with_each_line_that_is_said(report: Report, tmp_path: Path) -> None:
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


def test_a_part_that_fails_is_named_and_costs_the_others_nothing(
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


def test_the_plot_is_a_picture(report: Report, tmp_path: Path) -> None:
    panels = [
        Panel("load", "rate", "images/s", over="in flight", log=True),
        Panel("load", "rate", "images/s", over="in flight", stacked=True),
        Panel("load", "p99", "seconds", where={"in flight": 1}),
    ]
    report.plot(panels, columns=2, ours=("Triton",), title="made up")
    with Image.open(tmp_path / "made.png") as image:
        assert image.size == (1320, 1140)
        colors = image.convert("RGB").getcolors(1 << 20)
    assert colors is not None
    assert (31, 119, 180) in {color for _, color in colors}  # a bar of ours, and a line
