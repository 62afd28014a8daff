"""What of an observation makes sense."""

import math
from dataclasses import fields, replace

import pytest

from dynamo.planner.intake import Gate
from dynamo.planner.observation import Fleet, Observation, Traffic
from dynamo.protocols.load import WorkerLoad
from dynamo.protocols.model_card import WorkerType

TRAFFIC = Traffic(
    duration_s=5.0, requests=50.0, prompt_tokens=100.0, cached_tokens=20.0, output_tokens=10.0, ttft_s=0.1, itl_s=0.01
)
FLEET = Fleet(desired=2, ready=2)
SEEN = Observation(now_s=5.0, traffic=TRAFFIC, fleets={WorkerType.Decode: FLEET})


def test_sense_passes() -> None:
    intake = Gate().check(SEEN)
    assert (intake.traffic, intake.fleets, intake.problems, intake.held) == (TRAFFIC, SEEN.fleets, (), "")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1.0, 1e300])
@pytest.mark.parametrize("name", [each.name for each in fields(Traffic)])
def test_nonsense_is_no_traffic(name: str, value: float) -> None:
    intake = Gate().check(replace(SEEN, traffic=replace(TRAFFIC, **{name: value})))
    assert intake.traffic is None
    assert intake.held
    assert intake.problems


def test_no_more_is_cached_than_there_is() -> None:
    """Prompts and what of them was cached may be told in different intervals."""
    intake = Gate().check(replace(SEEN, traffic=replace(TRAFFIC, cached_tokens=150.0)))
    assert intake.traffic is not None
    assert intake.traffic.cached_tokens == 100.0


@pytest.mark.parametrize(
    "fleet",
    [
        replace(FLEET, desired=-1),
        replace(FLEET, ready=10**9),
        replace(FLEET, draining=-2),
        replace(FLEET, starting_s=(math.nan,)),
    ],
)
def test_nonsense_is_no_fleet(fleet: Fleet) -> None:
    intake = Gate().check(replace(SEEN, fleets={WorkerType.Decode: fleet}))
    assert intake.fleets is None
    assert intake.held.startswith("decode: ")


def test_a_deployment_is_of_one_kind() -> None:
    intake = Gate().check(replace(SEEN, fleets={WorkerType.Decode: FLEET, WorkerType.Aggregated: FLEET}))
    assert intake.fleets is None
    assert "beside others" in intake.held


def test_a_load_that_makes_no_sense_is_left_out() -> None:
    loads = {
        "a": WorkerLoad(running_requests=1),
        "b": WorkerLoad(running_requests=-1),
        "c": WorkerLoad(kv_used_blocks=3, kv_total_blocks=2),
        "d": WorkerLoad(busy_s=math.nan),
    }
    intake = Gate().check(replace(SEEN, fleets={WorkerType.Decode: replace(FLEET, loads=loads)}))
    assert intake.fleets is not None
    assert intake.fleets[WorkerType.Decode].loads == {"a": loads["a"]}
    assert len(intake.problems) == 3
    assert not intake.held


def test_what_is_not_newer_is_not_believed_but_a_clock_set_back_is_once() -> None:
    gate = Gate()
    gate.check(SEEN)
    for now_s in (5.0, 4.0, math.nan):
        intake = gate.check(replace(SEEN, now_s=now_s))
        assert (intake.traffic, intake.fleets) == (None, None)
        assert intake.held
    assert not gate.check(replace(SEEN, now_s=4.5)).held
