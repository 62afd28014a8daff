"""How many workers a demand needs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamo.planner.demand import Demand
from dynamo.planner.need import Targets, decode_need, prefill_need
from dynamo.planner.role_need import role_need
from dynamo.protocols.model_card import WorkerType

from .scripted_model import ScriptedModel, UnknownModel

MODEL = ScriptedModel()  # 10,000 prompt tokens/s; 40 requests at once keep an ITL of 50 ms
TARGETS = Targets(ttft_s=0.5, itl_s=0.05)


def _demand(rate: float, prefill: float | None = 1000.0, output: float | None = 200.0) -> Demand:
    return Demand(
        requests_per_s=rate,
        at_least_per_s=rate,
        at_most_per_s=rate,
        prefill_tokens=prefill,
        prompt_tokens=prefill,
        output_tokens=output,
    )


def _prefill(demand: Demand, targets: Targets = TARGETS) -> float:
    need = prefill_need(demand, MODEL, targets)
    assert need is not None
    return need.workers


def _decode(demand: Demand, targets: Targets = TARGETS) -> float:
    need = decode_need(demand, MODEL, targets)
    assert need is not None
    return need.workers


def test_prefill_by_throughput_and_what_it_may_be_used() -> None:
    assert 10 < _prefill(_demand(100)) < 11.5  # 100·1000/10,000 = 10 workers, nearly always busy: ten share the queue
    assert 1.2 < _prefill(_demand(10)) < 1.5


def test_a_tight_target_needs_more() -> None:
    tight = replace(TARGETS, ttft_s=0.11)  # a prompt alone takes 0.1 s
    assert _prefill(_demand(10), tight) > _prefill(_demand(10))
    assert _prefill(_demand(10), replace(TARGETS, overhead_s=0.3)) > _prefill(_demand(10))


def test_a_target_out_of_reach_is_said_and_does_not_order_the_cluster() -> None:
    need = prefill_need(_demand(10), MODEL, replace(TARGETS, ttft_s=0.05))
    assert need is not None
    assert need.workers == pytest.approx(1 / 0.4)
    assert "out of reach" in need.reason
    need = decode_need(_demand(10), MODEL, replace(TARGETS, itl_s=0.005))
    assert need is not None
    assert "out of reach" in need.reason


def test_decode_by_littles_law_and_the_square_root_of_it() -> None:
    assert _decode(_demand(40)) == pytest.approx((400 + 1.28 * 20) / 40)


def test_a_slower_engine_needs_more() -> None:
    assert _decode(_demand(40), replace(TARGETS, slowness=1.25)) > 1.2 * _decode(_demand(40))


def test_cached_prompts_need_no_prefill() -> None:
    assert _prefill(_demand(100, prefill=0.0)) == 0


def test_no_traffic_is_a_value() -> None:
    nothing = _demand(0.0, prefill=None, output=None)
    for role in WorkerType:
        need = role_need(role, nothing, UnknownModel(), TARGETS)
        assert need is not None
        assert need.workers == 0


def test_unknown_is_not_zero() -> None:
    for role in WorkerType:
        assert role_need(role, _demand(10), UnknownModel(), TARGETS) is None
    assert prefill_need(_demand(10, prefill=None), MODEL, TARGETS) is None
    assert decode_need(_demand(10, output=None), MODEL, TARGETS) is None


def test_prompts_come_between_the_tokens_of_a_worker_that_does_all_of_a_request() -> None:
    """10 ms + 1 ms · n by decoding, 0.1 s / 200 · n by prompts: 50 ms with 26.7 at once, not with 40."""
    need = role_need(WorkerType.Aggregated, _demand(40), MODEL, TARGETS)
    assert need is not None
    assert need.workers == pytest.approx((400 + 1.28 * 20) / (40 / 1.5))


def test_prompts_may_be_all_that_there_is_to_do() -> None:
    need = role_need(WorkerType.Aggregated, _demand(40, output=1.0), MODEL, replace(TARGETS, ttft_s=0.15, itl_s=10.0))
    assert need is not None
    assert need.workers == pytest.approx(_prefill(_demand(40), replace(TARGETS, ttft_s=0.15)))


@given(st.floats(0.001, 1000), st.floats(1, 10_000), st.floats(1, 2000))
def test_who_does_all_of_a_request_keeps_the_target(rate: float, prompt: float, output: float) -> None:
    demand = _demand(rate, prefill=prompt, output=output)
    need = role_need(WorkerType.Aggregated, demand, MODEL, TARGETS)
    assert need is not None
    assert need.workers >= _decode(demand) * (1 - 1e-9)
    at_once = rate * output * TARGETS.itl_s / need.workers
    if "out of reach" in need.reason or at_once < 1:  # with fewer there is hardly anybody whose tokens could be late
        return
    prefilling = rate * prompt / 10_000 / need.workers
    assert MODEL.itl_s(1.0, at_once) <= TARGETS.itl_s * (1 - prefilling) * 1.01


@given(st.floats(0, 1000), st.floats(1, 10_000), st.floats(0.01, 10))
def test_more_requests_never_need_fewer(rate: float, tokens: float, ttft_s: float) -> None:
    targets = replace(TARGETS, ttft_s=ttft_s)
    fewer, more = (_prefill(_demand(each, prefill=tokens), targets) for each in (rate, rate * 1.3))
    assert fewer <= more * (1 + 1e-6)
    assert fewer >= rate * tokens / 10_000 * (1 - 1e-9)
