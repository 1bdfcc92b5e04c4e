"""The simulation of replicas against the closed formulas of queueing theory, and what is read from a measured run."""

from __future__ import annotations

import functools
import json
import math
import random
from typing import TYPE_CHECKING, Any

import pytest

from load_tests import capacity, summary
from load_tests.capacity import ServiceTimesError, service_times
from load_tests.simulation import BALANCING, Balancing, Outcome, Replica, poisson, simulate

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

SERVICE = 0.1  # seconds
NUMBER = 40_000  # requests: the mean wait of a queue that is busy at 70 % is then known to about 4 %


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - draws load, not secrets


def exponential(_: int, source: random.Random) -> float:
    return source.expovariate(1 / SERVICE)


def constant(_: int, __: random.Random) -> float:
    return SERVICE


def outcome(
    replica: Replica, *, rate: float, replicas: int = 1, balancing: Balancing = "round-robin", number: int = NUMBER
) -> Outcome:
    source = seeded(3)
    arrivals = poisson(rate, number=number, source=source)
    return simulate(arrivals, replica, replicas=replicas, balancing=balancing, source=source)


def mean(found: Outcome) -> float:
    return sum(found.latencies) / len(found.latencies)


def erlang_c(load: float, servers: int) -> float:
    """The probability that a customer of M/M/c waits."""
    top = load**servers / math.factorial(servers) * servers / (servers - load)
    return top / (sum(load**k / math.factorial(k) for k in range(servers)) + top)


@pytest.mark.parametrize("busy", [0.3, 0.7])
def test_one_server_with_exponential_times_is_m_m_1(busy: float) -> None:
    found = outcome(Replica(exponential), rate=busy / SERVICE)
    sojourn = SERVICE / (1 - busy)
    assert mean(found) == pytest.approx(sojourn, rel=0.08)
    # The time in M/M/1 is exponential.
    assert found.percentile(0.5) == pytest.approx(sojourn * math.log(2), rel=0.08)
    assert found.percentile(0.99) == pytest.approx(sojourn * math.log(100), rel=0.12)
    assert found.utilization == pytest.approx(busy, rel=0.03)


@pytest.mark.parametrize("busy", [0.3, 0.7])
def test_one_server_with_constant_times_is_m_d_1(busy: float) -> None:
    found = outcome(Replica(constant), rate=busy / SERVICE)
    assert mean(found) - SERVICE == pytest.approx(SERVICE * busy / (2 * (1 - busy)), rel=0.08)
    assert found.latencies[0] == pytest.approx(SERVICE)


def test_instances_of_one_queue_are_m_m_c() -> None:
    servers, load = 3, 2.4
    found = outcome(Replica(exponential, instances=servers), rate=load / SERVICE)
    wait = erlang_c(load, servers) * SERVICE / (servers - load)
    assert mean(found) - SERVICE == pytest.approx(wait, rel=0.08)
    assert found.utilization == pytest.approx(load / servers, rel=0.03)


def test_random_balancing_is_one_m_m_1_a_replica() -> None:
    found = outcome(Replica(exponential), rate=4 * 0.7 / SERVICE, replicas=4, balancing="random")
    assert mean(found) == pytest.approx(SERVICE / (1 - 0.7), rel=0.08)


def test_a_full_queue_refuses_as_many_as_erlang_b_predicts() -> None:
    found = outcome(Replica(exponential, max_queue=0, instances=1), rate=1 / SERVICE, number=200)
    assert found.latencies == []  # nobody may wait, not even for an idle instance
    # One place to wait in, which an idle instance empties at once: M/M/1/2.
    found = outcome(Replica(exponential, max_queue=1), rate=0.8 / SERVICE)
    lost = 0.8**2 / (1 + 0.8 + 0.8**2)
    assert found.refused / NUMBER == pytest.approx(lost, rel=0.08)


def test_better_balancing_waits_less() -> None:
    waits = [
        mean(outcome(Replica(exponential), rate=3 * 0.85 / SERVICE, replicas=3, balancing=balancing))
        for balancing in ("least-outstanding", "round-robin", "random")
    ]
    assert waits == sorted(waits)
    assert set(BALANCING) == {"least-outstanding", "round-robin", "random"}


def by_hand(arrivals: list[float], replica: Replica) -> Outcome:
    return simulate(arrivals, replica, replicas=1, balancing="round-robin", source=seeded(0))


def test_batches_take_what_waits() -> None:
    def service(size: int, _: random.Random) -> float:
        return 1.0 + size

    # The first goes alone until 2; then three of the four that wait until 6; the last until 8.
    found = by_hand([0.0, 0.1, 0.2, 0.3, 0.4], Replica(service, max_batch=3))
    assert found.latencies == pytest.approx([2.0, 6 - 0.3, 6 - 0.2, 6 - 0.1, 8 - 0.4])
    assert found.batch == pytest.approx(5 / 3)


def test_a_queue_delay_waits_for_a_batch_but_not_longer() -> None:
    replica = Replica(constant, max_batch=3, queue_delay=0.5)
    assert by_hand([0.0], replica).latencies == pytest.approx([0.5 + SERVICE])
    assert by_hand([0.0, 0.2], replica).latencies == pytest.approx([0.3 + SERVICE, 0.5 + SERVICE])
    full = by_hand([0.0, 0.2, 0.3], replica)
    assert full.latencies == pytest.approx([SERVICE, 0.1 + SERVICE, 0.3 + SERVICE])


def test_what_is_outside_the_core_is_added() -> None:
    assert by_hand([0.0], Replica(constant, constant=0.25)).latencies == pytest.approx([SERVICE + 0.25])


def test_nothing_is_simulated_without_arrivals() -> None:
    found = by_hand([], Replica(constant))
    assert (found.latencies, found.refused, found.utilization) == ([], 0, 0.0)
    assert found.percentile(0.99) == math.inf


def run_of(batches: dict[int, tuple[int, float]], *, queue: float = 0.0, latency_ms: int = 200) -> summary.Summary:
    """A run whose core had so many batches of a size, each of so many seconds."""
    requests = sum(size * count for size, (count, _) in batches.items())
    core: dict[str, Any] = {
        "requests": requests,
        "queue_seconds": queue * requests,
        "compute_input_seconds": 0.0,
        "compute_infer_seconds": sum(size * count * each for size, (count, each) in batches.items()),
        "compute_output_seconds": 0.0,
        "batches": {
            str(size): {"executions": count, "seconds": count * each} for size, (count, each) in batches.items()
        },
    }
    kind = summary.Kind("gRPC", "resnet50 web", requests, 0, {latency_ms: requests})
    return summary.Summary(
        {"loop": "closed"},
        10.0,
        requests,
        [kind],
        kind,
        {},
        summary.Strain(1, 0.1, 0.0, 0),
        {"core_resnet50": core, "segment_resnet50": {"requests": requests}},
    )


def test_service_times_are_those_measured_and_a_line_between_and_beyond() -> None:
    times = service_times(run_of({1: (50, 0.02), 2: (50, 0.03), 4: (50, 0.05)}))
    assert times.mean(2) == pytest.approx(0.03)
    assert times.mean(3) == pytest.approx(0.04)
    assert times.mean(8) == pytest.approx(0.09)
    assert times.largest == 4
    assert times.most_per_second(8, 2) == pytest.approx(2 * 8 / 0.09)


def test_one_size_of_batch_promises_nothing_for_larger_ones() -> None:
    times = service_times(run_of({1: (50, 0.02)}))
    assert times.mean(4) == pytest.approx(0.08)


def test_the_constant_is_what_the_core_does_not_explain() -> None:
    times = service_times(run_of({1: (50, 0.02)}, queue=0.03, latency_ms=200))
    assert times.constant == pytest.approx(0.2 - 0.05)


def test_the_variation_is_that_of_the_drawn_times() -> None:
    times = service_times(run_of({1: (50, 0.02)}), variation=0.5)
    drawn = [times(1, source) for source in [seeded(1)] for _ in range(20_000)]
    average = sum(drawn) / len(drawn)
    deviation = math.sqrt(sum((value - average) ** 2 for value in drawn) / len(drawn))
    assert average == pytest.approx(0.02, rel=0.03)
    assert deviation / average == pytest.approx(0.5, rel=0.05)


def test_a_run_without_the_servers_statistics_is_refused() -> None:
    run = run_of({1: (50, 0.02)})
    run.server.clear()
    with pytest.raises(ServiceTimesError, match="Triton itself"):
        service_times(run)
    with pytest.raises(ServiceTimesError, match="use one of core_resnet50"):
        service_times(run_of({1: (50, 0.02)}), model="core_resnet101")


def test_a_run_beside_other_callers_or_through_a_balancer_is_refused() -> None:
    run = run_of({1: (50, 0.02)})
    run.server["segment_resnet50"]["requests"] = 25
    with pytest.raises(ServiceTimesError, match="counted 25 pictures, but the run got 50 replies"):
        service_times(run)


def test_the_command_reports_the_number_of_replicas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    run_of({1: (50, 0.1)}, latency_ms=100).save(file)
    options = [str(file), "--rate", "25", "--p99", "0.3", "--requests", "4000"]
    assert capacity.main(options) == 0
    shown = capsys.readouterr().out
    rows = [line.replace("│", " ").split() for line in shown.splitlines() if line.startswith("│")]
    verdicts = {int(row[0]): row[-1] for row in rows}
    assert verdicts[2] == "few"  # 25 a second at 10 a second and replica
    assert next(row for row in rows if row[0] == "2")[3:5] == ["unbounded", "unbounded"]
    assert "batches were measured" not in shown
    assert "enough" in verdicts.values()
    assert "at most 10.0 pictures per second" in shown
    assert capacity.main([*options, "--most", "2"]) == capacity.EXIT_TOO_FEW


def test_what_is_overloaded_is_never_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """However few requests are simulated, and however long they may wait."""
    file = tmp_path / "run.json"
    run_of({1: (50, 0.1)}, latency_ms=100).save(file)
    options = [str(file), "--rate", "10.1", "--p99", "100", "--requests", "2000"]
    assert capacity.main([*options, "--most", "1"]) == capacity.EXIT_TOO_FEW
    assert "unbounded" in capsys.readouterr().out
    assert capacity.main([*options, "--most", "2"]) == 0


def test_a_run_of_both_models_is_refused_unless_one_is_named() -> None:
    run = run_of({1: (50, 0.02)})
    run.server["core_resnet101"] = run.server["core_resnet50"]
    with pytest.raises(ServiceTimesError, match="core_resnet101 and core_resnet50, which share"):
        service_times(run)
    assert service_times(run, model="core_resnet50").mean(1) == pytest.approx(0.02)


def test_the_command_warns_of_few_batches_and_high_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "run.json"
    run_of({1: (7, 0.1)}, latency_ms=100).save(file)
    assert capacity.main([str(file), "--rate", "2000", "--p99", "0.3"]) == capacity.EXIT_TOO_FEW
    shown = capsys.readouterr().out
    assert "only 7 batches were measured" in shown
    assert "2000/s is more than 64 replicas can answer (640.0/s)" in shown


def test_a_run_with_a_problem_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, file = run_of({1: (50, 0.1)}, latency_ms=100), tmp_path / "run.json"
    run.problems.append("worker x: did not finish")
    run.save(file)
    assert capacity.main([str(file), "--rate", "5", "--p99", "1", "--requests", "2000"]) == 0
    assert "the run had a problem: worker x: did not finish" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "changed", "said"),
    [
        ([], {"format": 0}, "measure again"),
        ([], {"server": []}, "is not the summary of a run"),
        (["kinds", 0], {"name": ""}, "is not the summary of a run"),
        (["kinds", 0], {"milliseconds": {"3": "x"}}, "is not the summary of a run"),
        (["server"], {"core_resnet50": {}}, "have no batches"),
    ],
)
def test_the_command_refuses_what_is_no_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], where: list[Any], changed: dict[str, Any], said: str
) -> None:
    file = tmp_path / "run.json"
    run_of({1: (50, 0.1)}, latency_ms=100).save(file)
    content = json.loads(file.read_text())
    functools.reduce(lambda inner, key: inner[key], where, content).update(changed)
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as ended:
        capacity.main([str(file), "--rate", "25", "--p99", "0.3"])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--max-batch", "1025"], ["--instances", "257"], ["--most", "0"]])
def test_the_command_refuses_what_no_simulation_ends_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: list[str]
) -> None:
    with pytest.raises(SystemExit):
        capacity.main([str(tmp_path / "run.json"), "--rate", "25", "--p99", "0.3", *option])
    said = capsys.readouterr().err
    assert "must be an integer from 1 to" in said
    assert f"got {option[1]!r}" in said
