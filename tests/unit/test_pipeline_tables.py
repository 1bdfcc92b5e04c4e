"""What benchmarks/pipeline.py makes of its measurements."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from rich.console import Console

from benchmarks import pipeline_tables

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

STEP = {"queue": 1.0, "compute_input": 2.0, "compute_infer": 30.0, "compute_output": 4.0, "batch": 1.5}


def found(throughput: list[float], milliseconds: float) -> dict[str, Any]:
    return {
        "throughput": throughput,
        "seconds": [milliseconds / 1000] * 99 + [1.0],
        "processor": [{"a process": 3.0, "another": 1.0}],
        "stages": [{"preprocess": STEP, "postprocess": STEP | {"queue": 7.0}}],
    }


@pytest.fixture
def record() -> dict[str, Any]:
    """Four cores, 10 ms of work an image: 400 images a second at most."""
    return {
        "cores": 4,
        "size": [640, 480],
        "stages": {"decode": 0.004, "upsample": 0.006},
        "load": {
            "Triton": {"1": found([80.0, 100.0, 120.0], 11), "8": found([300.0], 33)},
            "Triton, idle steps": {"1": found([400.0], 2), "8": found([700.0], 8)},
            "mosec": {"1": found([125.0], 8), "8": found([320.0], 24)},
        },
        "model": {"bare": 1.4, "latency": 1.45, "loaded": 1.42, "latency_ratio": 1.036, "throughput_ratio": 0.986},
    }


def text_of(record: dict[str, Any]) -> list[list[str]]:
    """Return the words of each line that is shown."""
    console = Console(file=StringIO(), width=200)
    for shown in pipeline_tables.tables(record):
        console.print(shown)
    assert isinstance(console.file, StringIO)
    return [line.replace("│", " ").split() for line in console.file.getvalue().splitlines()]


def test_triton_stands_beside_its_rival_and_the_limit(record: dict[str, Any]) -> None:
    lines = text_of(record)
    assert ["limit", "on", "4", "cores,", "images/s", "400"] in lines
    assert ["1", "Triton", "100", "11.0", "11.0", "0.80", "0.25"] in lines  # the median round
    assert ["8", "Triton", "300", "33.0", "33.0", "0.94", "0.75"] in lines
    assert ["8", "mosec", "320", "24.0", "24.0", "0.80"] in lines


def test_processor_time_is_that_of_the_best_concurrency(record: dict[str, Any]) -> None:
    record["load"]["mosec"]["8"]["processor"] = [{"mosec": 5.0}, {"mosec": 6.0}, {"mosec": 9.0}]
    assert ["mosec", "8", "mosec", "6.00"] in text_of(record)
    assert ["Triton", "8", "sum", "4.00"] in text_of(record)


def test_steps_show_what_triton_counted(record: dict[str, Any]) -> None:
    assert ["8", "postprocess", "7.00", "2.00", "30.00", "4.00", "1.5"] in text_of(record)


def test_without_a_rival_nothing_is_compared(record: dict[str, Any]) -> None:
    del record["load"]["mosec"]
    assert ["1", "Triton", "100", "11.0", "11.0", "0.25"] in text_of(record)


def test_the_plot_is_a_picture(record: dict[str, Any], tmp_path: Path) -> None:
    pipeline_tables.plot(record, tmp_path / "pipeline.png")
    with Image.open(tmp_path / "pipeline.png") as image:
        assert image.size == (1950, 600)
