"""How far the model is from what is observed."""

import pytest

from dynamo.planner.correction import Correction
from dynamo.planner.demand import Demand
from dynamo.planner.load_signals import FleetLoad

from .scripted_model import ScriptedModel

DEMAND = Demand(
    requests_per_s=2.0,
    at_least_per_s=2.0,
    at_most_per_s=2.0,
    prefill_tokens=1000.0,
    prompt_tokens=1000.0,
    output_tokens=200.0,
)
LOAD = FleetLoad(running=40, waiting=0, prefill_tokens=0, kv_usage=0.1)


def test_as_modelled_nothing_is_corrected() -> None:
    correction = Correction(0.5)
    correction.observe_itl(0.03, DEMAND, LOAD, 2, ScriptedModel())  # 10 + 20 ms
    correction.observe_ttft(0.1, DEMAND, 2, ScriptedModel())
    assert correction.slowness == pytest.approx(1)
    assert correction.overhead_s == pytest.approx(0)


def test_a_slower_engine_and_a_handoff_are_learnt_within_bounds() -> None:
    correction = Correction(0.5)
    for _ in range(100):
        correction.observe_itl(0.045, DEMAND, LOAD, 2, ScriptedModel())
        correction.observe_ttft(0.2, DEMAND, 2, ScriptedModel())
    assert correction.slowness == pytest.approx(1.5, rel=0.01)
    assert correction.overhead_s == pytest.approx(0.1, rel=0.05)
    for _ in range(100):
        correction.observe_itl(100.0, DEMAND, LOAD, 2, ScriptedModel())
        correction.observe_ttft(100.0, DEMAND, 2, ScriptedModel())
    assert correction.slowness <= 2
    assert correction.overhead_s <= 0.25


def test_an_overloaded_fleet_tells_nothing() -> None:
    correction = Correction(0.5)
    correction.observe_ttft(5.0, DEMAND.at(19), 2, ScriptedModel())
    assert correction.overhead_s == 0


def test_prompts_that_come_between_tokens_do_not_make_an_engine_slower() -> None:
    correction = Correction(0.5)
    itl_s = 0.03 / (1 - 2.0 * 0.1 / 2)  # two workers prefill 2 prompts/s of 0.1 s, a tenth of their time
    correction.observe_itl(itl_s, DEMAND, LOAD, 2, ScriptedModel(), prefills=True)
    assert correction.slowness == pytest.approx(1)
