"""What a load test sends and how it judges: arrivals, shapes, pictures, replies, percentiles, objectives."""

from __future__ import annotations

import html
import io
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from load_arguments import Parser, parse
from PIL import Image, ImageOps

from deeplabv3 import server_statistics
from load_tests import objectives, pictures, report, shapes, summary
from load_tests.options import add_arguments, weights
from load_tests.replies import BETWEEN_WORKERS, WRONG_PIXELS, WRONG_SIZE, FirstReplies

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - draws load, not secrets


def moments(rate: float, *, poisson: bool, number: int, seed: int = 1) -> list[float]:
    timetable = shapes.Timetable(100.0, rate=rate, poisson=poisson, random=seeded(seed))
    return [timetable.take() for _ in range(number)]


def test_constant_arrivals_are_evenly_spaced_and_users_out_of_step() -> None:
    first = moments(4, poisson=False, number=50)
    assert np.diff(first) == pytest.approx(0.25)
    assert 100 <= first[0] <= 100.25
    assert first[0] != moments(4, poisson=False, number=1, seed=2)[0]


def test_poisson_arrivals_have_exponential_pauses() -> None:
    pauses = np.diff([100.0, *moments(5, poisson=True, number=20_000)])
    assert pauses.mean() == pytest.approx(0.2, rel=0.03)
    assert pauses.std() == pytest.approx(0.2, rel=0.03)
    assert (pauses > 0.2).mean() == pytest.approx(np.exp(-1), rel=0.05)


def test_a_late_source_keeps_the_planned_times() -> None:
    timetable = shapes.Timetable(0.0, rate=10, poisson=False, random=seeded(0))
    meant = timetable.due
    assert timetable.wait(meant - 0.04) == pytest.approx(0.04)
    assert timetable.wait(5.0) == 0  # half a hundred are due: all leave now, none is left out
    assert [timetable.take() for _ in range(3)] == pytest.approx([meant, meant + 0.1, meant + 0.2])


def test_steps_rise_and_a_spike_returns() -> None:
    def users(seconds: tuple[float, ...], *arguments: str) -> list[int | None]:
        stages = shapes.stages_of(parse(*arguments), 4)
        return [getattr(shapes.stage_at(stages, second), "users", None) for second in seconds]

    step = users((0, 9.9, 10, 25, 30), "--shape", "step", "--stages", "3", "--stage-time", "10")
    assert step == [4, 4, 8, 12, None]
    assert users((0, 5, 10, 15), "--shape", "spike", "--spike-factor", "2.5", "--stage-time", "5") == [4, 10, 4, None]
    assert users((0,)) == [None]


def test_the_pictures_are_the_same_for_a_seed_and_others_for_another() -> None:
    small = ["thumbnail", "web"]
    first, again, other = pictures.made(small, seed=5), pictures.made(small, seed=5), pictures.made(small, seed=6)
    assert [picture.data for picture in first] == [picture.data for picture in again]
    assert all(one.data != two.data for one, two in zip(first, other, strict=True))
    assert len({picture.name for picture in first}) == len(first)


@pytest.fixture(scope="module")
def made() -> list[pictures.Picture]:
    return pictures.made(pictures.KINDS, seed=0)


def test_the_pictures_have_all_kinds_and_their_stated_sizes(made: list[pictures.Picture]) -> None:
    assert {picture.kind for picture in made} == set(pictures.KINDS)
    assert max(picture.width * picture.height for picture in made) == 12_000_000
    formats: set[str | None] = set()
    for picture in made:
        with Image.open(io.BytesIO(picture.data)) as image:
            formats.add(image.format)
            assert ImageOps.exif_transpose(image).size == (picture.width, picture.height)
    assert formats == {"JPEG", "PNG", "WEBP"}
    assert any(picture.width < picture.height for picture in made)
    assert any(picture.width > picture.height for picture in made)


def test_a_large_picture_has_the_bytes_of_a_camera(made: list[pictures.Picture]) -> None:
    (largest,) = (picture for picture in made if picture.name.startswith("4000x3000.jpeg"))
    assert 2e6 < len(largest.data) < 8e6  # enlarged without grain it would be half a megabyte


def test_the_users_own_folder_is_read(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    (picture,) = pictures.from_folder(tmp_path)
    assert (picture.kind, picture.width, picture.height) == ("thumbnail", 20, 40)
    (tmp_path / "b.txt").write_text("no picture")
    with pytest.raises(pictures.PicturesError, match=r"b\.txt"):
        pictures.from_folder(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(pictures.PicturesError, match="has no pictures"):
        pictures.from_folder(tmp_path / "empty")


def check(replies: FirstReplies, mask: np.ndarray[Any, np.dtype[np.uint8]], *, model: str = "a") -> str | None:
    return replies.check(mask, picture="cat", model=model, size=(20, 10))[0]


def test_replies_are_compared_with_the_first_for_that_picture_and_model() -> None:
    replies, mask = FirstReplies(), np.zeros((10, 20), np.uint8)
    assert check(replies, mask) is None
    assert check(replies, mask.copy()) is None
    mask[3, 4] = 7
    assert check(replies, mask) == WRONG_PIXELS
    assert check(replies, mask, model="b") is None
    assert check(replies, mask.T.copy()) == WRONG_SIZE


def test_a_tolerance_counts_pixels() -> None:
    replies, mask = FirstReplies(tolerance=0.01), np.zeros((10, 20), np.uint8)
    check(replies, mask)
    mask[0, :2] = 1
    assert check(replies, mask) is None
    mask[0, 2] = 1
    assert check(replies, mask) == WRONG_PIXELS


def test_first_replies_of_two_workers_are_compared() -> None:
    here, there, agreed = FirstReplies(), FirstReplies(), FirstReplies()
    mask = np.zeros((10, 20), np.uint8)
    for replies, right in ((here, True), (there, False)):
        _, first = replies.check(mask, picture="cat", model="a", size=(20, 10))
        assert first is not None
        assert agreed.agrees(first) is right
        mask[0, 0] = 1


@pytest.mark.parametrize(("share", "value"), [(0.0, 10), (0.5, 10), (0.75, 10), (0.76, 40), (0.99, 40), (1.0, 70)])
def test_percentiles_are_of_values_that_were_seen(share: float, value: int) -> None:
    assert summary.percentile({40: 24, 10: 75, 70: 1}, share) == value


def test_nothing_has_no_latency() -> None:
    assert summary.percentile({}, 0.99) is None
    assert summary.Kind("gRPC", "resnet50 web", 3, 3, {}).mean_seconds() is None
    assert summary.Kind("gRPC", "resnet50 web", 3, 0, {10: 1, 40: 2}).mean_seconds() == 0.03


@pytest.mark.parametrize(("exact", "kept"), [(0.4, 0), (99.6, 100), (999.4, 999), (1234, 1230), (98_765, 98_800)])
def test_three_digits_of_a_latency_are_kept(exact: float, kept: int) -> None:
    assert summary.rounded(exact) == kept


def run_of(latencies: dict[str, dict[int, int]], failures: dict[str, int] | None = None) -> summary.Summary:
    failed = sum((failures or {}).values())
    kinds = [
        summary.Kind("gRPC", name, sum(counts.values()) + failed, failed, counts) for name, counts in latencies.items()
    ]
    total = summary.all_of(kinds)
    return summary.Summary(
        {"loop": "open"},
        10.0,
        total.requests - total.failures,
        kinds,
        total,
        failures or {},
        summary.Strain(1, 0.1, 0.0, 0),
    )


def read(tmp_path: Path, text: str) -> objectives.Objectives:
    file = tmp_path / "objectives.toml"
    file.write_text(text)
    return objectives.read(file)


def misses(run: summary.Summary, wanted: objectives.Objectives) -> dict[str, str]:
    return {verdict.what: verdict.missed_by for verdict in objectives.judge(run, wanted) if not verdict.met}


def test_a_missed_percentile_is_reported_with_the_difference(tmp_path: Path) -> None:
    wanted = read(tmp_path, '[p99]\n"* web" = 0.5\n"* large" = 2\n[p50]\nall = 1')
    run = run_of({"resnet50 web": {400: 98, 750: 2}, "resnet50 large": {1900: 10}})
    assert misses(run, wanted) == {"p99 of gRPC resnet50 web": "0.250 s (50%)"}


def test_failures_wrong_masks_and_throughput_are_judged(tmp_path: Path) -> None:
    wanted = read(tmp_path, "error_share = 0.01\nwrong_replies = 0\nthroughput = 10")
    assert misses(run_of({"resnet50 web": {100: 100}}), wanted) == {}
    found = misses(run_of({"resnet50 web": {100: 78}}, {WRONG_PIXELS: 2, "refused": 20}), wanted)
    assert found == {
        "failed requests": "21.00 percentage points",
        "wrong masks": "2",
        "correct replies per second": "2.20/s (22%)",
    }


def test_a_run_without_requests_or_of_other_ones_misses(tmp_path: Path) -> None:
    wanted = read(tmp_path, '[p99]\n"HTTP *" = 1')
    assert misses(run_of({}), wanted) == {"requests": "not measured"}
    assert misses(run_of({"resnet50 web": {100: 1}}), wanted) == {"p99 of HTTP *": "not measured"}


def test_a_run_with_a_problem_misses_its_objectives(tmp_path: Path) -> None:
    run = run_of({"resnet50 web": {100: 1}})
    run.problems.append("worker a: did not finish")
    assert misses(run, read(tmp_path, "error_share = 0")) == {"load test": "not measured"}
    # What workers compared is no request, and has no latency.
    compared = run_of({"resnet50 web": {100: 1}, f"resnet50, {BETWEEN_WORKERS}": {}})
    assert misses(compared, read(tmp_path, '[p99]\n"*" = 1')) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no objectives"),
        ("error_rate = 1", "'error_rate' is not an objective"),
        ("error_share = 1.5", "from 0 to 1"),
        ("error_share = 'x'", "must be a number"),
        ("throughput = true", "must be a number"),
        ("[p99]\nall = -1", "must be a number"),
        ("p99 = 1", "'p99' is not an objective"),
        ("[p99", "cannot be read"),
        ("[p99]", "must be a percentile above 0"),
        ("[p0]\nall = 1", "must be a percentile above 0"),
        ('[p99]\nall = 1\n["p99.0"]\nall = 2', "percentile of another table"),
    ],
)
def test_objectives_that_mean_nothing_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(objectives.ObjectivesError, match=said):
        read(tmp_path, text)


def test_the_objectives_that_are_shipped_can_be_read() -> None:
    for file in sorted((ROOT / "load_tests").glob("objectives*.toml")):
        assert objectives.read(file).latency


def test_a_summary_is_the_same_after_a_file(tmp_path: Path) -> None:
    run = run_of({"resnet50 web": {100: 5}}, {"refused": 1})
    run.save(tmp_path / "a" / "run.json", met=False)
    assert summary.load(tmp_path / "a" / "run.json") == run


def test_the_page_proves_the_run_when_it_is_mailed_alone(tmp_path: Path) -> None:
    run = run_of({"resnet50 <web>": {400: 98, 750: 2}}, {"refused & gone": 1})
    run.problems.append("worker a: did not finish")
    run.models["segment_resnet50"] = "version 1, weights VOC"
    run.setting.update(host="grpc://there:8001", users=7, variants={"resnet50": 3.0})
    times = {f"{part}_seconds": 1.0 for part in server_statistics.TIMES}
    batches = {"1": {"executions": 40}, "4": {"executions": 15}}
    run.server["core_resnet50"] = {
        "requests": 100,
        "inferences": 100,
        "executions": 55,
        **times,
        "batches": batches,
    }
    verdicts = objectives.judge(run, read(tmp_path, '[p99]\n"* <web>" = 0.5'))
    page = report.page('<title>Locust</title><body><div id="root"></div>', run, verdicts)
    text = html.unescape(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page))
    for said in (
        "Load test failed: 1 of 2 objectives missed, 1 not measured",
        "worker a: did not finish",
        "p99 of gRPC resnet50 <web>   at most 0.5 s   0.750 s   missed by 0.250 s (50%)",
        "grpc://there:8001",
        "segment_resnet50: version 1, weights VOC",
        "users 7",
        "resnet50=3",
        "refused & gone   1",
        "core_resnet50   100   1.82   10.0   30.0   40 of 1, 15 of 4",
        "1 process, the busiest at 10% of a core",
    ):
        assert re.sub(r"\s+", " ", said) in re.sub(r"\s+", " ", text)
    assert "<title>Load test failed" in page
    assert page.endswith('<div id="root"></div>')
    passed = report.page(
        '<div id="root">', run, objectives.judge(run_of({"a web": {1: 1}}), objectives.Objectives({}, {}))
    )
    assert "Load test passed" in passed


def test_a_client_that_limits_is_named() -> None:
    calm = {"cpu": 0.2, "late": {"1": 990}, "most_unfinished": 3}
    busy = {"cpu": 0.95, "late": {"80": 20}, "most_unfinished": 9}
    assert summary.Strain.of([calm]).warning is None
    both = summary.Strain.of([calm, busy])
    assert (both.processes, both.busiest_cpu, both.most_unfinished, both.late_p99) == (2, 0.95, 9, 0.08)
    assert both.warning is not None
    assert "95% of a core" in both.warning
    assert "80 ms late" in both.warning


def test_only_what_a_server_did_meanwhile_is_counted() -> None:
    batch = {"1": {"executions": 2, "seconds": 0.5}}
    before = {"core": {"requests": 3, "seconds": 1.0, "batches": batch}, "idle": {"requests": 4, "batches": {}}}
    after = {
        "core": {
            "requests": 9,
            "seconds": 2.5,
            "batches": {"1": {"executions": 2, "seconds": 0.5}, "4": {"executions": 1, "seconds": 0.7}},
        },
        "idle": {"requests": 4, "batches": {}},
    }
    assert server_statistics.between(before, after) == {
        "core": {"requests": 6, "seconds": 1.5, "batches": {"4": {"executions": 1, "seconds": 0.7}}}
    }


def test_statistics_of_two_servers_or_of_one_that_restarted_are_none() -> None:
    one = {"core": {"requests": 9, "batches": {"4": {"executions": 5, "seconds": 1.0}}}}
    other = {"core": {"requests": 12, "batches": {"4": {"executions": 3, "seconds": 2.0}}}}
    assert server_statistics.between(one, other) is server_statistics.between(other, one) is None
    assert server_statistics.between(one, one) == {}


def test_every_argument_has_a_variable_of_its_own() -> None:
    parser = Parser()
    add_arguments(parser)
    # --help comes first and is argparse's.
    assert len(set(parser.variables[1:])) == len(parser.variables[1:])
    assert all(variable.startswith("LOCUST_") for variable in parser.variables[1:])
    assert weights(parse().variants) == {"resnet50": 3, "resnet101": 1}


def test_weights_are_read_and_zero_leaves_out() -> None:
    assert weights("web=2, large", names=("web", "large")) == {"web": 2, "large": 1}
    assert weights("a=0,b=1") == {"b": 1}
    for wrong in ("a=x", "a=-1", "a=0", "", "a=inf"):
        with pytest.raises(ValueError, match="weight"):
            weights(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        ("--rate", "0"),
        ("--tolerance", "2"),
        ("--kinds", "huge=1"),
        ("--loop", "oval"),
        ("--retries", "1.5"),
        ("--seed", "x"),
    ],
)
def test_what_an_argument_cannot_mean_is_refused(wrong: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(*wrong)
    assert ended.value.code == 2


def test_what_needs_no_locust_does_not_load_it() -> None:
    """Locust replaces sockets and locks of the whole process."""
    code = "import sys, load_tests.capacity, load_tests.objectives; sys.exit('gevent' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
