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
    options = ["--rounds", "1", "--seconds", "0.01", "--concurrency", "2", "--peers-python", str(tmp_path / "none")]
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
    rows = {(row["section"], row["contender"]): row["figures"] for row in record["rows"]}
    stages = {name: figures["seconds"]["median"] for (section, name), figures in rows.items() if section == "stages"}
    assert min(stages.values()) > 0
    del stages["confidence"]  # made on request
    limit = rows["load", "limit of the stages"]["rate"]["median"]
    assert limit == pytest.approx(record["cores"] / sum(stages.values()))
    assert rows["load", "Triton"]["of_limit"]["median"] == pytest.approx(
        rows["load", "Triton"]["rate"]["median"] / limit
    )
    assert rows["load", "Triton, idle steps"]["rate"]["median"] > 0
    assert rows["steps", "postprocess"]["compute_infer_ms"]["median"] > 0
    for process in ("tritonserver", "preprocess", "core_resnet50", "postprocess", "sum"):
        assert ("processor", process) in rows
    assert (tmp_path / "pipeline.png").stat().st_size > 10_000
