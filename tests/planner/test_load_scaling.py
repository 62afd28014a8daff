"""One worker more or fewer, and when."""

from dataclasses import replace

import pytest

from dynamo.planner.demand import Demand
from dynamo.planner.load_scaling import LoadPolicy
from dynamo.planner.load_signals import FleetLoad
from dynamo.planner.need import Targets
from dynamo.planner.observation import Traffic
from dynamo.planner.situation import Situation
from dynamo.protocols.model_card import WorkerType

from .scripted_model import ScriptedModel, UnknownModel

TARGETS = Targets(ttft_s=0.5, itl_s=0.05)
IDLE = FleetLoad(running=0, waiting=0, prefill_tokens=0, kv_usage=0)


def _situation(rate: float, workers: int, load: FleetLoad | None = None, coming: int = 0) -> Situation:
    return Situation(
        role=WorkerType.Aggregated,
        counted=workers,
        ready=workers - coming,
        coming=coming,
        demand=Demand(
            requests_per_s=rate,
            at_least_per_s=rate,
            at_most_per_s=rate,
            prefill_tokens=1000.0,
            prompt_tokens=1000.0,
            output_tokens=200.0,
        ),
        traffic=Traffic(
            duration_s=5.0,
            requests=5 * rate,
            prompt_tokens=1000.0,
            cached_tokens=None,
            output_tokens=200.0,
            ttft_s=None,
            itl_s=None,
        ),
        load=load,
    )


def _propose(situation: Situation, *, known: bool = True) -> int:
    policy = LoadPolicy(ScriptedModel() if known else UnknownModel(), 60)
    return policy.propose(situation, TARGETS, 0.0).workers


def test_as_many_as_the_arrivals_need() -> None:
    """10 req/s x 200 tokens x 50 ms are 100 at once, and 12.8 for chance; a worker may have 26.7."""
    assert _propose(_situation(10, 4)) == 5
    assert _propose(_situation(10, 2)) == 5
    assert _propose(_situation(10, 5)) == 5
    assert _propose(_situation(10, 9)) == 5


def test_chance_neither_orders_workers_nor_ends_them() -> None:
    """5 req/s need 2.3 workers, 20 need 8.2; see test_load_scaling_ahead for what pressure makes of it."""
    scattered = replace(_situation(10, 0).demand, at_least_per_s=5.0, at_most_per_s=20.0)
    for workers, wanted in ((2, 3), (3, 3), (4, 4), (9, 9), (12, 9)):
        assert _propose(replace(_situation(10, workers), demand=scattered)) == wanted


def test_many_requests_at_once_are_no_reason_for_workers_that_come_too_late_for_them() -> None:
    """300 at once need 11; they last 10 s, so that 6 have done with them within the 60 s; but none may leave."""
    crowd = replace(IDLE, running=300)
    assert _propose(_situation(10, 5, crowd)) == 6
    assert _propose(_situation(10, 6, crowd)) == 6
    assert _propose(_situation(10, 20, crowd)) == 11


def test_a_backlog_is_worked_off_in_time_not_at_once() -> None:
    """60 s of work for one worker, and 60 s to do it: one more than the four to five that the arrivals need."""
    queued = replace(IDLE, waiting=3, prefill_tokens=600_000)
    assert _propose(_situation(10, 5, queued)) == 6
    assert _propose(_situation(10, 6, queued)) == 6


def test_those_that_start_count() -> None:
    late = replace(_situation(10, 6).traffic, ttft_s=0.9)
    crowd = replace(IDLE, running=1, waiting=1)
    assert _propose(replace(_situation(10, 6, crowd), traffic=late), known=False) == 7
    assert _propose(replace(_situation(10, 6, crowd, coming=3), traffic=late), known=False) == 6


@pytest.mark.parametrize(
    "load",
    [
        replace(IDLE, running=10, kv_usage=0.95),
        replace(IDLE, running=10, waiting=30),
    ],
)
def test_signs_of_pressure_without_a_model(load: FleetLoad) -> None:
    assert _propose(_situation(1, 4, load), known=False) == 5


def test_latencies_that_more_workers_would_not_help() -> None:
    slow = replace(_situation(1, 4).traffic, ttft_s=0.9, itl_s=0.2)
    assert _propose(replace(_situation(1, 4, replace(IDLE, running=2)), traffic=slow), known=False) == 4


def test_without_a_model_fewer_only_far_from_the_targets() -> None:
    near = replace(_situation(1, 4).traffic, ttft_s=0.35, itl_s=0.01)
    far = replace(near, ttft_s=0.2)
    assert _propose(replace(_situation(1, 4, IDLE), traffic=near), known=False) == 4
    assert _propose(replace(_situation(1, 4, IDLE), traffic=far), known=False) == 3


def test_caches_must_not_become_too_full() -> None:
    assert _propose(_situation(0.1, 4, replace(IDLE, kv_usage=0.7))) == 4
    assert _propose(_situation(0.1, 4, replace(IDLE, kv_usage=0.5))) == 3


def test_the_first_worker() -> None:
    assert _propose(_situation(0.1, 0), known=False) == 1
    assert _propose(_situation(0.0, 1), known=False) == 0
    assert _propose(_situation(0.0, 1, replace(IDLE, running=1)), known=False) == 1
