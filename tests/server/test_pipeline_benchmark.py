"""benchmarks/pipeline.py against a real Triton, with so few requests that its figures mean nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]


def test_the_pipeline_is_measured_where_no_peer_is_installed(tmp_path: Path) -> None:
    options = ["--rounds", "1", "--seconds", "0.1", "--concurrency", "2", "--peers-python", str(tmp_path / "none")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.pipeline", "stages", "load", *options, "--output", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "mosec: not installed: make bench-peers" in done.stdout
    record = json.loads((tmp_path / "pipeline.json").read_text())
    assert min(record["stages"].values()) > 0
    assert set(record["load"]) == {"Triton", "Triton, idle steps"}
    for levels in record["load"].values():
        found = levels["2"]
        assert found["throughput"][0] > 0
        assert found["stages"][0]["postprocess"]["compute_infer"] > 0
        assert {"tritonserver", "preprocess", "deeplabv3_resnet50", "postprocess"} <= set(found["processor"][0])
    assert (tmp_path / "pipeline.png").stat().st_size > 10_000
