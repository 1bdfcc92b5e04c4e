"""The dry run of the GPU's benchmark: every section on the CPU, with a real server, and figures that claim nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import targets

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """Run it once; return what it printed, its JSON, and its folder."""
    output = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--output", str(output)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout, json.loads((output / "gpu.json").read_text()), output


def test_every_section_is_in_the_json(dry_run: tuple[str, dict[str, Any], Path]) -> None:
    _, found, output = dry_run
    assert {"device", "environment", "card", "bare", "kernels", "steps", "serving", "targets"} <= set(found)
    assert (output / "gpu.png").stat().st_size > 10_000
    assert found["environment"]["tritonserver"] == "2.51.0"
    assert set(found["card"]["tflops"]) == {"fp16", "bf16", "tf32", "fp32"}
    contenders = found["bare"]["resnet50"]["contenders"]
    assert set(contenders) == {"fp16", "fp16 benchmark", "tf32", "fp32"}
    assert found["bare"]["resnet50"]["skipped"] == {"fp16 fused": "its operators run on GPUs only"}
    for contender in contenders.values():
        assert list(contender["batches"]) == ["1", "2"]
        for batch, row in contender["batches"].items():
            assert row["images_per_second"] == pytest.approx(int(batch) / row["seconds"])
            work = found["bare"]["resnet50"]["work"]
            assert row["tflops"] == pytest.approx(row["images_per_second"] * work["flops"] / 1e12)
    assert found["kernels"]["resnet50"]["heuristic"]["kernels"]
    assert found["steps"]["postprocess"]["agreement"] >= 0.999


def test_the_models_are_checked_against_pytorch(dry_run: tuple[str, dict[str, Any], Path]) -> None:
    contenders = dry_run[1]["bare"]["resnet50"]["contenders"]
    assert contenders["fp32"]["check"]["relative_error"] <= 1e-4
    assert contenders["fp16"]["check"]["relative_error"] <= 1e-2
    # Calibrated weights: neither beyond what fp16 can hold, nor all zero.
    assert 0.01 <= contenders["fp32"]["check"]["largest_logit"] <= 100


def test_the_server_ran_under_load_with_and_without_batches(dry_run: tuple[str, dict[str, Any], Path]) -> None:
    served = dry_run[1]["serving"]["resnet50"]
    assert set(served) == {"dynamic batching", "one request at a time"}
    for setup in served.values():
        assert list(setup["concurrencies"]) == ["1", "4"]
        for row in setup["concurrencies"].values():
            assert row["errors"] == {}
            assert {"preprocess", "deeplabv3_resnet50", "postprocess", "segment_resnet50"} == set(row["stages"])
    assert "encode_mask" not in served["dynamic batching"]["concurrencies"]["4"]["stages"]
    singly = served["one request at a time"]["concurrencies"]["4"]["stages"]["deeplabv3_resnet50"]
    assert singly["mean_batch"] == 1


def test_it_says_loudly_that_a_cpu_is_no_gpu(dry_run: tuple[str, dict[str, Any], Path]) -> None:
    printed, found, _ = dry_run
    assert printed.count("MEASURED ON A CPU") >= 2
    assert found["warning"].startswith("MEASURED ON A CPU")
    assert {verdict["met"] for verdict in found["targets"]} == {None}
    assert "NOT MET" not in printed


def row(images: float) -> dict[str, Any]:
    return {"images_per_second": images}


def found_on(device: str) -> dict[str, Any]:
    return {
        "device": device,
        "bare": {
            "resnet50": {
                "contenders": {
                    "fp16": {"batches": {"1": row(100.0), "32": row(800.0)}},
                    "fp16 fused": {"batches": {"32": row(1100.0)}},
                    "fp32": {"batches": {"32": row(5000.0)}},
                }
            }
        },
        "serving": {
            "resnet50": {
                "dynamic batching": {"concurrencies": {"1": row(90.0), "64": row(880.0)}},
                "one request at a time": {"concurrencies": {"1": row(95.0), "64": row(200.0)}},
                "dynamic batching, resize on the GPU": {"concurrencies": {"64": row(990.0)}},
            }
        },
    }


def test_targets_are_held_against_ratios_of_what_was_measured() -> None:
    verdicts = {verdict["target"]: verdict for verdict in targets.verdicts(found_on("cuda"))}
    bare = verdicts["resnet50: the bare model in fp16, images/s"]
    assert (bare["required"], bare["found"], bare["met"]) == (1000, 1100, True)
    gain = verdicts["resnet50: dynamic batching over one request at a time"]
    assert (gain["found"], gain["met"], gain["of"]) == (4.4, True, "880.0 / 200.0 images/s")
    end_to_end = verdicts["resnet50: end to end over the bare model in fp16"]
    assert (end_to_end["found"], end_to_end["met"]) == (pytest.approx(0.9), True)
    unmeasured = [verdict for target, verdict in verdicts.items() if target.startswith("resnet101")]
    assert [(verdict["found"], verdict["met"]) for verdict in unmeasured] == [(None, None)] * 3


def test_no_target_is_met_or_missed_on_a_cpu() -> None:
    assert {verdict["met"] for verdict in targets.verdicts(found_on("cpu"))} == {None}


def test_a_target_that_is_missed_is_said_to_be() -> None:
    found = found_on("cuda")
    found["serving"]["resnet50"]["dynamic batching"]["concurrencies"]["64"] = row(799.0)
    gain = next(v for v in targets.verdicts(found) if v["target"].endswith("one request at a time"))
    assert gain["met"] is False


def test_a_part_that_fails_is_named_and_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(_settings: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(program, "measure_card", fail)
    threads = torch.get_num_threads()
    try:
        sections = ["--section", "card", "--section", "steps"]
        code = program.main(["--device", "cpu", "--quick", "--output", str(tmp_path), *sections])
    finally:
        torch.set_num_threads(threads)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert code == 1
    assert "illegal memory access" in found["skipped"]["card"]
    assert found["steps"]["preprocess"]["cpu_ms"] > 0
