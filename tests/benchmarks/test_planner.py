"""A planner follows a day-shaped load in virtual time; that the simulation is right is the simulator's own test."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks.planner import main
from benchmarks.planner_config import PlannerBenchConfig
from benchmarks.planner_fleets import Outcome, simulate, timing
from benchmarks.planner_loads import Load, LoadName, day_shape, make_load
from benchmarks.planner_oracle import Need, Oracle
from benchmarks.planner_policies import planner_options
from dynamo.planner.make import make_planner
from dynamo.protocols.model_card import WorkerType
from dynamo.simulator.elastic_run import ElasticRecord
from dynamo.simulator.exact_profile import exact_profile
from dynamo.simulator.record import RequestRecord

SLICE = Path(__file__).parents[1] / "data" / "mooncake_conversation_slice.jsonl"
HEADROOM = 1.6  # with which a constant fleet for the peak meets the targets
# A day within 7 minutes, and everything else in proportion
CONFIG = PlannerBenchConfig(interval_s=1.0, throughput_interval_s=8.0, scale_down_delay_s=5.0)
DAY = dataclasses.replace(make_load(LoadName.DAY, None, scale=0.06, seed=0), start_up_s=5.0)
PROFILE = exact_profile(CONFIG.engine(DAY.requests), timing(DAY))
NEED = Need(DAY, PROFILE, disaggregated=False)


@pytest.fixture(scope="module")
def peak() -> Outcome:
    return simulate(DAY, CONFIG, NEED.peak(HEADROOM))


def test_a_planner_needs_far_fewer_gpus_than_the_peak_and_keeps_the_targets(peak: Outcome) -> None:
    planner = make_planner(planner_options(DAY, CONFIG, "both"), PROFILE, converts=False)
    planned = simulate(DAY, CONFIG, NEED.between(0.0, DAY.start_up_s, HEADROOM), planner)
    assert all(request.finished for request in planned.record.requests)
    assert planned.attainment > 0.93 * peak.attainment
    assert planned.gpu_hours < 0.8 * peak.gpu_hours  # a day of seven minutes is half start-ups, cool-downs and chance


def test_the_mean_is_not_enough(peak: Outcome) -> None:
    assert peak.attainment > 0.98
    assert simulate(DAY, CONFIG, NEED.mean(HEADROOM)).attainment < 0.7


def test_who_knows_the_future_needs_less_still(peak: Outcome) -> None:
    oracle = simulate(DAY, CONFIG, NEED.between(0.0, 7.0, HEADROOM), Oracle(NEED, HEADROOM, 7.0))
    assert oracle.attainment > 0.95
    assert oracle.gpu_hours < 0.65 * peak.gpu_hours


def test_the_day_is_as_announced() -> None:
    shape = [day_shape(hour) for hour in range(24)]
    assert sum(shape) / 24 == pytest.approx(1, rel=0.01)
    assert 2 < max(shape) < 2.5
    assert min(shape) < 0.2
    assert dataclasses.replace(make_load(LoadName.DAY, None, scale=0.06, seed=0), start_up_s=5.0) == DAY


def test_a_burst_is_recovered_from_when_its_requests_are_in_time_again() -> None:
    load = make_load(LoadName.BURST, None, scale=0.3, seed=0)
    ((begin_s, end_s),) = load.bursts_s
    assert outcome_of(load).recovery_s == 0.0
    assert outcome_of(load, (begin_s, begin_s + 70)).recovery_s == 75.0, "in quarters of a start-up time"
    late_s = (begin_s, begin_s + 70), (end_s - 0.5, end_s)
    assert outcome_of(load, *late_s).recovery_s == 75.0, "half a second of fifteen is less than a tenth"
    assert outcome_of(load, (begin_s, end_s)).recovery_s == float("inf")


def outcome_of(load: Load, *late_s: tuple[float, float]) -> Outcome:
    """All requests are answered at once, but for those that arrive in these times."""
    requests = [
        RequestRecord(
            request_id=request_id,
            arrival_s=time_s,
            prompt_tokens=1,
            output_tokens=1,
            first_token_s=time_s + (100 if any(begin_s <= time_s < end_s for begin_s, end_s in late_s) else 0),
            finished=True,
        )
        for request_id, time_s in enumerate(load.times_s)
    ]
    return Outcome(
        load=load, record=ElasticRecord(requests=requests, end_s=load.duration_s, gpu_s=1.0, spans_s={}, decisions=[])
    )


def test_a_small_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["--scale", "0.006", "--start-up", "2", "--interval-s", "1", "--policies", "both,static-peak"]
    assert main(["day", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "## a day within 0.012 hours"
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")]
    assert [row[0] for row in rows] == ["fleet", "both", "static-peak"]
    assert rows[2][4] == "100 %"


def test_prefill_and_decode_workers(capsys: pytest.CaptureFixture[str]) -> None:
    load = make_load(LoadName.DAY, None, scale=0.02, seed=0)
    planner = make_planner(planner_options(load, CONFIG, "both"), PROFILE, converts=False)
    outcome = simulate(load, CONFIG, {WorkerType.Prefill: 4, WorkerType.Decode: 4}, planner)
    assert all(request.finished for request in outcome.record.requests)
    assert set(outcome.record.spans_s) == {WorkerType.Prefill, WorkerType.Decode}
    assert outcome.record.actions


def test_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace"]) == 1
    assert "Mooncake" in capsys.readouterr().err
    assert main(["day", "--policies", "magic"]) == 1
    assert "magic" in capsys.readouterr().err


def test_a_recorded_load() -> None:
    load = make_load(LoadName.TRACE, SLICE, scale=0.1, seed=0)
    assert len(load.requests) == len(load.times_s) == 50
    assert load.duration_s == load.times_s[-1]
