"""The dry run of the GPU's benchmark: every section on the CPU, with a real server, and figures that claim nothing."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.gpu import bare, targets
from benchmarks.gpu.__main__ import shared_memory_lacking
from benchmarks.gpu.card import watched
from benchmarks.gpu.models import calibrated
from benchmarks.gpu.serving import SETUPS, write_repository
from benchmarks.gpu.settings import quick
from benchmarks.harness import Deadline
from benchmarks.report import Report
from deeplabv3 import UNTRAINED, WeightsSource
from deeplabv3.building import tracing
from deeplabv3.building.plan import MEAN, STD, Plan
from deeplabv3.repository.config import read_config

if TYPE_CHECKING:
    import torch

pytestmark = pytest.mark.server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any], Path]:
    """Run it once; return what it printed, its JSON, and its folder."""
    output = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--quick", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout, json.loads((output / "gpu.json").read_text()), output


def rows(found: dict[str, Any], section: str, **condition: object) -> dict[str, dict[str, Any]]:
    """Return the rows of a section by contender, the last of each; figures are their medians."""
    return {
        row["contender"]: {name: figure["median"] for name, figure in row["figures"].items()} | row["notes"]
        for row in found["rows"]
        if row["section"] == section and condition.items() <= row["condition"].items()
    }


def test_every_section_is_in_the_json(dry_run: tuple[str, dict[str, Any], Path]) -> None:
    _, found, output = dry_run
    assert (output / "gpu.png").stat().st_size > 10_000
    assert {"nvidia-pytriton", "torch"} <= set(found["versions"])
    assert found["environment"]["device"] == "cpu"
    assert set(rows(found, "card")) == {"fp16", "bf16", "tf32", "fp32", "copy"}
    for contender in ("fp16 fused", "fp16 fused-corners"):
        assert found["skipped"][f"bare resnet50, {contender}"] == "its operators run on GPUs only"
    flops = rows(found, "work")["resnet50"]["flops"]
    for batch in (1, 2):
        bare = rows(found, "bare", variant="resnet50", batch=batch)
        assert set(bare) == {"fp16", "fp16 tensorexpr", "fp16 tensorexpr-corners", "fp16 benchmark", "tf32", "fp32"}
        for figures in bare.values():
            assert figures["rate"] == pytest.approx(batch / figures["seconds"])
            assert figures["flops_per_second"] == pytest.approx(figures["rate"] * flops)
    (sustained,) = rows(found, "sustained", variant="resnet50").values()
    assert sustained["rate"] > 0
    assert sustained["throttle"] == "unknown: no GPU"
    assert rows(found, "kernels", cudnn="heuristic")["all"]["ms"] > 0
    assert rows(found, "steps agree")["postprocess, pixels"]["equal"] >= 0.999


def test_the_models_are_checked_against_pytorch(dry_run: tuple[str, dict[str, Any], Path]) -> None:
    bare = rows(dry_run[1], "bare")
    assert bare["fp32"]["relative_error"] <= 1e-4
    assert bare["fp16"]["relative_error"] <= 1e-2
    # Calibrated weights: neither beyond what fp16 can hold, nor all zero.
    assert 0.01 <= bare["fp32"]["largest_logit"] <= 100


def test_the_server_ran_under_load_with_and_without_batches(dry_run: tuple[str, dict[str, Any], Path]) -> None:
    served = rows(dry_run[1], "serving", variant="resnet50", **{"in flight": 4})
    assert set(served) == {"dynamic batching", "one request at a time"}
    for setup, figures in served.items():
        assert figures["failed"] == 0
        assert figures["rate"] > 0
        assert 0 < figures["load_share"] < 1
        stages = rows(dry_run[1], "stages", setup=setup)
        # Nobody asked for what encode_mask makes.
        assert set(stages) == {"preprocess", "core_resnet50", "postprocess", "segment_resnet50"}
    assert rows(dry_run[1], "stages", setup="one request at a time")["core_resnet50"]["batch"] == 1


def test_a_run_on_a_cpu_is_marked_as_no_measurement_of_a_gpu(dry_run: tuple[str, dict[str, Any], Path]) -> None:
    printed, found, _ = dry_run
    assert printed.count("MEASURED ON A CPU") >= 2
    assert "MEASURED ON A CPU" in found["warning"]
    assert {verdict["verdict"] for verdict in rows(found, "targets").values()} <= {"no GPU", "not measured"}


def test_each_setup_places_its_steps_and_its_batches(tmp_path: Path) -> None:
    """The dry run has no GPU to place them on."""
    plan = Plan("resnet50", WeightsSource(UNTRAINED), direct=False, device="cuda", precision="fp16")
    file = tmp_path / "model.pt"
    file.write_bytes(b"")
    found: dict[str, tuple[bool, bool, int]] = {}
    for setup in SETUPS:
        repository = write_repository(tmp_path / setup.name, plan, setup, quick("cuda", ("resnet50",)), file)
        configs = [read_config(repository / name / "config.pbtxt") for name in ("preprocess", "postprocess", plan.core)]
        on_gpu = [config.instance_group[0].kind == config.instance_group[0].KIND_GPU for config in configs]
        found[setup.name] = on_gpu[0], on_gpu[1], configs[2].max_batch_size
        assert on_gpu[2]
    assert found == {
        "dynamic batching": (False, True, 32),
        "one request at a time": (False, True, 1),
        "dynamic batching, masks on the CPU": (False, False, 32),
        "dynamic batching, resize on the GPU": (True, True, 32),
    }


def test_the_largest_batch_runs_before_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TorchScript's executor compiles for the shapes that it sees first."""
    model = calibrated("resnet50", width=4, device="cpu")
    core = tracing.Core(model, mean=MEAN, std=STD)
    seen: list[int] = []

    def run(pixels: torch.Tensor, image_id: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append(len(pixels))
        return core(pixels, image_id)

    def load(*_: object) -> Any:  # noqa: ANN401 - stands for a module of TorchScript
        return run

    monkeypatch.setattr(bare, "CONTENDERS", (bare.Contender("fp16"),))
    monkeypatch.setattr(bare.Contender, "load", load)
    report, settings = Report("gpu", tmp_path), quick("cpu", ("resnet50",))
    bare.measure_bare(report, "resnet50", model, settings, deadline=Deadline(60), folder=tmp_path)
    assert seen[0] == max(settings.batches)
    assert report.of("bare", batch=2)[0].figures["relative_error"].median == 0


def found_on(report: Report, *, batched: float = 880.0) -> Report:
    """Add what an H100 may have shown of the ResNet-50, and nothing of the ResNet-101."""
    for contender, batch, rate, error in (
        ("fp16", 8, 900.0, 1e-3),
        ("fp16 tensorexpr", 32, 1100.0, 1e-3),
        ("fp16 fused", 32, 1200.0, math.nan),
        ("fp16 fused-corners", 32, 1300.0, 1.0),
        ("fp32", 64, 2000.0, 1e-6),
    ):
        condition = {"variant": "resnet50", "batch": batch}
        report.add("bare", contender, condition, {"rate": rate, "relative_error": error})
    for setup, level, rate in (
        ("dynamic batching", 1, 90.0),
        ("dynamic batching", 64, batched),
        ("one request at a time", 64, 200.0),
        ("dynamic batching, resize on the GPU", 64, 990.0),
    ):
        report.add("serving", setup, {"variant": "resnet50", "in flight": level}, {"rate": rate})
    return report


def verdicts(report: Report, variant: str) -> list[tuple[float | None, str]]:
    found = report.of("targets", variant=variant)
    return [
        (row.figures["found"].median if "found" in row.figures else None, f"{row.notes['verdict']} {row.notes['of']}")
        for row in found
    ]


def test_targets_are_held_against_ratios_of_what_was_measured(tmp_path: Path) -> None:
    targets.add_verdicts(report := found_on(Report("gpu", tmp_path)), on_gpu=True)
    assert verdicts(report, "resnet50") == [
        (1100.0, "met "),
        (4.4, "met 880.0 / 200.0 images/s"),
        (pytest.approx(0.9), "met 990.0 / 1100.0 images/s"),
    ]
    assert verdicts(report, "resnet101") == [(None, "not measured ")] * 3


def test_a_small_shared_memory_is_reported_with_a_remedy() -> None:
    settings = quick("cpu", ("resnet50",))
    assert not shared_memory_lacking(settings)
    lacking = shared_memory_lacking(replace(settings, shared_memory_bytes=1 << 50))
    assert re.search(r"shm has \d+ MB free, and the server needs 1125899907 MB; enlarge it", lacking)


@pytest.mark.parametrize(
    ("said", "figures", "throttle"),
    [
        (
            "1980, 2619, 655.10, 61, 0x0000000000000004\n1200, 2619, 700.30, 63, 0x0000000000000020",
            {"sm_mhz": 1590.0, "memory_mhz": 2619.0, "watts": 677.7, "celsius": 62.0},
            "software power cap, software thermal",
        ),
        ("1980, 2619, 655.10, 61, 0x0000000000000000", {"sm_mhz": 1980.0}, "nothing"),
        ("1980, 2619, [N/A], 61, [N/A]", {"sm_mhz": 1980.0}, "unknown: nvidia-smi does not report it"),
        ('Field "power" is not a valid field', {}, 'unknown: Field "power" is not a valid field'),
    ],
)
def test_a_card_is_watched_while_it_computes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, figures: dict[str, float], throttle: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{said}\nEND\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found, notes = dict[str, float](), dict[str, str]()
    with watched(found, notes, device="cuda"):
        pass  # one sample at least
    assert figures.items() <= {name: round(value, 3) for name, value in found.items()}.items()
    assert notes == {"throttle": throttle}


def test_no_target_is_met_or_missed_on_a_cpu(tmp_path: Path) -> None:
    targets.add_verdicts(report := found_on(Report("gpu", tmp_path)), on_gpu=False)
    assert {said.split(" images")[0].split()[0] for _, said in verdicts(report, "resnet50")} == {"no"}


def test_a_missed_target_is_reported(tmp_path: Path) -> None:
    targets.add_verdicts(report := found_on(Report("gpu", tmp_path), batched=799.0), on_gpu=True)
    assert verdicts(report, "resnet50")[1][1].startswith("NOT MET")
